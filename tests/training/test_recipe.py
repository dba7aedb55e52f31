"""Recipes: what is read from YAML and the command line, and what is said of a wrong one."""
import argparse
import re

import pytest
import yaml

from aa_models.cli.recipe_options import add_recipe_options, recipe_values, spelled_out
from aa_models.training.recipe import Recipe, load_recipe, recipe_fields, recipe_names


@pytest.mark.parametrize('values, message', [
    (dict(epoch=3), "unknown key 'epoch'; did you mean 'epochs'"),
    (dict(epochs='three'), "epochs = 'three' must be a valid integer"),
    (dict(epochs=2.5), 'epochs = 2.5 must be a valid integer'),
    (dict(epochs=True), 'epochs = True must be a number'),
    (dict(epochs=0), 'epochs = 0 must be greater than or equal to 1'),
    (dict(lr=0), 'lr = 0 must be greater than 0'),
    (dict(lr=float('inf')), 'lr = inf must be a finite number'),
    (dict(smoothing=1), 'smoothing = 1 must be less than 1'),
    (dict(hflip=1.5), 'hflip = 1.5 must be less than or equal to 1'),
    (dict(mean=[0.5]), r'mean\[1\] is missing; mean\[2\] is missing'),
    (dict(scale=[0.1, 0.2, 0.3]), 'scale = .*: List should have at most 2 items .*, not 3'),
    (dict(input_size=[96, 160]), r'input_size\[2\] is missing'),
    (dict(input_size=[3, 96, 0.5]), r'input_size\[2\] = 0.5 must be a valid integer'),
    (dict(input_size=[3, 96, 160], img_size=96), 'img_size = 96 and input_size = .*: give one of them'),
    (dict(input_size=[1, 96, 160]), r'input_size = \[1, 96, 160\] must begin with 3'),
    (dict(input_size=[3, 96, 160], crop_padding=4), 'crop_padding = 4 needs a square input'),
    (dict(scale='all'), "scale = 'all' must be a valid list"),
    (dict(model_kwargs=3), 'model_kwargs = 3 must be a valid dictionary'),
    (dict(amp_dtype='half'), "amp_dtype = 'half' must be 'bfloat16' or 'float16'"),
    (dict(opt='adamm'), "opt = 'adamm' is no optimiser of timm; did you mean 'adam"),
    (dict(opt='muon', opt_kwargs=dict(fallback_list='[*qkv]')), r"opt_kwargs: fallback_list = '\[\*qkv\]' is no list"),
    (dict(img_size='large'), "img_size = 'large' must be a valid integer.*, or none"),
    (dict(amp='perhaps', seed=-1), "amp = 'perhaps' must be auto, true or false; seed = -1 must be greater than"),
    (dict(auto_augment='randm9'), "auto_augment = 'randm9' is no policy that timm knows"),
    (dict(epochs=5, warmup_epochs=5), 'warmup_epochs = 5 must be less than epochs = 5'),
    (dict(widen=True), 'widen needs initial_checkpoint'),
    (dict(narrow=True), 'narrow needs initial_checkpoint'),
    (dict(narrow=True, widen=True, initial_checkpoint='run'), 'widen and narrow: give one of them'),
    (dict(sched='wsd', epochs=6, warmup_epochs=1, decay_epochs=6), 'decay_epochs = 6 must be at most 5 with sched = w'),
    (dict(model_kwargs=dict(drop_rate=0.2)), 'model_kwargs has drop_rate, for which a recipe has the key drop'),
    (dict(model_kwargs=dict(num_classes=3)), 'model_kwargs has num_classes, for which a recipe has the key num'),
    (dict(mixup=0.2, batch_size=7), 'batch_size = 7 must be even'),
    ('- a', 'not a list'),
    ('3', 'not a number'),
    ('a: [', 'is not YAML'),
    ('lr: 1\nseed: 2\nlr: 2', "key 'lr' is there twice"),
    ('opt_kwargs: {a: 1, a: 2}', "key 'a' is there twice"),
    ('? [1]\n: 2', 'is not YAML: .*unhashable'),
    ('auto_augment: foo', "auto_augment = 'foo' is no policy"),
])
def test_recipe_names_what_is_wrong(tmp_path, values, message):
    path = tmp_path / 'recipe.yaml'
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_unknown_recipe_names_those_there_are():
    with pytest.raises(ValueError, match='neither a file nor .*cifar100_resnet, .*finetune'):
        load_recipe('cifar10_vit')


@pytest.mark.parametrize('name', recipe_names())
def test_packaged_recipes_survive_saving(tmp_path, name):
    load_recipe(name).save(tmp_path / 'copy.yaml')
    assert load_recipe(tmp_path / 'copy.yaml') == load_recipe(name)


parser = argparse.ArgumentParser()
add_recipe_options(parser)


@pytest.mark.parametrize('words, value', [
    ('', 'auto'), ('--amp', True), ('--no-amp', False), ('--amp true', True), ('--amp false', False),
    ('--amp auto', 'auto'), ('--amp --no-amp', False)])
def test_amp_has_three_values(words, value):
    assert load_recipe('cifar100_resnet', **recipe_values(parser.parse_args(words.split()))).amp == value


def test_amp_takes_no_argument_for_its_value():
    assert spelled_out(['corruptions', '--amp', 'simplecnn']) == ['corruptions', '--amp=true', 'simplecnn']
    assert spelled_out(['validate', '--amp', 'auto', '--amp']) == ['validate', '--amp', 'auto', '--amp=true']


def test_options_replace_values():
    words = '--lr 5e-3 --mean 0.1 0.2 0.3 --img-size none --no-amp --model-kwargs dk=0.5 --clip-grad 1'
    values = recipe_values(parser.parse_args(words.split()))
    recipe = load_recipe('cifar100_resnet', **values)
    assert (recipe.lr, recipe.mean, recipe.img_size, recipe.amp) == (5e-3, (0.1, 0.2, 0.3), None, False)
    assert (recipe.model_kwargs, recipe.clip_grad, recipe.batch_size) == (dict(dk=0.5), 1.0, 256)


@pytest.mark.parametrize('epochs, warmup', [('1', 0.05), ('20', 1), ('3', 1)])
def test_warmup_shrinks_with_few_epochs(epochs, warmup):
    recipe = load_recipe('finetune', epochs=epochs)
    assert (recipe.epochs, recipe.warmup_epochs) == (int(epochs), warmup)
    with pytest.raises(ValueError, match='warmup_epochs = 1 must be less than epochs = 1'):
        load_recipe('finetune', epochs=1, warmup_epochs=1)


def test_sizes_shrink_with_few_epochs():
    sizes = load_recipe('cifar100_resnet').train_img_size
    assert sizes == {0: 64, 8: 96, 11: 128}
    for epochs, shorter in ((12, sizes), ('7', {0: 64, 4: 96, 5: 128}), (1, {0: 128})):
        assert load_recipe('cifar100_resnet', epochs=epochs).train_img_size == shorter
    with pytest.raises(ValueError, match='train_img_size changes after 8 epochs, but epochs = 7'):
        load_recipe('cifar100_resnet', epochs=7, train_img_size=sizes)


def test_sizes_that_are_no_mapping_are_said_so(tmp_path):
    (tmp_path / 'mine.yaml').write_text('{model: aa_simplecnn, epochs: 9, warmup_epochs: 0, train_img_size: [8, 16]}')
    with pytest.raises(ValueError, match=r'train_img_size = \[8, 16\] must be'):
        load_recipe(tmp_path / 'mine.yaml', epochs=3)


def test_tables_are_made_for_the_input():
    for size, expected in ((dict(img_size=64), 64), (dict(input_size=(3, 64, 96)), [64, 96])):
        name, arguments = Recipe(model='simplecnn', augment=('stages.1.*conv',), **size).network
        assert name == 'augmented' and arguments['img_size'] == expected


def test_every_key_is_an_option():
    text = parser.format_help()
    for key, field in recipe_fields().items():
        assert f'--{key.replace("_", "-")}' in parser._option_string_actions and field.description
    assert re.search(r'--batch-size N\s+images in a batch of one device \(default: 128\)', text)
    assert re.search(r'--mean X \[X \.\.\.\]\s', text) and '--amp-dtype {bfloat16,float16}' in text
