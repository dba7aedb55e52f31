"""Validation, and the folder for the Hub that a finished run becomes."""
import errno
import json
import os
import re
import shutil
from unittest import mock

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from timm.models import load_checkpoint

from aa_models.cli import pack
from aa_models.errors import DivergenceError, InputError, UserError
from aa_models.release import folder as packing
from command import run_command
from training_runs import RECIPE, checkpoint_of, log_of, make_pictures, run, run_training, run_validation


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('data'), classes=7, each=4)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, data):
    return run_training(
        tmp_path_factory.mktemp('runs') / 'out', data, '--tag', 'noise', lr=0.2, ema=True, ema_decay=0.5,
        mean=[0.4, 0.5, 0.6], interpolation='bilinear', crop_pct=0.9)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the packed folder, to change."""
    return shutil.copytree(finished / 'aa_simplecnn.noise', tmp_path / 'aa_simplecnn.noise')


# the folder

def test_folder_holds_what_the_hub_wants(finished, folder):
    assert {path.name for path in folder.iterdir()} == {
        'model.safetensors', 'config.json', 'README.md', 'recipe.yaml', 'log.csv'}
    for name in ('recipe.yaml', 'log.csv'):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    averaged = checkpoint_of(finished)['state_dict_ema']
    halves = {name: weight.half() if weight.is_floating_point() else weight for name, weight in averaged.items()}
    torch.testing.assert_close(load_file(folder / 'model.safetensors'), halves, rtol=0, atol=0)


def test_config_is_timms_and_says_how_to_prepare_pictures(folder):
    config = json.loads((folder / 'config.json').read_text())
    assert (config['architecture'], config['num_classes']) == ('aa_simplecnn', 7)
    assert config['label_names'] == [f'class{i}' for i in range(7)]
    assert config['model_args']['img_size'] == [16, 16]
    for key in ('channels', 'dk', 'dv', 'num_heads'):
        assert config['model_args'][key] == RECIPE['model_kwargs'][key]
    cfg = config['pretrained_cfg']
    assert (cfg['tag'], cfg['input_size'], cfg['mean']) == ('noise', [3, 16, 16], [0.4, 0.5, 0.6])
    assert (cfg['interpolation'], cfg['crop_pct'], cfg['num_classes']) == ('bilinear', 0.9, 7)
    assert not cfg.keys() & {'url', 'file', 'source', 'hf_hub_id', 'hf_hub_filename', 'notes', 'state_dict'}


def test_folder_loads_with_the_logits_of_the_rounded_weights(finished, folder):
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    rounded = timm.create_model('aa_simplecnn', num_classes=7, **RECIPE['model_kwargs']).eval()
    load_checkpoint(rounded, str(finished / 'last.pth.tar'), use_ema=True)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(x), rounded.half().float()(x))
    assert timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=2)(x).shape == (2, 2)


def test_pack_by_its_own_means(finished, tmp_path, capsys):
    run(pack, finished, '--tag', 'again', '--to', tmp_path, '--repo', 'someone/noise', '--machine', 'an abacus')
    made = tmp_path / 'aa_simplecnn.again'
    assert capsys.readouterr().out.strip() == str(made)
    weights = [folder / 'model.safetensors' for folder in (made, finished / 'aa_simplecnn.noise')]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    text = (made / 'README.md').read_text()
    assert "timm.create_model('hf-hub:someone/noise', pretrained=True)" in text and 'hours on an abacus' in text


def test_only_the_folder_of_this_very_run_is_reused(finished, tmp_path):
    """What `validate --card` wrote stays when the same run is packed again; the folder of another run is replaced."""
    output = shutil.copytree(finished, tmp_path / 'run')
    folder = output / 'aa_simplecnn.noise'
    (folder / 'README.md').write_text('measured')
    assert packing.pack_run(output, 'noise', reuse=True) == folder
    assert (folder / 'README.md').read_text() == 'measured'
    (folder / 'log.csv').write_text((folder / 'log.csv').read_text().replace('0', '1'))
    packing.pack_run(output, 'noise', reuse=True)
    assert (folder / 'README.md').read_text() == (finished / 'aa_simplecnn.noise' / 'README.md').read_text()


def test_plain_timm_model_without_average(tmp_path, data):
    values = dict(
        model='test_resnet', model_kwargs={}, img_size=32, epochs=1, train_images=8, dataset='torch/image_folder')
    output = run_training(tmp_path / 'out', data, **values)
    folder = output / 'test_resnet.image_folder'
    assert torch.equal(
        load_file(folder / 'model.safetensors')['fc.weight'], checkpoint_of(output)['state_dict']['fc.weight'].half())
    card = (folder / 'README.md').read_text()
    assert 'aa_models' not in card and 'trained from scratch on 8 images of' in card
    assert timm.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 7


def test_input_that_is_not_square(tmp_path, data, capsys):
    output = run_training(tmp_path / 'out', data, '--tag', 'wide', img_size=None, input_size=[3, 12, 20], epochs=1)
    folder = output / 'aa_simplecnn.wide'
    assert json.loads((folder / 'config.json').read_text())['pretrained_cfg']['input_size'] == [3, 12, 20]
    run_validation('--model', f'local-dir:{folder}', '--data-dir', data, '--card')
    for size in ((), ('--input-size', 3, 20, 12), ('--img-size', 12)):
        run_validation('--checkpoint', output / 'last.pth.tar', '--data-dir', data, *size)
    assert 'input 12 × 20 px' in (folder / 'README.md').read_text()
    assert f'top-1 {float(log_of(output)[-1]["eval_top1"]):.3f} %' in capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize('tag', ['', 'a/b', 'a.b'])
def test_impossible_tags_are_refused(finished, tag):
    with pytest.raises(ValueError, match=f'tag = {tag!r} must be made of letters, digits, _ and -'):
        run(pack, finished, '--tag', tag)


def test_only_a_finished_run_is_packed(finished, tmp_path):
    with pytest.raises(ValueError, match='holds no recipe.yaml'):
        run(pack, tmp_path)
    for name, copy, epochs in (('recipe.yaml', 'recipe.yaml', 0), ('checkpoint-0.pth.tar', 'last.pth.tar', 1)):
        shutil.copy(finished / name, tmp_path / copy)
        with pytest.raises(ValueError, match=f'is at {epochs} of 2 epochs'):
            run(pack, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('foreign, message', [(True, 'holds more than a packed run'), (False, 'disk full')])
def test_failed_packing_leaves_the_old_folder(finished, folder, monkeypatch, foreign, message):
    if foreign:
        (folder / 'thesis.tex').touch()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(packing, 'save_folder', mock.Mock(side_effect=OSError('disk full')))
    with pytest.raises((ValueError, OSError), match=message):
        run(pack, finished, '--tag', 'noise', '--to', folder.parent)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize('value', [1e5, float('nan')])
def test_weights_that_float16_cannot_hold(finished, tmp_path, value):
    output = shutil.copytree(finished, tmp_path / 'run')
    checkpoint = checkpoint_of(output)
    checkpoint['state_dict_ema']['head.fc.bias'][0] = value
    for path in output.glob('*.pth.tar'):
        path.unlink()
    torch.save(checkpoint, output / 'last.pth.tar')
    with pytest.raises(DivergenceError, match=f'head.fc.bias reaches {value:g}'):
        run(pack, output, '--tag', 'large')
    assert not (output / 'aa_simplecnn.large').exists()


# validation and the card

def ranks_of_the_truth(folder, data):
    """The rank of each picture's class, the best being 0, one picture at a time."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    for path in (data / 'validation').rglob('*.png'):
        order = model(transform(Image.open(path))[None])[0].argsort(descending=True).tolist()
        yield order.index(int(path.parent.name.removeprefix('class')))


def test_validation_prints_and_writes_true_figures(folder, data, tmp_path, capsys):
    table = tmp_path / 'results.csv'
    run_validation('--model', f'local-dir:{folder}', '--data-dir', data, '--results-file', table, '--card')
    printed = capsys.readouterr().out
    ranks = list(ranks_of_the_truth(folder, data))
    top1, top5 = (100 * sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5))
    assert 0 < top1 < top5 < 100
    assert f': top-1 {top1:.3f} % top-5 {top5:.3f} % of {len(ranks)} images in ' in printed
    parameters = sum(p.numel() for p in timm.create_model(f'local-dir:{folder}').parameters())
    figures = (round(x, 4) for x in (top1, 100 - top1, top5, 100 - top5))
    assert [line.split(',') for line in table.read_text().splitlines()] == [
        ['model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation'],
        ['aa_simplecnn.noise', *map(str, figures), f'{round(parameters / 1e6, 2)}', '16', '0.9', 'bilinear']]

    card = ModelCard.load(folder / 'README.md')
    assert f'| top-1 | {top1:.3f} % |' in card.text and f'| top-5 | {top5:.3f} % |' in card.text
    assert re.search(r'\| throughput \| \d+ images a second on \d+ CPU cores?', card.text)
    assert f'{len(ranks)} images' in card.text and 'float32 on cpu, input 16 px, crop 0.9' in card.text
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ('top-1 accuracy', round(top1, 3)), ('top-5 accuracy', round(top5, 3))]
    assert card.data.model_name == 'aa_simplecnn.noise'

    # another measurement replaces it
    run_validation('--model', f'local-dir:{folder}', '--data-dir', data, '--split', 'train', '--card')
    card = ModelCard.load(folder / 'README.md')
    assert card.text.count('| top-1 |') == 1 and {r.dataset_split for r in card.data.eval_results} == {'train'}
    assert card.text.count('## Use') == 1


def test_the_card_has_the_command_that_measured(folder, data):
    run_validation('--model', f'local-dir:{folder}', '--data-dir', data, '--card', '--input-size', 3, 16, 24,
                   '--crop-pct', 0.8)
    assert ('`aa-models validate --model local-dir:aa_simplecnn.noise --input-size 3 16 24 --crop-pct 0.8 --data-dir … '
            '--split validation`') in (folder / 'README.md').read_text()


def test_a_card_with_line_ends_of_another_system(folder, data):
    (folder / 'README.md').write_bytes((folder / 'README.md').read_bytes().replace(b'\n', b'\r\n'))
    run_validation('--model', f'local-dir:{folder}', '--data-dir', data, '--card')
    assert '| top-1 |' in (folder / 'README.md').read_text()


def test_a_card_that_cannot_be_written_is_found_before_the_work(folder, data, monkeypatch):
    def refuse(path, what):
        raise InputError(f'{what} = {path} cannot be written')
    monkeypatch.setattr('aa_models.release.card.check_file', refuse)
    monkeypatch.setattr('aa_models.training.validation.validate', lambda *args, **kwargs: pytest.fail('it measured'))
    with pytest.raises(InputError, match='card = .*README.md cannot be written'):
        run_validation('--model', f'local-dir:{folder}', '--data-dir', data, '--card')


def test_the_card_has_the_sizes_of_training(tmp_path, data):
    output = run_training(tmp_path / 'out', data, train_img_size={0: 8, 1: 12})
    assert 'at 8, after 1 epochs at 12 px: 2 epochs' in (output / 'aa_simplecnn.out' / 'README.md').read_text()


def test_no_room_for_figures(folder, data, tmp_path, monkeypatch, capsys):
    """One line, and the card and the folder of the table are as they were."""
    def no_room(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    monkeypatch.setattr(os, 'fsync', no_room)
    for words in (['--card'], ['--results-file', tmp_path / 'results.csv']):
        status, _, err = run_command(capsys, 'validate', '--model', folder, '--data-dir', data, '--workers', 0, *words)
        assert status == 1 and 'cannot be written: No space left on device' in err and len(err.splitlines()) == 1, err
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_card_says_what_it_is(folder):
    card = ModelCard.load(folder / 'README.md')
    assert card.data.to_dict() == dict(
        license='apache-2.0', library_name='timm', pipeline_tag='image-classification', metrics=['accuracy'],
        tags=['image-classification', 'timm', 'attention-augmented-convolution'])
    assert 'Not measured yet' in card.text and 'top-1 |' not in card.text
    assert 'arxiv.org/abs/1904.09925' in card.text and '2 heads, relative positions' in card.text
    assert '16 × 16 px' in card.text and '2 epochs, batches of 8 images' in card.text and 'moving average' in card.text
    assert 'class0, class1, class2, class3, class4, class5, class6' in card.text
    assert not re.search(r'[{}]', card.text.replace('{recipe', ''))


def test_snippet_of_the_card_runs(folder, data, monkeypatch, capsys):
    snippet = re.search('```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)[1]
    shutil.copy(next((data / 'train').rglob('*.png')), folder.parent / 'picture.jpg')
    monkeypatch.chdir(folder.parent)
    exec(snippet, {})
    assert 'import aa_models' in snippet and 'indices=tensor(' in capsys.readouterr().out


def test_checkpoint_is_validated_with_its_own_recipe(finished, data, capsys):
    for options in ((), ('--use-ema',)):
        run_validation('--checkpoint', finished / 'last.pth.tar', *options, '--data-dir', data)
    plain, averaged = capsys.readouterr().out.splitlines()
    assert f'top-1 {float(log_of(finished)[-1]["eval_top1"]):.3f} %' in averaged
    assert plain.startswith('aa_simplecnn: top-1 ')


def test_network_of_one_size(tmp_path, data):
    model = timm.create_model('test_vit3', num_classes=7, img_size=32)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    run_validation('--model', f'local-dir:{tmp_path}', '--data-dir', data, '--img-size', 32)
    with pytest.raises(UserError, match='48'):
        run_validation('--model', f'local-dir:{tmp_path}', '--data-dir', data, '--img-size', 48)


@pytest.mark.parametrize('words, message', [
    ('--model local-dir:{folder} --use-ema', '--use-ema needs a --checkpoint'),
    ('', '--model is missing'),
    ('--model aa_simplecnn --card', '--card needs --model local-dir:'),
    ('--model local-dir:{folder} --card --model-kwargs dk=4', '--card is for the network as its folder has it'),
    ('--model local-dir:{folder} --batch-size 0', "batch_size = '0' must be greater than or equal to 1"),
    ('--model local-dir:{folder} --img-size 9 --input-size 3 9 9', 'img_size = 9 and .*: give one of them'),
    ('--model local-dir:{folder} --num-classes 2', 'num_classes = 2, but the weights of .* are for 7'),
    ('--model local-dir:{folder} --results-file /nowhere/results.csv', 'a folder that does not exist'),
    ('--checkpoint {folder}/README.md', 'is no training checkpoint'),
    ('--model output/typo', "model = 'output/typo': "),
    ('--model local-dir:{folder} --card', 'no place for the accuracy'),
    ('--model local-dir:{folder} --device gpu', "--device 'gpu' is not on this machine; possible are cpu"),
])
def test_impossible_validations_are_refused(folder, data, words, message):
    (folder / 'README.md').write_text('# mine\n')
    with pytest.raises(UserError, match=message):
        run_validation(*words.format(folder=folder).split(), '--data-dir', data)
