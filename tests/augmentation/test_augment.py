"""`augment` changes the convolutions it was told to, and nothing else."""
import logging

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

import aa_models
from found import augmented

SETTINGS = dict(dk=16, dv=8, num_heads=4)


def resnet(**kwargs):
    return timm.create_model('resnet10t', num_classes=5, **kwargs)


@pytest.mark.parametrize('where,expected', [
    ('layer4.*.conv?', ['layer4.0.conv1', 'layer4.0.conv2']),
    (['layer2.0.conv2', 'layer3.*.conv1'], ['layer2.0.conv2', 'layer3.0.conv1']),
    (lambda name, conv: conv.stride == (2, 2) and 'layer' in name, [f'layer{i}.0.conv1' for i in (2, 3, 4)]),
    ({'layer3.*': {}, 'layer4.*.conv1': dict(attn_pool=2)}, ['layer3.0.conv1', 'layer3.0.conv2', 'layer4.0.conv1']),
])
def test_where(where, expected):
    model = resnet()
    assert aa_models.augment(model, where=where, img_size=64, **SETTINGS) is model
    assert list(augmented(model)) == expected
    assert model(torch.randn(2, 3, 48, 80)).shape == (2, 5)


def test_settings_of_a_mapping_override_and_the_first_pattern_counts():
    model = resnet()
    where = {'layer4.0.conv1': dict(attn_pool=2, num_heads=2), 'layer4.*': dict(attention='linear', pos_embed='sincos'),
             'layer3.*': dict(dk=32, dv=16)}
    aa_models.augment(model, where=where, img_size=128, **SETTINGS)
    found = {n: (type(m.attn).__name__, m.attn.pos_embed, m.attn.attn_pool, m.num_heads, m.dk, m.dv)
             for n, m in augmented(model).items()}
    assert found == {
        **{f'layer3.0.conv{i}': ('SoftmaxAttention', 'rel', 1, 4, 32, 16) for i in (1, 2)},
        'layer4.0.conv1': ('SoftmaxAttention', 'rel', 2, 2, 16, 8),
        'layer4.0.conv2': ('LinearAttention', 'sincos', 1, 4, 16, 8)}
    assert model.layer4[0].conv1.attn.rel_h.shape[0] == 2 * 2 - 1  # 4 × 4 at 128 px, pooled to 2 × 2


def test_map_sizes_are_those_of_the_input():
    for img_size, expected in ((dict(img_size=(96, 160)), [11, 19]), ({}, [21, 21])):  # resnet10t's own are 176 px
        attn = aa_models.augment(resnet(), where='layer3.0.conv2', **img_size, **SETTINGS).layer3[0].conv2.attn
        assert [table.shape[0] for table in (attn.rel_h, attn.rel_w)] == expected


def test_device_dtype_and_mode_are_kept():
    model = resnet(dtype=torch.float64).eval()
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    aa_models.augment(model, where='layer4.*', **SETTINGS)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert not any(m.training for m in model.modules())
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[n], b) for n, b in statistics.items())  # the traced pass left no trace
    assert all(p.is_meta for p in aa_models.augment(resnet(device='meta'), where='layer4.*', **SETTINGS).parameters())


def test_it_says_what_it_did(caplog):
    with caplog.at_level(logging.INFO, 'aa_models.augmentation'):
        aa_models.augment(resnet(), where='layer4.0.conv1', img_size=64, **SETTINGS)
        aa_models.augment(resnet(), where='layer4.0.conv2', img_size=64, warm_start=False, **SETTINGS)
    assert caplog.messages == [
        'layer4.0.conv1: 8 of 512 channels give way to attention, those whose loss changes the output of '
        'layer4.0.conv2 least',
        'augmented layer4.0.conv1: 8 of 512 channels, map (2, 2)',
        'augmented layer4.0.conv2: 8 of 512 channels, map (2, 2), drawn anew']


@pytest.mark.parametrize('kwargs,error,words', [
    (dict(where='layer9.*'), ValueError, r"where=\['layer9.\*'\] chooses none of the \d+ conv.* layer1.0.conv1"),
    (dict(where={'layer4.*': {}, 'nothing': {}}), ValueError, r"where=\['nothing'\] chooses none"),
    (dict(where=lambda name, conv: False), ValueError, 'chooses none'),
    (dict(where=3), TypeError, 'where must be a pattern, .* got 3'),
    (dict(where=['layer4.*', 5]), TypeError, "where must be a pattern, .* got .'layer4.*', 5"),
    (dict(where={'layer4.*': 5}), TypeError, "where.'layer4.*'. must be a mapping of arguments .* got 5"),
    (dict(where={'layer4.*': dict(dkk=5)}), TypeError, "layer4.0.conv1 cannot be augmented: .*'dkk'.* are dk, dv, num"),
    (dict(where='layer4.*', dkk=5), TypeError, "unexpected argument 'dkk'; those of the attention are dk, dv, num"),
    (dict(where='layer4.*', attn_pool=0), ValueError, 'attn_pool must be .* got 0'),
    (dict(where='layer4.*', dv=1000), ValueError, 'layer4.0.conv1 cannot be augmented: dv=1000'),
    (dict(where='layer4.*', dk='x'), TypeError, 'layer4.0.conv1 cannot be augmented: dk must be'),
    (dict(where='layer4.*', img_size=0), ValueError, 'img_size must be .* got 0'),
    (dict(where='layer4.*', img_size=10 ** 9), ValueError, 'img_size = .* is larger than any memory'),
    (dict(where={'layer4.*': 5}), TypeError, r"where\['layer4.\*'\] must be a mapping of arguments .* got 5"),
    (dict(model=lambda: nn.Conv2d(3, 16, 3)), ValueError, 'model must be a network with a convolution in it'),
    (dict(model=lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, padding_mode='reflect')), where='*', img_size=64),
     ValueError, "0 cannot be augmented: its padding_mode is 'reflect'"),
    (dict(model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), where='*', img_size=64),
     ValueError, 'chooses none of the 0 convolutions of Sequential: it has none'),
    (dict(model=lambda: timm.create_model('mnasnet_100'), where='blocks.6.*conv_dw', img_size=64),
     ValueError, 'cannot be augmented: groups=.*a depthwise one'),
    (dict(model=lambda: timm.create_model('convnext_atto'), where='stages.3.*conv_dw', img_size=64),
     ValueError, 'groups=.*a depthwise one cannot be split'),
])
def test_errors_leave_the_model_as_it_was(kwargs, error, words):
    model = kwargs.get('model', resnet)()
    before = dict(model.named_modules())
    with pytest.raises(error, match=words):
        aa_models.augment(**{**SETTINGS, **kwargs, 'model': model})
    assert dict(model.named_modules()) == before


class Shared(nn.Module):
    """A convolution under two names, and a weight that two convolutions share."""

    def __init__(self):
        super().__init__()
        self.stem, conv, other = nn.Conv2d(3, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        other.weight = conv.weight
        self.body = nn.Sequential(conv, conv, other, nn.Conv2d(16, 16, 3, padding=1))

    def forward(self, x):
        return self.body(self.stem(x))


def test_everything_twice():
    """Augmented layers are left as they are, and the convolutions that they are made of."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    aa_models.augment(model, where='1', img_size=8, **SETTINGS)
    first, layer = dict(model.named_modules()), model[1]
    aa_models.augment(model, where='*', img_size=8, **SETTINGS)
    assert model[1] is layer and list(augmented(model)) == ['0', '1']
    assert {name: module for name, module in model.named_modules() if name.startswith('1')} == {
        name: module for name, module in first.items() if name.startswith('1')}
    with pytest.raises(ValueError, match='chooses none of the 0 convolutions'):
        aa_models.augment(model, where='*', img_size=8, **SETTINGS)


def test_shared_tensors_are_left_where_they_are():
    model = Shared()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.body[0].named_parameters()}
    aa_models.augment(model, where='body.[013]', img_size=8, **SETTINGS)
    assert list(augmented(model)) == ['body.3'] and model.body[0] is model.body[1]
    assert model.body[2].weight is model.body[0].weight
    for name, tensor in model.body[0].named_parameters():
        assert id(tensor) == before[name][0] and torch.equal(tensor, before[name][1])


def test_a_block_in_two_places_is_left():
    block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), block, block, nn.Sequential(nn.Conv2d(16, 16, 3)))
    aa_models.augment(model, img_size=8, **SETTINGS)
    assert list(augmented(model)) == ['3.0']
    with pytest.raises(ValueError, match='chooses none of the 1 convolutions'):
        aa_models.augment(model, where='1.0', img_size=8, **SETTINGS)


class Unusual(nn.Module):
    """What the pass that finds the sizes of maps meets in networks of others."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(3, 1, 1)  # no buffer
        self.stem = nn.utils.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.norm = nn.BatchNorm2d(16, momentum=None)
        self.conv = nn.Conv2d(16, 16, 3)

    def forward(self, x):
        return self.conv(self.norm(self.stem(x - self.mean)))

    def get_extra_state(self):
        return {'version': 1}

    def set_extra_state(self, state):
        assert state == {'version': 1}


@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_the_search_for_sizes_leaves_no_trace():
    model = Unusual()
    mean, weight = model.mean, model.stem.weight
    aa_models.augment(model, where='conv', img_size=8, **SETTINGS)
    assert model.mean is mean and model.stem.weight is weight and model.norm.training
    assert list(augmented(model)) == ['conv'] and model(torch.randn(2, 3, 8, 8)).shape == (2, 16, 6, 6)


def test_numbers_of_numpy(tmp_path):
    model = timm.create_model('resnet10t', num_classes=5)
    arguments = dict(dk=np.int64(16), dv=np.float32(0.25), num_heads=np.int32(4))
    aa_models.augment(model, where='layer4.0.conv1', img_size=64, attn_drop=np.float64(0), **arguments)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again.eval()(x), model.eval()(x))


class Stem(nn.Module):
    """Its convolution reads four times the channels of the picture; a head that is not run was made before it."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(16, 5, 3))
        self.body = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 16, 3))
        self.in_chans = 3

    def forward(self, x):
        return self.body(x)


def test_pictures_of_other_channels_than_the_first_convolution_reads(caplog):
    aa_models.augment(model := Stem(), img_size=16, **SETTINGS)
    assert list(augmented(model)) == ['body.1', 'body.2'] and 'aux.0: not augmented' in caplog.text
    with pytest.raises(ValueError, match='chooses aux.0, which a forward pass does not run'):
        aa_models.augment(Stem(), where='aux.0', img_size=16, **SETTINGS)


@pytest.mark.parametrize('compile', [lambda m: torch.compile(m), lambda m: m.compile() or m,
                                     lambda m: m.layer4.compile() or m], ids=['torch.compile', 'in place', 'a part'])
def test_compiled_networks_are_refused(compile):
    with pytest.raises(ValueError, match=r'the model is compiled: augment it before torch\.compile'):
        aa_models.augment(compile(resnet()), where='*layer4.*', **SETTINGS)


@pytest.mark.parametrize('warm_start, drawn', [
    (True, set()), (False, {'layer4.0.conv1.conv.weight', 'layer4.0.conv2.conv.weight'})])
def test_frozen_filters_stay_frozen(warm_start, drawn):
    """But not those that are drawn anew, which would be left as they were drawn."""
    model = resnet().requires_grad_(False)
    aa_models.augment(model, where='layer4.*', warm_start=warm_start, **SETTINGS)
    attention = {name for name, _ in model.named_parameters() if '.attn.' in name}
    assert attention and {name for name, p in model.named_parameters() if p.requires_grad} == attention | drawn
    assert all(p.requires_grad for p in aa_models.augment(resnet(), where='layer4.*', **SETTINGS).parameters())


def test_hooks_are_not_lost():
    """The convolution that they look at would be gone; networks of features are made of them."""
    model = timm.create_model('resnet10t')
    model.layer4[0].conv2.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match='layer4.0.conv2 cannot be augmented: it has hooks'):
        aa_models.augment(model, where='layer4.0.conv*', dk=16, dv=8, num_heads=2)
    aa_models.augment(model, where='layer4.0.conv1', dk=16, dv=8, num_heads=2)


@pytest.mark.parametrize('compute', [
    nn.utils.spectral_norm, lambda conv: prune.l1_unstructured(conv, 'weight', 0.3)])
def test_computed_weights_are_refused(compute):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    compute(model[1])
    with pytest.raises(ValueError, match='1 cannot be augmented: its weights are computed from others'):
        aa_models.augment(model, where='1', img_size=16, **SETTINGS)


@pytest.mark.parametrize('compute', [
    nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm,
    lambda conv: prune.l1_unstructured(conv, 'weight', 0.3)])
def test_channels_are_not_followed_through_computed_weights(compute):
    """Every channel has filters of its own behind it, and filters of another one would make another network."""
    model = timm.create_model('efficientnet_lite0', num_classes=11).double().eval()
    for name in ('blocks.5.1.conv_dw', 'blocks.5.2.conv_dw'):
        compute(model.get_submodule(name))
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        model(x)
        expected = model(x)
        aa_models.augment(model, where='blocks.5.[12].conv_pw', img_size=64, dk=8, dv=8, num_heads=1)
        found = model(x)
    assert (found - expected).abs().max() < 0.1 * expected.std()
