"""What a training run computes, and what it refuses."""
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from aa_models.cli import train
from aa_models.training import loaders
from aa_models.training.datasets import class_names, open_dataset
from aa_models.training.recipe import Recipe, load_recipe
from aa_models.training.run import train as train_model
from aa_models.training.splits import choose_evenly, open_datasets
from aa_models.training.validation import validate, validation_recipe
from found import augmented
from interruptions import lose_epochs
from training_runs import (
    RECIPE,
    assert_goes_on,
    assert_same_run,
    checkpoint_of,
    log_of,
    make_pictures,
    run,
    run_training,
)

# what is refused before anything is written

@pytest.mark.parametrize('values, message', [
    (dict(model='aa_resnet19'), "model = 'aa_resnet19' is unknown: did you mean aa_resnet"),
    (dict(model_kwargs=dict(depth=3)), "cannot be made with .*depth=3"),
    (dict(num_classes=2), 'num_classes = 2, but the images have labels to 2'),
    (dict(batch_size=64), '24 training images do not fill one batch'),
    (dict(holdout=24), 'holdout = 24 must be below the 24 training images'),
    (dict(train_images=24), 'train_images = 24 must be below the 24 training images'),
    (dict(holdout=6, train_images=18), 'train_images = 18 must be below the 18 training images'),
    (dict(dataset='torch/nonesuch'), "dataset 'torch/nonesuch'.* cannot be read: Unknown torchvision dataset"),
    (dict(crop_padding=18), 'crop_padding = 18 needs pictures larger than that'),
    (dict(model='simplecnn.cifar100', model_kwargs={}, pretrained=True, known_classes=True, num_classes=2),
     'num_classes = 2, but the images have labels to 2'),
    (dict(sched='wsd', sched_on_updates=False), "sched = 'wsd', decay_epochs = None: wsd schedule requires 0 < decay"),
    (dict(opt_kwargs=dict(speed=3)), "opt = 'sgd' cannot be made with opt_kwargs = .*speed"),
    (dict(opt='bnbadam'), "opt = 'bnbadam' cannot be made with"),
])
def test_impossible_runs_are_refused(tmp_path, data, values, message):
    with pytest.raises(ValueError, match=message):
        run_training(tmp_path / 'out', data, **values)
    assert 'crop_padding' in values or not (tmp_path / 'out').exists()


def test_folders_that_mislead_are_refused(tmp_path, data):
    make_pictures(tmp_path / 'shifted', splits=('train',))
    make_pictures(tmp_path / 'shifted', classes=2, splits=('validation',))
    for path in data.glob('*/*'):  # as Tiny-ImageNet comes
        shutil.copytree(path, tmp_path / 'archive' / path.relative_to(data) / 'images')
    for name, holdout, message in (
            ('shifted', 0, 'differ in their classes: class2'),
            ('archive', 0, "one class only, 'images': a folder train/CLASS/"),
            ('archive', 6, "one class only, 'images': a folder train/CLASS/"),
            ('nowhere', 0, 'is no directory')):
        with pytest.raises(ValueError, match=message):
            run_training(tmp_path / 'out', tmp_path / name, holdout=holdout)


def test_directory_belongs_to_its_recipe(tmp_path, data):
    output = run_training(tmp_path / 'out', data, epochs=1)
    with pytest.raises(ValueError, match=r'another recipe \(lr: 0.05 there, 0.1 now\)'):
        run_training(output, data, epochs=1, lr=0.1)
    run_training(output, data, '--overwrite', epochs=1, lr=0.1)
    others = make_pictures(tmp_path / 'others')
    for split in ('train', 'validation'):
        (others / split / 'class2').rename(others / split / 'a_new_class')
    facts = (output / 'run.json').read_text()
    with pytest.raises(ValueError, match="a run of other classes .'class0', .* there, 'a_new_class', 'class0'"):
        run_training(output, others, epochs=1, lr=0.1)
    assert (output / 'run.json').read_text() == facts
    (output / 'recipe.yaml').unlink()
    with pytest.raises(ValueError, match='holds checkpoints but no recipe.yaml'):
        run_training(output, data, epochs=1, lr=0.1)


@pytest.mark.parametrize('model, attention', [('test_resnet', ''), ('aa_simplecnn', ', attention in 2 layers')])
def test_a_run_says_its_plan_and_what_to_do_with_the_result(model, attention, tmp_path, data, caplog):
    words = ['--model', model, '--img-size', 32]
    with caplog.at_level('INFO'):
        output = run_training(tmp_path / 'out', data, *words, epochs=1, model_kwargs={})
    said = [(record.name.partition('.')[0], record.getMessage()) for record in caplog.records]
    assert {name for name, _ in said} == {'aa_models'}
    plan, rest = [message for _, message in said[:5]], [message for _, message in said[5:]]
    assert re.match(rf'model: {model}, [\d,]+ parameters{attention}, from random weights', plan[0])
    assert plan[1:4] == [
        'data: 24 images to train, 24 to validate, at 32 px', 'classes: 3 (class0, class1, class2)',
        'updates: 3 an epoch of 1, 3 in all, sgd with learning rates up to 0.05']
    assert plan[4].endswith(f'saved in {str(output)!r}')
    assert [message.partition(' ')[0] for message in rest[:-1]] == ['epoch', 'best']
    assert rest[-1] == f'done: aa-models predict PICTURE --model local-dir:{output / model}.out'


def test_folder_of_class_folders(tmp_path, caplog):
    """A tenth is held out, and at least one picture of each class; the card's recipe says how many."""
    flat = make_pictures(tmp_path / 'flat', splits=('',))
    with caplog.at_level('INFO'):
        output = run_training(tmp_path / 'out', flat, epochs=1)
    assert '3 of its 24 pictures are held out to validate on (--holdout N chooses how many)' in caplog.text
    recipe = load_recipe(output / 'recipe.yaml')
    train, held_out = open_datasets(recipe, str(flat), download=False)
    assert recipe.holdout == len(held_out) == 3 and len(train) == 21
    assert sorted(label for _, label in held_out) == [0, 1, 2]
    run_training(output, flat, epochs=1)  # and goes on as the same run


# what is computed

def test_chosen_images_are_balanced():
    labels = [0] * 50 + [1] * 30 + [2] * 10
    indices = list(range(1000, 1090))
    chosen = choose_evenly(indices, labels, 15, seed=1)
    assert chosen == choose_evenly(indices, labels, 15, seed=1) != choose_evenly(indices, labels, 15, seed=2)
    assert [sum(labels[i - 1000] == c for i in chosen) for c in range(3)] == [5, 5, 5]
    assert chosen == sorted(set(chosen)) and len(choose_evenly(indices, None, 15, seed=1)) == 15


@pytest.mark.parametrize('holdout', [0, 6])
def test_few_training_images(data, holdout):
    """As many of each class, none of those held out, which takes one folder only; validation keeps its own."""
    recipe = Recipe(train_images=9, holdout=holdout)
    train, evaluation = open_datasets(recipe, str(data / 'train' if holdout else data), download=False)
    labels = [label for _, label in train]
    assert len(train) == 9 and all(labels.count(c) == 3 for c in range(3))
    assert len(evaluation) == (holdout or len(open_dataset('', str(data), 'validation')))
    assert not holdout or not set(train.indices) & set(evaluation.indices)
    assert class_names(evaluation) == ['class0', 'class1', 'class2']


def test_crops_have_the_shape_of_the_input(tmp_path):
    """The largest crop in the input's proportions is the whole picture, which training sees as validation does."""
    picture = np.random.default_rng(0).integers(0, 255, (24, 48, 3), np.uint8)
    (tmp_path / 'train' / 'noise').mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / 'train' / 'noise' / 'a.png')
    recipe = Recipe(
        input_size=(3, 12, 24), interpolation='bilinear', crop_pct=1.0, scale=(1, 1), ratio=(1, 1), hflip=0,
        color_jitter=0, batch_size=1, workers=0)
    config = loaders.data_config_of(timm.create_model('test_resnet', device='meta'), recipe)
    train, evaluation = (open_dataset('', str(tmp_path), 'train') for _ in range(2))
    (seen, _), = loaders.make_train_loader(train, recipe, config, torch.device('cpu'), False)
    (expected, _), = loaders.make_eval_loader(evaluation, recipe, config, torch.device('cpu'))
    assert seen.shape == (1, 3, 12, 24)
    torch.testing.assert_close(seen, expected)


def test_gradients_of_two_batches_make_one_of_the_large_batch(tmp_path, data):
    values = dict(model='test_convnext', model_kwargs={}, img_size=32, epochs=1)  # no batch norm
    whole, parts = (
        checkpoint_of(run_training(tmp_path / str(n), data, batch_size=12 // n, grad_accum_steps=n, **values))
        for n in (1, 3))
    torch.testing.assert_close(parts['state_dict'], whole['state_dict'], rtol=1e-4, atol=1e-6)


def test_ema_is_the_average_of_the_weights(tmp_path, data):
    values = dict(epochs=2, batch_size=24)  # an update an epoch
    output = run_training(tmp_path / 'out', data, ema=True, ema_decay=0.75, **values)
    plain = checkpoint_of(run_training(tmp_path / 'plain', data, **values))
    first, second = (checkpoint_of(output, f'checkpoint-{epoch}') for epoch in (0, 1))
    torch.testing.assert_close(plain['state_dict'], second['state_dict'], rtol=0, atol=0)
    for name, weight in second['state_dict'].items():
        if weight.is_floating_point():  # timm's average starts with the weights after the first update
            torch.testing.assert_close(second['state_dict_ema'][name], 0.75 * first['state_dict'][name] + 0.25 * weight)


def test_statistics_of_batch_norms_can_stay(tmp_path, data):
    """An epoch moves them, or leaves them at their start of 0 and 1 while the weights learn."""
    for freeze in (False, True):
        state = checkpoint_of(run_training(tmp_path / str(freeze), data, epochs=1, freeze_bn=freeze))['state_dict']
        means = [tensor for name, tensor in state.items() if name.endswith('running_mean')]
        variances = [tensor for name, tensor in state.items() if name.endswith('running_var')]
        assert means and all((m == 0).all() == freeze for m in means)
        assert all((v == 1).all() == freeze for v in variances)
        assert all((state[name.replace('running_mean', 'bias')] != 0).any() for name in state if 'running_mean' in name)


def test_mixing_repeats_and_stops(tmp_path, data):
    values = dict(mixup=0.4, cutmix=1.0, hflip=0.5, re_prob=0.5, auto_augment='rand-m9-mstd0.5', color_jitter=0.4)
    one = run_training(tmp_path / 'one', data, **values)
    assert_same_run(one, run_training(tmp_path / 'two', data, **values))
    unmixed = run_training(tmp_path / 'unmixed', data, **values, mixup_off_epoch=1)
    assert log_of(one)[0] == log_of(unmixed)[0]
    assert log_of(one)[1]['train_loss'] != log_of(unmixed)[1]['train_loss']


def test_layers_below_the_head_learn_slower(tmp_path, data):
    output = run_training(tmp_path / 'out', data, epochs=1, layer_decay=0.5, opt='adamw', weight_decay=0.05)
    groups = checkpoint_of(output)['optimizer']['param_groups']
    scales = sorted({group['lr_scale'] for group in groups})
    assert scales[-1] == 1 and scales[-2] == 0.5 and len(scales) >= 3
    assert {group['weight_decay'] for group in groups} == {0, 0.05}  # none on norms, biases and relative tables


def test_an_optimiser_that_sees_curvature(tmp_path, data):
    """It needs gradients of gradients, which timm's own loop gives it, too."""
    values = dict(opt='adahessian', epochs=2)
    unbroken = run_training(tmp_path / 'unbroken', data, '--tag', 'noise', **values)
    assert float(log_of(unbroken)[0]['train_loss']) > 0
    broken = shutil.copytree(unbroken, tmp_path / 'broken')
    lose_epochs(broken, 1)  # its own random numbers go on as they would have
    assert_goes_on(broken, data, unbroken, **values)


def test_the_last_decay_is_as_long_as_asked_for(tmp_path, data):
    """Of four epochs of three updates; to timm half an epoch would be half of the run."""
    rates = {
        decay: [float(row['lr']) for row in log_of(run_training(
            tmp_path / str(decay), data, sched='wsd', decay_epochs=decay, epochs=4, lr=0.01))] for decay in (0.5, 2)}
    assert rates[0.5][:3] == 3 * [0.01] and rates[2][:2] == 2 * [0.01] and rates[2][2] < 0.01


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_mixed_precision_in_channels_last(tmp_path, data, dtype):
    output = run_training(tmp_path / 'out', data, amp=True, amp_dtype=dtype, channels_last=True, crop_padding=2)
    rows = log_of(output)
    assert float(rows[1]['train_loss']) < float(rows[0]['train_loss'])
    assert all(w.dtype in (torch.float32, torch.int64) for w in checkpoint_of(output)['state_dict'].values())


def test_compiled_model_is_stored_plain(tmp_path, data, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda model, backend, **kwargs: compile(model, backend='eager', **kwargs))
    output = run_training(tmp_path / 'out', data, compile=True, epochs=1)
    plain = run_training(tmp_path / 'plain', data, epochs=1)
    torch.testing.assert_close(checkpoint_of(output)['state_dict'], checkpoint_of(plain)['state_dict'])


def test_finetuning_a_pretrained_body_with_a_new_head(tmp_path, data):
    """Next to no learning rate leaves the body as it was; the packaged recipe learns."""
    output, two = run_training(tmp_path / 'first', data, lr=0.2), make_pictures(tmp_path / 'two', classes=2)
    words = ['--model', f'local-dir:{output / "aa_simplecnn.first"}']
    still = run_training(tmp_path / 'still', two, *words, '--pretrained', model_kwargs={}, lr=1e-9, epochs=1)
    first, second = checkpoint_of(output)['state_dict'], checkpoint_of(still)['state_dict']
    assert second['head.fc.weight'].shape == (2, first['head.fc.weight'].shape[1])
    for name, weight in second.items():
        if not name.startswith('head.') and 'running' not in name and weight.is_floating_point():
            torch.testing.assert_close(weight, first[name].half().float(), rtol=0, atol=1e-7)

    tuned = tmp_path / 'tuned'
    words += ['--data-dir', two, '--output', tuned, '--batch-size', 8, '--epochs', 4, '--workers', 0, '--device', 'cpu']
    run(train, 'finetune', *words)
    rows, recipe = log_of(tuned), load_recipe(tuned / 'recipe.yaml')
    assert float(rows[-1]['train_loss']) < float(rows[0]['train_loss'])
    assert recipe.pretrained and recipe.num_classes == 2 and recipe.img_size is None


def test_function_without_the_command_line(tmp_path, data):
    output, done = tmp_path / 'out', []
    train_model(Recipe(**RECIPE), output, data_dir=str(data), finish=lambda: done.append(log_of(output)))
    assert done == [log_of(output)] and len(done[0]) == 2 and not list(output.glob('aa_simplecnn.*'))


# kinds of datasets

def test_torchvision_dataset(tmp_path, data):
    assert_same_run(
        run_training(tmp_path / 'torch', data, dataset='torch/image_folder'), run_training(tmp_path / 'timm', data))
    for name in ('', 'torch/image_folder'):
        assert class_names(open_dataset(name, str(data), 'train')) == ['class0', 'class1', 'class2']


def test_webdataset_repeats_and_resumes(tmp_path, data):
    pytest.importorskip('webdataset', reason='the wds reader of timm needs it')
    shards, label = tmp_path / 'shards', tmp_path / 'label'
    shards.mkdir()
    for number in range(2):
        with tarfile.open(shards / f'{number}.tar', 'w') as tar:
            for picture in sorted((data / 'train').rglob('*.png'))[number::2]:
                label.write_text(picture.parent.name[-1])
                for path, suffix in ((picture, 'png'), (label, 'cls')):
                    tar.add(path, f'{picture.parent.name}-{picture.stem}.{suffix}')
    split = dict(name='train', filenames=['0.tar', '1.tar'], shard_lengths=[12, 12], num_samples=24)
    (shards / '_info.json').write_text(json.dumps(dict(splits=dict(train=split))))
    values = dict(dataset='wds/shards', val_split='train', num_classes=3, workers=1)
    with pytest.raises(ValueError, match='workers = 0'):
        run_training(tmp_path / 'out', shards, **{**values, 'workers': 0})
    unbroken, output = (run_training(tmp_path / name, shards, **values) for name in ('unbroken', 'out'))
    lose_epochs(output)
    assert_same_run(unbroken, run_training(output, shards, **values))


def test_hugging_face_dataset(tmp_path, data):
    pytest.importorskip('datasets', reason='the hfds reader of timm needs it')
    output = run_training(tmp_path / 'out', None, dataset=f'hfds/{data}', epochs=1)
    assert len(log_of(output)) == 1 and checkpoint_of(output)['args'].num_classes == 3


def test_any_network_augmented(tmp_path, data):
    """From the weights of a plain network to a folder that timm loads."""
    base = timm.create_model('resnet10t', num_classes=3)
    timm.models.save_for_hf(base, str(tmp_path / 'base'), safe_serialization=True)
    output = run_training(
        tmp_path / 'out', data, '--augment', 'layer4.*.conv2', '--pretrained', model=f'local-dir:{tmp_path / "base"}',
        model_kwargs=dict(dk=16, dv=8, num_heads=2), img_size=64, epochs=1)
    folder = f'local-dir:{output / "augmented.out"}'
    model = timm.create_model(folder, pretrained=True)
    assert list(augmented(model)) == ['layer4.0.conv2'] and augmented(model)['layer4.0.conv2'].attn.rel_h.shape[0] == 3
    here = dict(data_dir=str(data), device='cpu')
    of_folder = validate(validation_recipe(model=folder, workers=0), **here)
    of_run = validate(validation_recipe(output / 'last.pth.tar', workers=0), checkpoint=output / 'last.pth.tar', **here)
    assert of_folder.top1 == of_run.top1 == pytest.approx(float(log_of(output)[-1]['eval_top1']))
    other_size = validation_recipe(output / 'last.pth.tar', workers=0, img_size=96)
    assert validate(other_size, checkpoint=output / 'last.pth.tar', **here).data_config['input_size'] == (3, 96, 96)
