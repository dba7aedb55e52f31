"""Accuracy under corruptions: the pictures, the table, and what is refused."""
import csv
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from aa_models.data.cifar100 import CIFAR100_LABELS
from aa_models.training import corruptions
from aa_models.training.validation import validate, validation_recipe
from command import answered, refused

MODELS = ['simplecnn.cifar100', 'aa_simplecnn.cifar100']


@pytest.fixture
def data(data, tmp_path_factory):
    """Pictures under names of classes that the models have."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp('named') / 'data')
    for path in list(folder.glob('*/class*')):
        path.rename(path.with_name(CIFAR100_LABELS[int(path.name[-1])]))
    return folder


@pytest.fixture
def two(monkeypatch):
    """Two corruptions in place of fifteen."""
    monkeypatch.setattr(corruptions, 'corruption_names', lambda: ['contrast', 'pixelate'])


def test_every_corruption_is_repeatable_and_grows():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)).resize((48, 40))
    names = corruptions.corruption_names()
    assert len(names) == 15
    for name in names:
        once, again, strong = (
            np.asarray(corruptions.corrupt_picture(picture, name, strength, seed=7), float) for strength in (1, 1, 5))
        assert once.shape == (40, 48, 3) and (once == again).all()
        assert 0 < np.abs(once - picture).mean() < np.abs(strong - picture).mean()


def test_table(data, tmp_path, two, capsys):
    output = tmp_path / 'table.csv'
    answer = answered(capsys, 'corruptions', *MODELS, '--data-dir', data, '--output', output)
    with output.open(newline='') as file:
        rows = list(csv.DictReader(file))
    cases = [('none', '0'), *((name, str(i)) for name in ('contrast', 'pixelate') for i in range(1, 6))]
    found = [(row['model'], row['corruption'], row['strength']) for row in rows]
    assert found == [(model, *case) for case in cases for model in MODELS]
    for model, line in zip(MODELS, answer.splitlines()):
        own = [float(row['top1']) for row in rows if row['model'] == model]
        alone = validate(validation_recipe(model=model, workers=0), data_dir=str(data))
        assert own[0] == pytest.approx(alone.top1, abs=0.005) and alone.images == 24
        assert line == f'{model}: top-1 {own[0]:.2f} % of 24 images, corrupted {sum(own[1:]) / 10:.2f} %'
    assert '% of 6 images' in answered(
        capsys, 'corruptions', MODELS[0], '--images', 6, '--data-dir', data, '--output', output)


@pytest.mark.parametrize('models, message', [
    ([MODELS[0], 'aa_resnet18.tiny_in'], 'the models must take the same pictures, but'),
    (['simplecnn.nonesuch'], "model = 'simplecnn.nonesuch' is unknown"),
])
def test_impossible_comparisons_are_refused(data, tmp_path, two, capsys, models, message):
    assert message in refused(capsys, 'corruptions', *models, '--data-dir', data, '-o', tmp_path / 'table.csv')
    assert not any(tmp_path.iterdir())


def test_torchrun_is_refused(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert 'takes one process' in refused(
        capsys, 'corruptions', MODELS[0], '--data-dir', data, '-o', tmp_path / 'table.csv')


def test_missing_package_and_folder(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'imagecorruptions', None)
    words = ('corruptions', MODELS[0], '--data-dir', data, '--output')
    assert "pip install 'aa-models[corruptions]'" in refused(capsys, *words, tmp_path / 'table.csv')
    assert 'images = -5 must be at least 0' in refused(capsys, *words, tmp_path / 'table.csv', '--images', -5)
    assert 'in a folder that does not exist' in refused(capsys, *words, tmp_path / 'no' / 'table.csv')
