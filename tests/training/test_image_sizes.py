"""Training pictures in sizes that change with the epoch."""
import shutil

import pytest
import torch
from timm.data import create_transform

from aa_models.training import loop
from aa_models.training.datasets import open_dataset
from aa_models.training.loaders import make_train_loader
from aa_models.training.recipe import Recipe, load_recipe
from interruptions import lose_epochs
from training_runs import RECIPE, assert_same_run, run_training

SIZES = {1: 12, 2: 20}


@pytest.fixture
def seen(monkeypatch):
    """Sizes of the batches that are trained on and validated on."""
    sizes = dict(train=[], validate=[])
    step, validate = loop.Trainer._step, loop.Trainer.validate

    def watched(self, images, *args):
        sizes['train'].append(tuple(images.shape[2:]))
        return step(self, images, *args)

    def validating(self):
        sizes['validate'] += [tuple(images.shape[2:]) for images, _ in self.eval_loader]
        return validate(self)
    monkeypatch.setattr(loop.Trainer, '_step', watched)
    monkeypatch.setattr(loop.Trainer, 'validate', validating)
    return sizes


def test_sizes_follow_the_epochs_also_of_a_run_that_goes_on(tmp_path, data, seen, caplog):
    values = dict(epochs=3, train_img_size=SIZES, hflip=0.5, scale=[0.5, 1.0], mixup=0.2, batch_size=12)
    with caplog.at_level('INFO'):
        unbroken = run_training(tmp_path / 'unbroken', data, **values)
    expected = [(size, size) for size in (16, 12, 20) for _ in range(2)]
    assert seen['train'] == expected and set(seen['validate']) == {(16, 16)}
    assert 'at 16 px; in training at 16, after 1 epochs at 12, after 2 epochs at 20 px' in caplog.text
    assert load_recipe(unbroken / 'recipe.yaml').train_img_size == SIZES

    output = shutil.copytree(unbroken, tmp_path / 'out')
    lose_epochs(output, first=2)
    seen['train'].clear()
    run_training(output, data, **values)
    assert_same_run(output, unbroken)
    assert seen['train'] == expected[-2:]


def test_pictures_of_a_size_are_those_of_timms_transform(data):
    recipe = Recipe(**{**RECIPE, 'train_img_size': {0: 8, 1: 24}, 'img_size': 16, 'workers': 1})
    config = dict(input_size=(3, 16, 16), interpolation='bicubic', mean=(0., 0., 0.), std=(1., 1., 1.))
    dataset = open_dataset('', str(data), 'train')
    loader = make_train_loader(dataset, recipe, config, torch.device('cpu'), False)
    assert len(loader) == 3
    dataset.transform.set_epoch(1)
    assert {images.shape[2:] for images, _ in loader} == {(24, 24)}  # in a loader's process, too
    for epoch, size in enumerate((8, 24, 24)):
        dataset.transform.set_epoch(epoch)
        picture = dataset[0][0]
        dataset.transform, scheduled = create_transform(
            size, is_training=True, scale=(1, 1), ratio=(1, 1), hflip=0, color_jitter=None, interpolation='bicubic',
            use_prefetcher=True), dataset.transform
        assert picture.shape == (3, size, size) and (picture == dataset[0][0]).all()
        dataset.transform = scheduled


def test_on_the_command_line(tmp_path, data, seen):
    run_training(tmp_path / 'out', data, '--train-img-size', '0=8', '1=12')
    assert seen['train'] == 3 * [(8, 8)] + 3 * [(12, 12)]


@pytest.mark.parametrize('values, message', [
    (dict(train_img_size={2: 16}), 'train_img_size changes after 2 epochs, but epochs = 2'),
    (dict(train_img_size={0: 0}), r'train_img_size\[0\] = 0 must be greater than or equal to 1'),
    (dict(train_img_size={-1: 8}), 'train_img_size.* = -1 must be greater than or equal to 0'),
    (dict(train_img_size={'first': 8}), "train_img_size.* = 'first' must be a valid integer"),
    (dict(train_img_size={0: 8}, img_size=None, input_size=[3, 16, 24]), 'needs a square input, not 16 × 24'),
    (dict(train_img_size={0: 20000}), 'batch_size = 8 with 20000 px would take at least'),
    (dict(train_img_size={0: 17}, model='test_vit', model_kwargs={}, img_size=None),
     'train_img_size: the model takes no images of 17x17 pixels'),
])
def test_impossible_sizes_are_refused(tmp_path, data, values, message):
    with pytest.raises(ValueError, match=message):
        run_training(tmp_path / 'out', data, **values)
    assert not (tmp_path / 'out').exists()
