"""Models as a user names them: what is wrong with a name, a folder or an argument is said; faults of ours come out."""
import json
import math
import resource

import numpy as np
import pytest
import timm
import torch

from aa_models.analysis.prediction import make_transform
from aa_models.errors import HubError, HubWeightsError, InputError, NoSuchFileError, UserError, WeightsError
from aa_models.models.create import build_model, check_name, is_own
from fake_weights import NAME, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    """A checkpoint to spoil."""
    save_checkpoint(tmp_path / NAME)
    return tmp_path / NAME


def test_names(folder):
    assert check_name('aa_resnet18.cifar100') == 'aa_resnet18' and check_name(f'local-dir:{folder}') == NAME
    assert is_own(f'local-dir:{folder}') and is_own('wrn16_8') and not is_own('resnet18.a1_in1k')


@pytest.mark.parametrize('name, words', [
    ('aa_resnet19', ['did you mean', 'aa_resnet18']), ('', ["''"]), ('a/b', ['hf-hub:a/b', 'local-dir:a/b']),
    ('aa_resnet18.best', ['aa_resnet18.cifar100']), ('disk:x', ['disk', 'local-dir']), ('hf-hub:a b', ['a b']),
    ('hf-hub:a@b@c', ['@']), ('local-dir:', ['local-dir:']), ('hf-hub:', ['hf-hub:']),
])
def test_wrong_names(name, words):
    for function in (check_name, build_model):
        with pytest.raises(InputError) as error:
            function(name)
        assert all(word in str(error.value) for word in words)


def test_hub_that_is_not_reached(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError('no network')

    monkeypatch.setattr('aa_models.models.hub.get_hf_file_metadata', fail)
    with pytest.raises(HubError, match='hf-hub:me/mine.*no network'):
        build_model('hf-hub:me/mine')
    # a plain network's weights, which only the Hub has
    monkeypatch.setattr(timm, 'create_model', fail)
    for reached in (False, True):
        if reached:
            monkeypatch.setattr('aa_models.models.hub.get_hf_file_metadata', lambda url: None)
        with pytest.raises(HubWeightsError, match='from_a1_in1k.*no network'):
            build_model('aa_resnet50.from_a1_in1k', pretrained=True)


@pytest.mark.parametrize('content, word', [('{', 'JSON'), ('[]', 'config'), ('{}', 'architecture'), (b'\xff', 'codec')])
def test_folders_without_a_config(content, word, folder):
    (folder / 'config.json').write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=word):
        check_name(f'local-dir:{folder}')
    (folder / 'config.json').unlink()
    with pytest.raises(NoSuchFileError, match='config.json'):
        check_name(f'local-dir:{folder}')


@pytest.mark.parametrize('values, word', [
    (dict(architecture='aa_nothing'), 'aa_nothing'), (dict(architecture=3), 'architecture = 3 must be'),
    (dict(pretrained_cfg=3), 'pretrained_cfg = 3 must be a valid dictionary$'),
    (dict(pretrained_cfg=dict(input_size=5)), r'pretrained_cfg.input_size = 5 must be a valid list'),
    (dict(pretrained_cfg=dict(mean=[0, 'x', 0])), r"pretrained_cfg.mean\[1\] = 'x' must be a valid number"),
    (dict(model_args=[1]), r'model_args = \[1\] must be a valid dictionary'), (dict(label_names=5), 'label_names'),
    (dict(num_classes=3), 'num_classes = 3 and model_args.num_classes = 7 must be the same number'),
    (dict(num_classes=-1), 'num_classes = -1 must be greater'), (dict(num_classes='7'), "num_classes = '7' must be"),
    (dict(num_classes=3, model_args=dict(num_classes=3, img_size=[24, 32])), r'head.fc.weight: the file has \(7,'),
    (dict(model_args=dict(depth=3)), 'depth'), (dict(model_args=dict(dk=7)), 'dk=7'),
    (dict(architecture='resnet18', model_args={}), 'ResNet'),
])
def test_folders_with_a_wrong_config(values, word, folder):
    config = folder / 'config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))
    with pytest.raises(UserError, match=word):
        build_model(f'local-dir:{folder}', pretrained=True)


@pytest.mark.parametrize('name', [NAME, 'test_resnet'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_that_are_no_numbers(name, value, tmp_path):
    """Of this package's networks and of timm's; the tensor is named."""
    model = timm.create_model(name, num_classes=2)
    tensor, weight = list(model.named_parameters())[-1]
    weight.data[0] = value
    timm.models.save_for_hf(model, tmp_path / 'spoiled', safe_serialization=True)
    with pytest.raises(WeightsError, match=f'{tensor} is infinite or not a number'):
        build_model(f'local-dir:{tmp_path / "spoiled"}', pretrained=True)


def test_head_is_never_drawn_where_weights_were_to_be_loaded(folder):
    """By timm's own function: its config of 3 classes over weights of 7 would give a random classifier."""
    config = folder / 'config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'num_classes': 3}))
    with pytest.raises(WeightsError, match='head.fc.weight: the file has 7 classes, the config says 3'):
        timm.create_model(f'local-dir:{folder}', pretrained=True)


def test_folder_without_weights(folder):
    (folder / 'model.safetensors').unlink()
    with pytest.raises(WeightsError, match=str(folder)):
        build_model(f'local-dir:{folder}', pretrained=True)


@pytest.mark.parametrize('values', [dict(mean='grey'), dict(interpolation='none'), dict(input_size=[3, 'a', 'b'])])
def test_wrong_preprocessing(values):
    with pytest.raises(InputError, match=next(iter(values))):
        make_transform(timm.create_model(NAME, device='meta'), **values)


@pytest.mark.parametrize('options, words', [
    (dict(depth=3), 'depth'), (dict(global_pool='none'), "global_pool='none'.*Assertion"),
    (dict(model_name='x'), "model_name='x'"), (dict(dk=7, num_heads=2), 'dk=7'),
])
@pytest.mark.parametrize('name', ['aa_resnet18', NAME])
def test_wrong_arguments(name, options, words):
    with pytest.raises(UserError, match=words):
        build_model(name, device='meta', **options)


@pytest.mark.parametrize('name, options, words', [
    ('aa_resnet50', dict(num_classes=10 ** 7), 'weights of aa_resnet50 would take at least .* GB, more than the 16 GB'),
    (NAME, dict(channels=5 * [10 ** 6]), 'the weights of .* would take at least'),
    (NAME, dict(dk=10 ** 8 // 8), 'weights of .* would take'), ('laa_resnet18', dict(in_chans=10 ** 7), 'would take'),
    ('aa_efficientnet_lite0', dict(pretrained_cfg_overlay=dict(num_classes=10 ** 7)), 'would take at least'),
    ('augmented', dict(base='resnet18', where='layer4.*.conv2', num_classes=10 ** 7), 'its weights would take'),
    ('augmented', dict(base='resnet18', where='layer4.*.conv2', dk=10 ** 9), 'dk = 1.* has a number above 16000000'),
    ('aa_resnet18', dict(layers=(10 ** 5, 1, 1, 1)), 'more than 4000 tensors, 250 for each GB allowed'),
    ('aa_wrn28_10', dict(depth=6 * 10 ** 5 + 4), 'more than 4000 tensors'),
    (NAME, dict(num_classes=10 ** 18), 'num_classes = 1'), ('aa_resnet18', dict(img_size=10 ** 12), 'img_size = '),
])
@pytest.mark.parametrize('create', [timm.create_model, build_model])
def test_arguments_that_nothing_can_hold(create, name, options, words):
    """Refused by timm's own function, too, before anything is taken."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=words):
        create(name, **options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5e5  # kB


@pytest.mark.parametrize('name, options, words', [
    ('resnet50', dict(num_classes=10 ** 7), 'its weights would take at least .* GB, more than the 16 GB allowed'),
    ('resnet18', dict(in_chans=10 ** 7), 'its weights would take'),
    ('convnext_atto', dict(depths=(10 ** 5, 1, 1, 1)), 'more than 4000 tensors, 250 for each GB allowed'),
    ('convnext_atto', dict(depths=(10 ** 9, 1, 1, 1)), r'depths = \(1000000000, 1, 1, 1\) has a number above 16000000'),
])
def test_arguments_of_timms_networks_that_nothing_can_hold(name, options, words):
    with pytest.raises(InputError, match=words):
        build_model(name, **options)


@pytest.mark.parametrize('limit, answer', [
    ('0.001', 'for each GB allowed'), ('nan', 'must be a number'), ('-1', 'above 0'), ('much', "'much'")])
def test_limit_of_memory_in_timms_own_function(limit, answer, monkeypatch):
    monkeypatch.setenv('AA_MODELS_MAX_GB', limit)
    for arguments in ({}, dict(features_only=True), dict(device='meta')):
        with pytest.raises(InputError, match=answer):
            timm.create_model('aa_simplecnn', **arguments)
    monkeypatch.setenv('AA_MODELS_MAX_GB', 'inf')
    assert timm.create_model('aa_simplecnn', num_classes=5).num_classes == 5


def test_config_that_nothing_can_hold(folder):
    config = json.loads((folder / 'config.json').read_text())
    for number, words in ((10 ** 6, 'would take at least'), (10 ** 9, 'has a number above 16000000')):
        config['model_args']['channels'] = 5 * [number]
        (folder / 'config.json').write_text(json.dumps(config))
        with pytest.raises(InputError, match=words):
            build_model(f'local-dir:{folder}')


def test_the_bound_on_weights_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    expected = timm.create_model(NAME, num_classes=5).state_dict()
    torch.manual_seed(0)
    torch.testing.assert_close(build_model(NAME, num_classes=5).state_dict(), expected, rtol=0, atol=0)
    monkeypatch.setenv('AA_MODELS_MAX_GB', '0.001')
    with pytest.raises(InputError, match='AA_MODELS_MAX_GB'):
        build_model(NAME, num_classes=5)


def test_size_of_another_librarys_integers():
    for size in (np.int64(64), np.array([64, 64])):
        assert build_model('aa_resnet18', img_size=size, device='meta').layer4[0].conv1.attn.rel_h.shape[0] == 3


@pytest.mark.parametrize('options', [{}, dict(pretrained=True), dict(device='meta', pretrained=True, num_classes=None)])
def test_faults_of_ours_come_out(options, monkeypatch):
    def fail(*_, **__):
        raise KeyError('ours')

    monkeypatch.setattr('aa_models.models.create.check_weights_reached', lambda *_: None)
    monkeypatch.setattr(timm, 'create_model', fail)
    with pytest.raises(KeyError, match='ours'):
        build_model(NAME, **options)
    with pytest.raises(UserError, match='ours'):  # what a network of timm says nobody here foresees
        build_model('resnet18', **options)
    with pytest.raises(InputError, match='num_classes=5.*ours'):
        build_model(NAME, **{**options, 'num_classes': 5})
