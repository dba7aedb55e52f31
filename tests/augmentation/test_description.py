"""timm saves and loads augmented networks like any other, made by the name `augmented` or by `augment` in place."""
import json

import pytest
import timm
import torch
from timm.models import save_for_hf

import aa_models
from aa_models.release.runtimes import export_model
from command import answered, refused
from daily import daily
from found import augmented
from hub_server import HubServer, send_client_to
from repository import ROOT

ARGS = dict(dk=16, dv=8, num_heads=2)
BASES = {  # twelve bases of eight families, and layers in each
    'resnet10t': 'layer4.*.conv2', 'resnet18': 'layer3.*.conv1', 'resnext50_32x4d': 'layer4.0.conv1',
    'seresnet18': 'layer4.*.conv1', 'efficientnet_lite0': 'blocks.[56].*.conv_pw',
    'tf_efficientnet_lite0': 'blocks.5.*.conv_pwl', 'mobilenetv2_050': 'blocks.5.*.conv_pw',
    'mobilenetv3_small_050': 'blocks.4.*.conv_pw', 'regnetx_002': 's4.b1.conv1.conv',
    'densenet121': '*.denselayer16.conv2',
    'convnext_atto': 'stages.3.downsample.1', 'vgg11': 'features.18',
}


def assert_same(model, other, size=64):
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), other.eval()(x))


def saved(model, folder):
    """The folder and its config, as timm writes them."""
    save_for_hf(model, str(folder), safe_serialization=True)
    return f'local-dir:{folder}', json.loads((folder / 'config.json').read_text())


@pytest.mark.parametrize('base', daily(BASES, 'resnet10t', 'efficientnet_lite0', 'densenet121'))
def test_round_trip(base, tmp_path, monkeypatch):
    """Folder, Hub, torch.hub, saved again: bit for bit. An exported program computes attention in another way."""
    by_name = timm.create_model('augmented', base=base, where=BASES[base], num_classes=5, img_size=64, **ARGS)
    in_place = aa_models.augment(timm.create_model(base, num_classes=5), where=BASES[base], img_size=64, **ARGS)
    in_place.load_state_dict(by_name.state_dict())
    for how, model in dict(by_name=by_name, in_place=in_place).items():
        folder = tmp_path / 'me' / how
        name, config = saved(model, folder)
        assert config['architecture'] == 'augmented' and config['model_args']['base'].partition('.')[0] == base
        loaded = timm.create_model(name, pretrained=True)
        assert list(augmented(loaded)) == list(augmented(model))
        assert_same(model, loaded)
        again, _ = saved(loaded, tmp_path / 'again')  # what was loaded is described in full too
        assert_same(model, timm.create_model(again, pretrained=True))
        with HubServer(tmp_path) as hub:
            send_client_to(hub, tmp_path / f'cache {how}', monkeypatch)
            assert_same(model, timm.create_model(f'hf-hub:me/{how}', pretrained=True))
        arguments = {**config['model_args'], 'num_classes': 5, 'pretrained': True}
        weights = dict(file=str(folder / 'model.safetensors'), num_classes=5)
        assert_same(model, torch.hub.load(
            str(ROOT), 'augmented', source='local', pretrained_cfg_overlay=weights, **arguments))
    file, x = tmp_path / 'program.pt2', torch.randn(1, 3, 64, 64)
    export_model(model.eval(), tuple(x.shape), file, 'torch-export')
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(file).module()(x), model(x), rtol=1e-3, atol=1e-4)


def test_what_timm_adapts(tmp_path):
    """Classes, channels, features and size, as of any folder."""
    model = timm.create_model('augmented', base='resnet10t', where='layer4.*.conv2', num_classes=5, img_size=64, **ARGS)
    name, _ = saved(model, tmp_path)
    x = torch.randn(2, 3, 96, 64)
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=(1, 4)).eval()
    assert features.feature_info.channels() == [64, 512] and list(augmented(features)) == ['model.layer4.0.conv2']
    with torch.no_grad():
        assert torch.equal(features(x)[1], model.eval().forward_features(x))
        assert timm.create_model(name, pretrained=True, num_classes=3, in_chans=1)(x[:, :1]).shape == (2, 3)
    gray = timm.create_model(name, pretrained=True, in_chans=1).state_dict()
    torch.testing.assert_close(gray['layer4.0.conv2.conv.weight'], model.state_dict()['layer4.0.conv2.conv.weight'])
    file = dict(file=str(tmp_path / 'model.safetensors'), num_classes=5)  # of that file
    arguments = dict(base='resnet10t', where='layer4.*.conv2', num_classes=5, img_size=64, **ARGS)
    assert_same(model, timm.create_model('augmented', pretrained=True, pretrained_cfg_overlay=file, **arguments))


@pytest.mark.parametrize('base, where', [
    ('simplecnn', 'stages.*.conv'), ('dla34', 'level5.*.conv1'), ('resnet10t', 'layer4.*.conv2')])
def test_features_are_those_of_the_base(base, where):
    plain = timm.create_model(base, features_only=True).feature_info
    features = timm.create_model('augmented', base=base, where=where, features_only=True, **ARGS).feature_info
    assert features.channels() == plain.channels() and features.reduction() == plain.reduction()


def test_augmented_twice_and_by_a_function(tmp_path):
    model = timm.create_model('resnet10t', num_classes=5)
    aa_models.augment(model, where=lambda name, _: name.endswith('4.0.conv1'), img_size=64, **ARGS)
    aa_models.augment(model, where={'layer3.*.conv1': dict(pos_embed=None)}, img_size=96, attn_drop=0.1, **ARGS)
    name, config = saved(model, tmp_path)
    where = config['model_args']['where']
    assert {n: (own['feat_size'], own['pos_embed'], own['attn_drop']) for n, own in where.items()} == {
        'layer4.0.conv1': ([2, 2], 'rel', 0.0), 'layer3.0.conv1': ([6, 6], 'none', 0.1)}
    assert config['model_args']['dk'] == 16 and 'dk' not in where['layer3.0.conv1']
    assert_same(model, timm.create_model(name, pretrained=True))


def test_two_kinds_of_attention_in_one_network(tmp_path):
    """`attention` says which positions there may be, so neither stands alone for all layers."""
    model = timm.create_model('simplecnn', num_classes=5)
    aa_models.augment(model, img_size=32, **ARGS, where={
        'stages.0.1.conv': dict(attention='linear', pos_embed='sincos'),
        'stages.1.1.conv': dict(attention='linear', pos_embed='coord')})
    aa_models.augment(model, where='stages.1.0.conv', img_size=32, **ARGS)
    name, _ = saved(model, tmp_path)
    assert_same(model, timm.create_model(name, pretrained=True), 32)


def test_base_whose_size_came_from_a_cfg(tmp_path):
    """Its tables are as large as they were, not as large as those of the registered network."""
    model = timm.create_model('aa_simplecnn', num_classes=5, pretrained_cfg_overlay=dict(input_size=(3, 24, 24)))
    aa_models.augment(model, where='stages.0.0.conv', **ARGS)
    name, config = saved(model, tmp_path)
    assert config['model_args']['base_args']['img_size'] == [24, 24]
    loaded = timm.create_model(name, pretrained=True)
    assert loaded.stages[1][1].conv.attn.rel_h.shape == model.stages[1][1].conv.attn.rel_h.shape == (11, 8)
    assert_same(model, loaded, 32)


def test_base_that_is_made_for_one_size():
    """What `set_input_size` changed is part of what is saved, and of what `augment` looks at."""
    where = 'stages.1.blocks.0.conv1_1x1'
    model = timm.create_model('coatnet_pico_rw_224', device='meta').eval()
    aa_models.augment(model, where=where, **ARGS)
    model.set_input_size((192, 192))
    arguments = timm.models.get_model_args(model)
    again = timm.create_model('augmented', device='meta', **arguments).eval()
    assert again(torch.empty(1, 3, 192, 192, device='meta')).shape == (1, 1000)
    resized = timm.create_model('coatnet_pico_rw_224', device='meta')
    resized.set_input_size((192, 192))
    layer, = augmented(aa_models.augment(resized, where=where, **ARGS)).values()
    made, = augmented(timm.create_model(
        'augmented', base='coatnet_pico_rw_224', where=where, img_size=192, device='meta', **ARGS)).values()
    assert layer.attn.rel_h.shape == made.attn.rel_h.shape


def test_base_of_this_package(tmp_path):
    """A network of this package, augmented further; its own augmented layers belong to the base."""
    model = timm.create_model('aa_simplecnn', channels=(8, 8, 16, 16, 16), num_classes=5, img_size=16, **ARGS)
    aa_models.augment(model, where='stages.1.0.conv', **ARGS)
    name, config = saved(model, tmp_path)
    assert config['model_args']['base'] == 'aa_simplecnn.muon_cifar100' and list(config['model_args']['where']) == [
        'stages.1.0.conv']
    assert_same(model, timm.create_model(name, pretrained=True), 16)


def test_base_from_a_folder_with_a_tag_of_its_own(tmp_path):
    """The tag of a user's own training, which timm has never heard of, is not asked for again."""
    plain = timm.create_model('resnet10t', num_classes=5, pretrained_cfg_overlay=dict(tag='mine'))
    name, config = saved(plain, tmp_path / 'plain')
    assert config['pretrained_cfg']['tag'] == 'mine'
    model = aa_models.augment(timm.create_model(name, pretrained=True), where='layer4.*.conv2', img_size=64, **ARGS)
    name, config = saved(model, tmp_path / 'augmented')
    assert config['model_args']['base'] == 'resnet10t'
    assert_same(model, timm.create_model(name, pretrained=True))


def test_starts_from_the_weights_of_its_base(tmp_path):
    """Converted as `augment` does it; attention itself is drawn anew each time."""
    base, _ = saved(timm.create_model('resnet10t', num_classes=5), tmp_path)
    started = timm.create_model('augmented', base=base, pretrained=True, where='layer4.0.conv1', img_size=64, **ARGS)
    converted = aa_models.augment(
        timm.create_model(base, pretrained=True), where='layer4.0.conv1', img_size=64, **ARGS).state_dict()
    for name, tensor in started.state_dict().items():
        assert '.attn.' in name or torch.equal(tensor, converted[name])


@pytest.mark.parametrize('kwargs, error, message', [
    (dict(base='resnet1818'), ValueError, "model = 'resnet1818' is unknown: did you mean"),
    (dict(base='augmented'), ValueError, "base must name a model other than 'augmented'"),
    (dict(base=3), ValueError, 'base must name a model'),
    (dict(base='resnet18', pretrained_cfg='a1_in1k'), ValueError,
     "'augmented' has no tag 'a1_in1k': name it in base, as in base='resnet18.a1_in1k'"),
    (dict(base='resnet10t', where='layer9*'), ValueError, r"where=\['layer9\*'\] chooses none of the"),
    (dict(base='resnet10t', where={'layer4.0.conv1': dict(heads=3)}), TypeError, "unexpected argument 'heads'"),
    (dict(base='resnet10t', heads=3), TypeError, "unexpected keyword argument 'heads'"),
    (dict(base='aa_resnet18', where='layer4.0.conv1*'), ValueError, 'chooses none of the'),
])
def test_impossible_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        timm.create_model('augmented', **kwargs)


def test_commands_take_its_folder(tmp_path, capsys):
    model = timm.create_model('augmented', base='resnet10t', where='layer4.*.conv2', num_classes=5, img_size=64, **ARGS)
    name, _ = saved(model, tmp_path)
    assert 'layer4.0.conv2' in answered(capsys, 'info', name)


@pytest.mark.parametrize('change, message', [
    (dict(registers=4), "has no argument 'registers'"),  # of a newer version
    (dict(where={'layer9.0.conv1': {}}), 'chooses none of the'),
    (dict(where={'layer4.0.conv2': dict(heads=3)}), "unexpected argument 'heads'"),
    (dict(base='resnet1010'), "'resnet1010' is unknown"),
])
def test_a_config_that_does_not_fit(tmp_path, capsys, change, message):
    model = timm.create_model('augmented', base='resnet10t', where='layer4.*.conv2', num_classes=5, img_size=64, **ARGS)
    name, config = saved(model, tmp_path)
    config['model_args'].update(change)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert message in refused(capsys, 'info', name)
