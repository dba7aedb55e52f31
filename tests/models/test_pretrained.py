"""Weights: each place they can lie in, each way to ask for them, each way a file can be wrong."""
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from aa_models.errors import WeightsError
from aa_models.models import pretrained as _pretrained
from aa_models.models.pretrained import locate
from aa_models.zoo import expected_sha256, own_checkpoints, own_models, weights_cfg
from fake_weights import INPUT_SIZE, NAME, NAME_TAG, NUM_CLASSES, logits, registered, save_checkpoint
from hub_server import HubServer, send_client_to
from repository import ROOT

PLACES = ['variable', 'checkout', 'package', 'hub']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Folder of the test tag's checkpoint, the tag registered."""
    folder = tmp_path_factory.mktemp('checkpoint') / NAME_TAG
    with registered(save_checkpoint(folder)):
        yield folder


@pytest.fixture(scope='module')
def expected(checkpoint):
    """Logits of the checkpoint, loaded without timm and without our code."""
    model = timm.create_model(NAME, num_classes=NUM_CLASSES, img_size=INPUT_SIZE[1:])
    model.load_state_dict(load_file(checkpoint / 'model.safetensors'))
    return logits(model)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The four places, empty: local folders and the root of a Hub that the client talks to."""
    folders = {
        'variable': tmp_path / 'variable',
        'checkout': tmp_path / 'checkout' / 'weights',
        'package': tmp_path / 'checkout' / 'aa_models' / 'weights',
        'hub': tmp_path / 'hub' / 'aa-models',
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    (tmp_path / 'checkout' / 'pyproject.toml').touch()
    monkeypatch.setattr(_pretrained, '_PACKAGE', folders['package'].parent)
    monkeypatch.setenv('AA_MODELS_WEIGHTS', str(folders['variable']))
    with HubServer(tmp_path / 'hub') as hub:
        send_client_to(hub, tmp_path / 'cache', monkeypatch)
        yield folders


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


@pytest.fixture
def no_search(monkeypatch):
    """Fails the test if this package's own search is started."""
    monkeypatch.setattr(_pretrained, 'locate', lambda *_: pytest.fail('the user named a source'))


def put(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder / NAME_TAG)
    return folder / NAME_TAG / 'model.safetensors'


# --- places


@pytest.mark.parametrize('place', PLACES)
def test_weights_are_found_in_every_place(place, places, checkpoint, expected):
    put(checkpoint, places[place])
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)


@pytest.mark.parametrize('arguments', [
    dict(model_name=NAME_TAG), dict(model_name=NAME, pretrained_cfg='test'), dict(model_name=NAME),
])
def test_ways_to_name_the_tag(arguments, places, checkpoint, expected):
    put(checkpoint, places['checkout'])
    assert torch.equal(logits(timm.create_model(**arguments, pretrained=True)), expected)


def test_places_are_searched_in_order(places, checkpoint):
    files = {place: put(checkpoint, folder) for place, folder in places.items()}
    cfg = timm.get_pretrained_cfg(NAME)
    for place in ['variable', 'checkout', 'package']:
        assert locate(cfg) == files[place]
        files[place].unlink()
    assert 'cache' in locate(cfg).parts


def test_local_weights_need_no_network(places, checkpoint, monkeypatch):
    put(checkpoint, places['package'])
    monkeypatch.setattr(_pretrained, 'hf_hub_download', lambda *_, **__: pytest.fail('the Hub was asked'))
    timm.create_model(NAME, pretrained=True)


def test_hub_is_kept_in_the_cache(places, checkpoint, expected, tmp_path, request):
    put(checkpoint, places['hub'])
    timm.create_model(NAME, pretrained=True, cache_dir=tmp_path / 'mine')
    assert list((tmp_path / 'mine').rglob('model.safetensors')) and not (tmp_path / 'cache').exists()
    request.getfixturevalue('offline')
    model = timm.create_model(NAME, pretrained=True, cache_dir=tmp_path / 'mine')
    assert torch.equal(logits(model), expected)


# --- ways to load the same weights


def test_users_sources_stay_timms(places, checkpoint, expected, no_search):
    folder = put(checkpoint, places['hub']).parent
    file = folder / 'model.safetensors'
    cfg = timm.get_pretrained_cfg(NAME).to_dict()
    for source in [
        dict(model_name=f'local-dir:{folder}'),
        dict(model_name=f'hf-hub:aa-models/{NAME_TAG}'),
        dict(model_name=NAME, pretrained_cfg_overlay=dict(file=str(file))),
        dict(model_name=NAME, pretrained_cfg_overlay=dict(state_dict=load_file(file))),
        dict(model_name=NAME, pretrained_cfg=dict(cfg, file=str(file))),
        dict(model_name=NAME, pretrained_cfg_overlay=dict(hf_hub_id=f'aa-models/{NAME_TAG}@main')),
    ]:
        assert torch.equal(logits(timm.create_model(**source, pretrained=True)), expected), source
    assert torch.equal(logits(timm.create_model(NAME, checkpoint_path=file)), expected)


def test_cfg_passed_as_a_dict_is_still_ours(places, checkpoint, expected):
    put(checkpoint, places['checkout'])
    cfg = timm.get_pretrained_cfg(NAME).to_dict()
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True, pretrained_cfg=cfg)), expected)


def test_saved_again_and_loaded_again(places, checkpoint, expected, tmp_path):
    put(checkpoint, places['checkout'])
    model = timm.create_model(NAME, pretrained=True)
    timm.models.save_for_hf(model, tmp_path / 'again', safe_serialization=True)
    assert 'hf_hub_id' not in (tmp_path / 'again' / 'config.json').read_text()
    assert torch.equal(logits(timm.create_model(f'local-dir:{tmp_path / "again"}', pretrained=True)), expected)


def test_fresh_process_with_the_clients_variables(checkpoint, expected, tmp_path):
    """The one test that sets the Hub up as a user does, through the environment."""
    put(checkpoint, tmp_path / 'aa-models')
    script = (
        'import sys, torch, timm, aa_models, fake_weights as fake\n'
        'with fake.registered(sys.argv[1]):\n'
        '    torch.save(fake.logits(timm.create_model(fake.NAME, pretrained=True)), sys.argv[2])\n'
    )
    sha256 = expected_sha256(timm.get_pretrained_cfg(NAME))
    with HubServer(tmp_path) as hub:
        variables = dict(
            HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET='1', HF_HUB_OFFLINE='0', HF_HOME=str(tmp_path / 'home'),
            PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / 'tests')]))
        subprocess.run(
            [sys.executable, '-c', script, sha256, tmp_path / 'logits.pt'], env={**os.environ, **variables}, check=True)
        assert any(request.startswith('GET') for request in hub.requests)
    assert torch.equal(torch.load(tmp_path / 'logits.pt'), expected)


# --- weights for another task


@pytest.fixture
def found(places, checkpoint):
    put(checkpoint, places['checkout'])


def test_other_classes_and_channels(found):
    whole = timm.create_model(NAME, pretrained=True).state_dict()
    model = timm.create_model(NAME, pretrained=True, num_classes=3, in_chans=1)
    assert logits(timm.create_model(NAME, pretrained=True, num_classes=3)).shape == (2, 3)
    adapted = {'stem.conv.weight', 'head.fc.weight', 'head.fc.bias'}
    for name, tensor in model.state_dict().items():
        assert name in adapted or torch.equal(tensor, whole[name]), name
    summed = whole['stem.conv.weight'].sum(1, keepdim=True)
    assert torch.allclose(model.stem.conv.weight, summed, atol=1e-3)  # timm sums in the file's fp16


def test_features(found):
    model = timm.create_model(NAME, pretrained=True, features_only=True).eval()
    whole = timm.create_model(NAME, pretrained=True).eval()
    x = torch.randn(1, *INPUT_SIZE)
    with torch.inference_mode():
        assert torch.equal(model(x)[-1], whole.forward_features(x))


def test_other_sizes(found, expected):
    model = timm.create_model(NAME, pretrained=True)
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 17, 39))).all()
    larger = timm.create_model(NAME, pretrained=True, img_size=(48, 80))
    assert dict(larger.named_parameters())['stages.1.1.conv.attn.rel_w'].shape[0] == 2 * 20 - 1
    assert torch.isfinite(logits(larger)).all() and not torch.equal(logits(larger), expected)


@pytest.mark.parametrize('pretrained', [False, True])
def test_img_size_is_the_cfgs(pretrained, found, tmp_path):
    def widths(model):
        return [p.shape[0] for n, p in model.named_parameters() if n.endswith('rel_w')]

    as_asked = widths(timm.create_model(NAME, img_size=INPUT_SIZE[1:]))
    assert widths(timm.create_model(NAME, pretrained=pretrained)) == as_asked
    other = timm.create_model(NAME, img_size=40)
    timm.models.save_for_hf(other, tmp_path / 'other', safe_serialization=True)
    config = json.loads((tmp_path / 'other' / 'config.json').read_text())
    del config['model_args']['img_size']  # the size is to stand in the cfg alone
    config['pretrained_cfg']['input_size'] = [3, 40, 40]
    (tmp_path / 'other' / 'config.json').write_text(json.dumps(config))
    again = timm.create_model(f'local-dir:{tmp_path / "other"}', pretrained=pretrained)
    assert widths(again) == widths(other) != as_asked


# --- faults


class Bomb:
    """What a pickle does when somebody loads it."""

    def __reduce__(self):
        return os.mkdir, ('exploded',)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1000])


def make_pickle(file):
    file.write_bytes(pickle.dumps(Bomb()))


def make_torch_pickle(file):
    torch.save({'conv1.weight': torch.zeros(3)}, file)


def make_pointer(file):
    file.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n')


def make_other(file):
    save_file({'other': torch.zeros(3)}, file)


def make_empty(file):
    file.write_bytes(b'')


FAULTS = [
    (truncate, 'truncated'), (make_empty, 'truncated'), (make_pickle, 'a pickle'), (make_torch_pickle, 'a pickle'),
    (make_pointer, 'Git LFS pointer'), (make_other, 'another safetensors file'),
]


@pytest.mark.parametrize('place', ['variable', 'hub'])
@pytest.mark.parametrize('spoil, words', FAULTS)
def test_wrong_file(place, spoil, words, places, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = put(checkpoint, places[place])
    spoil(file)
    with pytest.raises(WeightsError) as error:
        timm.create_model(NAME, pretrained=True)
    message = str(error.value)
    found, wanted = hashlib.sha256(file.read_bytes()).hexdigest(), expected_sha256(timm.get_pretrained_cfg(NAME))
    for word in [words, found, wanted, str(places['package']), 'AA_MODELS_WEIGHTS', f'aa-models/{NAME_TAG}', 'absent']:
        assert word in message
    assert not Path('exploded').exists()


def test_wrong_file_is_passed_over_with_a_warning(places, checkpoint, expected, caplog):
    make_pointer(put(checkpoint, places['variable']))
    put(checkpoint, places['package'])
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)
    assert 'Git LFS pointer' in caplog.text


def test_nothing_found_offline(places, checkpoint, offline, monkeypatch):
    monkeypatch.delenv('AA_MODELS_WEIGHTS')
    with pytest.raises(WeightsError) as error:
        timm.create_model(NAME, pretrained=True)
    lines = str(error.value).splitlines()
    assert [line.split(':')[0].strip() for line in lines[1:-1]] == [
        '$AA_MODELS_WEIGHTS', 'checkout', 'installed package', 'Hub']
    assert 'offline' in lines[4] and 'pretrained=False' in lines[-1]


def test_nothing_on_the_hub(places, checkpoint):
    with pytest.raises(WeightsError, match=r'Hub: aa-models/.*(?s:RepositoryNotFoundError)'):
        timm.create_model(NAME, pretrained=True)


def test_name_without_weights(checkpoint):
    with pytest.raises(WeightsError, match=f'aa_resnet152 has no pretrained weights.*{NAME_TAG}'):
        timm.create_model('aa_resnet152', pretrained=True, device='meta')


@pytest.mark.parametrize('spoil, words', [(f, w) for f, w in FAULTS if f is not make_other])
@pytest.mark.parametrize('source', ['file', 'folder'])
def test_wrong_file_named_by_the_user(spoil, words, source, places, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = put(checkpoint, tmp_path)
    spoil(file)
    overlay = dict(pretrained_cfg_overlay=dict(file=str(file))) if source == 'file' else {}
    with pytest.raises(WeightsError, match=words) as error:
        timm.create_model(NAME if source == 'file' else f'local-dir:{file.parent}', pretrained=True, **overlay)
    assert str(file) in str(error.value) and not Path('exploded').exists()


def test_file_that_does_not_exist(checkpoint):
    with pytest.raises(WeightsError, match='nowhere.safetensors.*does not exist'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file='nowhere.safetensors'))


@pytest.mark.parametrize('num_classes', [NUM_CLASSES, 3])  # with another number of classes timm loads non-strictly
def test_foreign_tensors(num_classes, checkpoint, tmp_path):
    tensors = load_file(checkpoint / 'model.safetensors')
    overlay = dict(file=str(tmp_path / 'foreign.safetensors'))
    for change, words in [
        ({'backbone.stem.weight': torch.zeros(1)}, r'backbone.stem.weight: the file has \(1,\), the model none'),
        ({'stem.bn.weight': torch.zeros(3)}, r'stem.bn.weight: the file has \(3,\), the model \(32,\)'),
        ({'stem.bn.weight': None}, r'stem.bn.weight: the file has none, the model \(32,\)'),
    ]:
        save_file({n: t for n, t in {**tensors, **change}.items() if t is not None}, overlay['file'])
        with pytest.raises(WeightsError, match=words):
            timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes)


def test_another_architecture_than_the_weights(found):
    with pytest.raises(WeightsError, match='do not fit aa_simplecnn as asked for.*attn'):
        timm.create_model(NAME, pretrained=True, attn_stages=(False, True))


# --- the cfg


def test_cfg_carries_the_hash():
    cfg = timm.models.PretrainedCfg(**weights_cfg('aa_resnet18.cifar100', 'ab' * 32))
    assert expected_sha256(cfg) == 'ab' * 32 and cfg.hf_hub_id == 'aa-models/aa_resnet18.cifar100'
    assert expected_sha256(timm.models.PretrainedCfg(notes=('text',))) is None


def test_models_without_weights_name_no_source():
    with_weights = {name.split('.')[0] for name in own_checkpoints()}
    for name in set(own_models()) - with_weights:
        cfg = timm.get_pretrained_cfg(name)
        assert not (cfg.has_weights or cfg.hf_hub_filename or cfg.source), name
