"""What the models' arguments can ask for: positions, attention alone, augmented stages, ResNeXt and wide ResNets.

Every figure is compared with a formula, every layer's output with the float64 definition.
"""
import dataclasses
import inspect

import pytest
import timm
import torch
from torch import nn

import aa_models
import reference
from aa_models.layers import AttentionArgs, AugmentedConv1d, AugmentedConv2d
from found import augmented
from our_models import count

# for each family a small form, and a layer of stride 1 in it
FAMILIES = {
    'aa_resnet18': (dict(img_size=64), 'layer3.1.conv1'),
    'aa_wrn16_8': (dict(width=1, img_size=16), 'stages.2.1.conv1'),
    'aa_simplecnn': (dict(channels=(8, 8, 16, 16, 16), img_size=16), 'stages.1.1.conv'),
}
FAMILIES.update({'l' + name: settings for name, settings in FAMILIES.items()})
POSITIONS = {'a': ('rel', 'sincos', 'coord', 'none'), 'l': ('sincos', 'coord', 'none')}


def parameters(plain, sides, depths, num_heads=8):
    """What a network has after some of its convolutions were augmented, written out.

    Args:
        plain: The network before.
        sides: For the name of each such convolution the side of the square map attended, None without tables.
        depths: (dk, dv) of a layer with so many output channels.
        num_heads: Number of heads.
    """
    total = count(plain)
    for name, side in sides.items():
        conv = plain.get_submodule(name)
        fan_in, (dk, dv) = conv.in_channels, depths(conv.out_channels)
        tables = 2 * (2 * side - 1) * dk // num_heads if side else 0
        total += fan_in * (2 * dk + dv) + dv * dv + tables - 9 * fan_in // conv.groups * dv
    return total


def plain_of(name):
    return timm.create_model(name, device='meta')


# the attention's arguments, one object from `timm.create_model` to the layer

# a value for each that is nobody's default, and where it is found in a layer
VALUES = {
    'dk': (64, lambda layer: layer.attn.dk),
    'dv': (24, lambda layer: layer.attn.dv),
    'num_heads': (4, lambda layer: layer.attn.num_heads),
    'attention': ('linear', lambda layer: type(layer.attn).__name__.removesuffix('Attention').lower()),
    'pos_embed': ('coord', lambda layer: layer.attn.pos_embed),
    'attn_pool': (3, lambda layer: layer.attn.attn_pool),
    'attn_drop': (0.125, lambda layer: layer.attn.attn_drop.p),
    'attn_init': ('local', lambda layer: layer.attn.attn_init),
}


def test_everything_that_takes_them_shows_them_with_the_same_defaults():
    fields = {field.name: field.default for field in dataclasses.fields(AttentionArgs)}
    assert fields.keys() == VALUES.keys()
    for function in (AugmentedConv1d, AugmentedConv2d, aa_models.augment):
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in fields} == fields


def test_every_argument_of_the_attention_reaches_the_layers_of_a_converted_network():
    values = {argument: value for argument, (value, _) in VALUES.items()}
    layers = augmented(aa_models.augment(plain_of('resnet18'), where='layer4.*', **values))
    assert layers
    for layer in layers.values():
        assert {argument: found(layer) for argument, (_, found) in VALUES.items()} == values


@pytest.mark.parametrize('name', FAMILIES)
def test_saved_models_keep_their_arguments(name, tmp_path):
    settings = dict(dk=16, dv=8, num_heads=4, pos_embed='none', attn_drop=0.25, **FAMILIES[name][0])
    model = timm.create_model(name, num_classes=3, **settings).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    other = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert {m.attn.attn_drop.p for m in augmented(other).values()} == {0.25}
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('kwargs, error, words', [
    (dict(attn_dorp=0.1), TypeError, "unexpected .*'attn_dorp'"),
    (dict(attn_drop=1.5), ValueError, 'attn_drop must be a probability.* got 1.5'),
    (dict(attn_drop='0.1'), ValueError, "attn_drop must be a probability.* got '0.1'"),
    (dict(attention='full'), ValueError, "attention must be one of .*'softmax', 'linear'.* got 'full'"),
    (dict(attention='linear', pos_embed='rel'), ValueError,
     "with attention='linear' must be one of .*sincos.*coord.* got 'rel'"),
])
def test_wrong_arguments_of_a_model(name, kwargs, error, words):
    """Also where no layer is augmented."""
    for stages in (None, (False,) * len(timm.create_model(name, device='meta').feature_info[1:])):
        with pytest.raises(error, match=words):
            timm.create_model(name, device='meta', attn_stages=stages, **kwargs)


# positions


@pytest.mark.parametrize('name, pos_embed', [(n, p) for n in FAMILIES for p in POSITIONS[n[0]]])
@torch.no_grad()
def test_positions_in_a_model_are_those_of_the_definition(name, pos_embed):
    kwargs, layer_name = FAMILIES[name]
    model = timm.create_model(name, dk=16, dv=8, num_heads=4, pos_embed=pos_embed, dtype=torch.float64, **kwargs).eval()
    layer, seen = model.get_submodule(layer_name), []
    layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    model(torch.randn(1, 3, kwargs['img_size'], kwargs['img_size'], dtype=torch.float64))
    (x, y), = seen
    assert x.shape[2:] == (4, 4)
    torch.testing.assert_close(y, reference.augmented_conv(layer, x), rtol=1e-9, atol=1e-9)

    order = torch.randperm(16)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    kept = torch.allclose(layer.attn(shuffled), layer.attn(x).flatten(2)[:, :, order].view(1, 8, 4, 4))
    assert kept == (pos_embed == 'none')  # without positions attention cannot tell where a pixel is
    assert layer.attn.qkv.in_channels == layer.in_channels + 3 * (pos_embed == 'coord')  # row, column, radius


# attention alone, dk = dv = 1.0

@pytest.mark.parametrize('name', FAMILIES)
def test_attention_alone_learns(name):
    """No augmented convolution has a filter left, and every parameter has a gradient."""
    kwargs, _ = FAMILIES[name]
    model = timm.create_model(name, dk=1.0, dv=1.0, num_classes=3, **kwargs)
    layers = augmented(model).values()
    assert layers and all(m.conv is None and m.dv == m.out_channels for m in layers)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's blocks start as the identity, with no gradient in their first layers
    side = kwargs['img_size']
    model(torch.randn(2, 3, side, side)).square().sum().backward()
    for n, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), n


@pytest.mark.parametrize('name, plain, sides', [
    ('aa_wrn28_10', 'wrn28_10', (32, 16, 8)), ('laa_wrn28_10', 'wrn28_10', None), ('laa_resnet50', 'resnet50', None),
    ('aa_simplecnn', 'simplecnn', (16, 8))])
def test_parameters_of_attention_alone(name, plain, sides):
    """The tests of the models' own table have those of the ResNets with relative positions."""
    model = timm.create_model(name, device='meta', dk=1.0, dv=1.0)
    attended = {n: sides and sides[int(n.split('.')[1])] for n in augmented(model)}
    assert count(model) == parameters(plain_of(plain), attended, lambda out: (max(out, 8 * 20), out))


# stages that are augmented

@pytest.mark.parametrize('depth, blocks, conv, attn_stages', [
    *((18, (2, 2, 2, 2), 'conv1', (True, inner, inner, True)) for inner in (False, True)),
    (34, (3, 4, 6, 3), 'conv1', (False, False, True, True)),
    *((50, (3, 4, 6, 3), 'conv2', (True, inner, inner, True)) for inner in (False, True)),
    (101, (3, 4, 23, 3), 'conv2', (False, False, False, True)),
    (152, (3, 8, 36, 3), 'conv2', (True, True, False, False)),
])
def test_augmented_stages(depth, blocks, conv, attn_stages):
    """The flags choose every block of a stage, in basic blocks and in bottlenecks, at any size."""
    model = timm.create_model(
        f'aa_resnet{depth}', device='meta', num_classes=1000, img_size=96, attn_stages=attn_stages, num_heads=4, dk=64,
        dv=16)
    attended = {
        f'layer{i + 1}.{j}.{conv}': side for i, side in enumerate((24, 6, 6, 3)) if attn_stages[i]
        for j in range(blocks[i])}  # the second stage attends on its 12 × 12 map pooled
    assert list(augmented(model)) == list(attended)
    assert count(model) == parameters(plain_of(f'resnet{depth}'), attended, lambda out: (64, 16), num_heads=4)


# ResNeXt and wide ResNets: the ResNets' arguments, or any network through `augment`

@pytest.mark.parametrize('name, kwargs, plain', [
    ('aa_resnet50', dict(cardinality=32, base_width=4), 'resnext50_32x4d'),
    ('aa_resnet101', dict(cardinality=32, base_width=8), 'resnext101_32x8d'),
    ('aa_resnet50', dict(base_width=128), 'wide_resnet50_2')])
def test_resnext_and_wide_resnets(name, kwargs, plain):
    """dv = 1/4 leaves a number of filters that the groups divide; the same network comes from a mapping by stage."""
    model = timm.create_model(name, device='meta', num_classes=1000, img_size=224, dk=0.25, dv=0.25, **kwargs)
    base, sides = plain_of(plain), {'layer2': 14, 'layer3': 14, 'layer4': 7}
    attended = {n: sides[n[:6]] for n, _ in base.named_modules() if n[:6] in sides and n.endswith('.conv2')}
    assert list(augmented(model)) == list(attended) and len(attended) in (13, 30)
    assert {m.groups for m in augmented(model).values()} == {kwargs.get('cardinality', 1)}
    assert count(model) == parameters(base, attended, lambda out: (max(out // 4, 8 * 20), out // 4))
    by_stage = {'layer2.*.conv2': dict(attn_pool=2), 'layer3.*.conv2': {}, 'layer4.*.conv2': {}}
    other = aa_models.augment(base, where=by_stage, img_size=224, dk=0.25, dv=0.25)
    assert {n: p.shape for n, p in other.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_groups_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match='layer2.0.conv2 cannot be augmented: groups=32 must divide .* 256 - 24 = 232'):
        timm.create_model('aa_resnet50', device='meta', cardinality=32, base_width=4)


def test_resnet18_for_small_pictures():
    """The form that CIFAR-10 is trained with: a 3×3 stem, no max-pool, three stages that attend."""
    model = timm.create_model('resnet18', num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert count(model) == 11_173_962  # the ResNet-18 known from CIFAR-10
    sides = {'2': 16, '3': 8, '4': 4}
    attended = {f'layer{stage}.{i}.conv1': side for stage, side in sides.items() for i in range(2)}
    expected = parameters(model, attended, lambda out: (max(out // 4, 8 * 20), out // 4))
    aa_models.augment(model, where=['layer[234].*.conv1'], img_size=32, dk=0.25, dv=0.25)
    assert list(augmented(model)) == list(attended) and count(model) == expected
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
