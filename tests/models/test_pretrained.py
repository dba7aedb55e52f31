"""Weights: each place they can lie in, each way to ask for them."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from aa_models.models import pretrained, weight_files
from aa_models.models.weight_files import local_folders, locate
from aa_models.zoo import expected_sha256, own_checkpoints, own_models, weights_cfg
from fake_weights import INPUT_SIZE, NAME, NAME_TAG, logits, put
from hub_server import HubServer
from repository import ROOT

# --- places


@pytest.mark.parametrize('place', ['variable', 'current', 'checkout', 'package', 'hub'])
def test_weights_are_found_in_every_place(place, places, checkpoint, expected):
    put(checkpoint, places[place])
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)


@pytest.mark.parametrize('arguments', [
    lambda: dict(model_name=NAME_TAG), lambda: dict(model_name=NAME, pretrained_cfg='test'),
    lambda: dict(model_name=NAME, pretrained_cfg=timm.get_pretrained_cfg(NAME).to_dict()),
], ids=['name', 'pretrained_cfg', 'dict'])
def test_ways_to_name_the_tag(arguments, found, expected):
    assert torch.equal(logits(timm.create_model(**arguments(), pretrained=True)), expected)


def test_places_are_searched_in_order(places, checkpoint):
    files = {place: put(checkpoint, folder) for place, folder in places.items()}
    cfg = timm.get_pretrained_cfg(NAME)
    for place in ['variable', 'current', 'checkout', 'package']:
        assert locate(cfg) == files[place]
        files[place].unlink()
    assert 'cache' in locate(cfg).parts


def test_local_weights_need_no_network(places, checkpoint, monkeypatch):
    put(checkpoint, places['package'])
    monkeypatch.setattr(weight_files, 'fetch', lambda *_, **__: pytest.fail('the Hub was asked'))
    timm.create_model(NAME, pretrained=True)


def test_hub_is_kept_in_the_cache(places, checkpoint, expected, tmp_path, request):
    put(checkpoint, places['hub'])
    timm.create_model(NAME, pretrained=True, cache_dir=tmp_path / 'mine')
    assert list((tmp_path / 'mine').rglob('model.safetensors')) and not (tmp_path / 'cache').exists()
    request.getfixturevalue('offline')
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True, cache_dir=tmp_path / 'mine')), expected)


# --- ways to load the same weights


def test_users_sources_stay_timms(places, checkpoint, expected, monkeypatch):
    monkeypatch.setattr(pretrained, 'locate', lambda *_: pytest.fail('our own search was started'))
    folder = put(checkpoint, places['hub']).parent
    file, cfg = folder / 'model.safetensors', timm.get_pretrained_cfg(NAME).to_dict()
    for source in [
        dict(model_name=f'local-dir:{folder}'), dict(model_name=f'hf-hub:aa-models/{NAME_TAG}'),
        dict(model_name=NAME, pretrained_cfg_overlay=dict(file=str(file))),
        dict(model_name=NAME, pretrained_cfg_overlay=dict(state_dict=load_file(file))),
        dict(model_name=NAME, pretrained_cfg=dict(cfg, file=str(file))),
        dict(model_name=NAME, pretrained_cfg_overlay=dict(hf_hub_id=f'aa-models/{NAME_TAG}@main')),
    ]:
        assert torch.equal(logits(timm.create_model(**source, pretrained=True)), expected), source
    assert torch.equal(logits(timm.create_model(NAME, checkpoint_path=file)), expected)


def test_saved_again_and_loaded_again(found, expected, tmp_path):
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
    native, resized = (dict(m.named_parameters())['stages.1.1.conv.attn.rel_w'] for m in (model, larger))
    assert (native.shape[0], resized.shape[0]) == (2 * 8 - 1, 2 * 20 - 1)
    torch.testing.assert_close(resized[19], native[7])  # offset 0
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


def test_a_variable_that_names_the_home_of_nobody(monkeypatch):
    monkeypatch.setenv('AA_MODELS_WEIGHTS', '~no_such_user/weights')
    assert local_folders()['$AA_MODELS_WEIGHTS'] == Path('~no_such_user/weights')
