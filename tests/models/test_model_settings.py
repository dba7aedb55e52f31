"""What the models' arguments can ask for, and the networks of the papers: positions, attention alone, augmented stages.

Every figure is compared with a formula, every layer's output with the float64 definition.
"""
import copy
import dataclasses
import inspect
import itertools

import pytest
import timm
import torch
from torch import nn

import aa_models
import reference
from aa_models.layers import AttentionArgs, AugmentedConv1d, AugmentedConv2d
from found import augmented
from our_models import NAMES, arguments, count, create, evaluating, images, uneven

# for each family a small form, and a layer of stride 1 in it
FAMILIES = {
    'aa_resnet18': (dict(img_size=64), 'layer3.1.conv1'),
    'aa_wrn16_8': (dict(width=1, img_size=16), 'stages.2.1.conv1'),
    'aa_efficientnet_lite0': (
        dict(channel_multiplier=0.25, depth_multiplier=0.5, num_features=64, img_size=128), 'blocks.5.1.conv_pw'),
    'aa_simplecnn': (dict(channels=(8, 8, 16, 16, 16), img_size=16), 'stages.1.1.conv'),
}
FAMILIES.update({'l' + name: settings for name, settings in FAMILIES.items()})
POSITIONS = {'a': ('rel', 'sincos', 'coord', 'none'), 'l': ('sincos', 'coord', 'none')}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def evaluating_full(name, **kwargs):
    return uneven(timm.create_model(name, **kwargs).eval())


def on_meta(name, **kwargs):
    return timm.create_model(name, device='meta', **kwargs)


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
        area = conv.kernel_size[0] ** 2
        total += fan_in * (2 * dk + dv) + dv * dv + tables - area * fan_in // conv.groups * dv
    return total


def check_resnet(depth, sides, depths, num_heads=8, **kwargs):
    """It attends in every block of the stages named, on maps of such sides, and has the parameters of `parameters`."""
    model = on_meta(f'aa_resnet{depth}', num_classes=1000, num_heads=num_heads, **kwargs)
    conv = 'conv2' if depth >= 50 else 'conv1'
    attended = {
        f'layer{stage}.{i}.{conv}': side for stage, side in sides.items() for i in range(BLOCKS[depth][stage - 1])}
    assert list(augmented(model)) == list(attended)
    assert count(model) == parameters(on_meta(f'resnet{depth}'), attended, depths, num_heads)


# the papers' networks

@pytest.mark.parametrize('name,kwargs,expected', [
    ('aa_resnet34', {}, 20_745_072), ('aa_resnet34', dict(attn_stages=(False,) * 4), 21_797_672),
    ('aa_resnet50', {}, 25_809_392), ('aa_resnet50', dict(attn_stages=(False,) * 4), 25_557_032),
    ('aa_resnet50', dict(dk=0.25, dv=0.25), 24_303_728),
    ('wrn28_10', {}, 36_536_884), ('aa_wrn28_10', {}, 36_312_660),
    ('wrn28_2', dict(num_classes=10), 1_467_610),
])
def test_parameters_of_the_papers_tables(name, kwargs, expected):
    size = dict(num_classes=1000, img_size=224) if 'resnet' in name else {}
    assert count(on_meta(name, **kwargs, **size)) == expected


def test_parameters_of_the_narrow_networks():
    """Two heads, a fifth of the channels for keys but at least 20 a head, a tenth for values."""
    sides = {f'stages.{stage}.{i}.conv1': side for stage, side in enumerate((32, 16, 8)) for i in range(4)}
    for name, tables in (('aa_wrn28_2', True), ('laa_wrn28_2', False)):
        attended = {layer: side if tables else None for layer, side in sides.items()}
        assert list(augmented(on_meta(name))) == list(attended)
        assert count(on_meta(name)) == parameters(
            on_meta('wrn28_2'), attended, lambda out: (40, out // 20 * 2), num_heads=2)


@pytest.mark.parametrize('depth, share', [
    *itertools.product((18, 50), (None, 0.25, 0.5, 0.75, 1.0)), (34, None), (101, None), (152, None)])
def test_parameters_by_the_rule(depth, share):
    """All shares with basic blocks and with bottlenecks; deeper networks are more of the same blocks."""
    kappa, upsilon = (share, share) if share else (0.2, 0.1) if depth >= 50 else (0.25, 0.25)
    check_resnet(
        depth, {2: 14, 3: 14, 4: 7},  # at 224 px: 28 pooled to 14, 14, 7
        lambda out: (max(20 * 8, int(kappa * out / 8) * 8), int(upsilon * out / 8) * 8),
        img_size=224, **(dict(dk=share, dv=share) if share else {}))


@pytest.mark.parametrize('depth, attn_stages', [
    *itertools.product((18, 50), ((True, False, False, True), (True, True, True, True))),
    (34, (False, False, True, True)), (101, (False, False, False, True)), (152, (True, True, False, False))])
def test_augmented_stages(depth, attn_stages):
    """The flags choose every block of a stage, in basic blocks and in bottlenecks, at any size."""
    sides = dict(itertools.compress({1: 24, 2: 6, 3: 6, 4: 3}.items(), attn_stages))  # the second's 12 × 12 is pooled
    check_resnet(depth, sides, lambda out: (64, 16), 4, img_size=96, attn_stages=attn_stages, dk=64, dv=16)


@pytest.mark.parametrize('name, plain, blocks, side, expected', [
    ('aa_efficientnet_lite0', 'tf_efficientnet_lite0', 4, 14, 4_982_848),
    ('aa_efficientnet_lite1', 'tf_efficientnet_lite1', 5, 15, 5_819_176),
    ('aa_efficientnet_lite2', 'tf_efficientnet_lite2', 5, 17, 6_523_288),
    ('laa_efficientnet_lite0', 'tf_efficientnet_lite0', 4, None, 4_979_688)])
def test_what_the_lites_augment(name, plain, blocks, side, expected):
    """All expansions of the last two stages; the first of them works on the map before the stage's stride."""
    model, base = on_meta(name), on_meta(plain)
    attended = {f'blocks.5.{i}.conv_pw': side and (side if i == 0 else -(-side // 2)) for i in range(blocks)}
    attended['blocks.6.0.conv_pw'] = side and -(-side // 2)
    assert list(augmented(model)) == list(attended)
    assert count(model) == parameters(base, attended, lambda out: (160, 96)) == expected
    for key in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'pool_size', 'first_conv', 'classifier'):
        assert model.pretrained_cfg[key] == base.pretrained_cfg[key], key


def test_what_mnasnet_augments():
    """The stages from the 28 px map on but for the expansion at 56 px; the first of them attends on a pooled map."""
    sides = {2: (None, 14, 14), 3: (28, 14, 14), 4: (14, 14), 5: (14, 7, 7, 7), 6: (7,)}
    attended = {f'blocks.{s}.{i}.conv_pw': side for s, own in sides.items() for i, side in enumerate(own) if side}
    model = on_meta('aa_mnasnet_100')
    assert list(augmented(model)) == list(attended)
    assert count(model) == parameters(
        on_meta('mnasnet_100'), attended, lambda out: (max(20, out // 40) * 4, out // 80 * 4), 4) == 4_672_352


@pytest.mark.parametrize('name, plain', [
    ('aa_efficientnet_lite0', 'tf_efficientnet_lite0'), ('aa_efficientnet_lite2', 'tf_efficientnet_lite2'),
    ('aa_mnasnet_100', 'mnasnet_100')])
@torch.no_grad()
def test_without_attention_a_mobile_network_is_timms(name, plain):
    theirs = evaluating_full(plain)
    stages = 5 if 'mnasnet' in name else 4
    ours = timm.create_model(name, attn_stages=(False,) * stages).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 70, 45)
    assert torch.equal(ours(x), theirs(x))


@torch.no_grad()
def test_plain_weights_start_a_lite():
    """As `augment` would convert them: hardly anything of the function is lost where a 1×1 convolution is imitated."""
    plain = evaluating_full('tf_efficientnet_lite0', num_classes=5)
    model = timm.create_model('aa_efficientnet_lite0', pretrained=True, pretrained_cfg_overlay=dict(
        state_dict=plain.state_dict(), num_classes=5)).eval()
    x = torch.randn(2, 3, 96, 64)
    converted = aa_models.augment(copy.deepcopy(plain), where=list(augmented(model)), dk=160, dv=96, img_size=224)
    torch.testing.assert_close(model(x), converted.eval()(x), rtol=1e-4, atol=1e-5)
    kept = {n.replace('.conv.weight', '.weight') for n in model.state_dict() if '.attn.' not in n}
    assert kept == set(plain.state_dict())


def test_what_wide_resnets_augment():
    layers = augmented(on_meta('aa_wrn28_10'))
    assert {(m.dk, m.dv, (m.attn.rel_w.shape[0] + 1) // 2) for m in layers.values()} == {
        (160, 16, 32), (160, 32, 16), (160, 64, 8)}
    assert len(layers) == 12 and all(n.endswith('conv1') for n in layers)


def test_zero_init_last():
    for zero in (True, False):
        model = create('aa_resnet18', zero_init_last=zero)
        assert bool(model.layer2[0].bn2.weight.any()) != zero


# the attention's arguments, one object from `timm.create_model` to the layer

# a value for each that is nobody's default
VALUES = dict(
    dk=64, dv=24, num_heads=4, attention='linear', pos_embed='coord', attn_pool=3, attn_drop=0.125, attn_init='local')


def test_everything_that_takes_them_shows_them_with_the_same_defaults():
    fields = {field.name: field.default for field in dataclasses.fields(AttentionArgs)}
    assert fields.keys() == VALUES.keys()
    for function in (AugmentedConv1d, AugmentedConv2d, aa_models.augment):
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in fields} == fields


def test_every_argument_of_the_attention_reaches_the_layers_of_a_converted_network():
    layers = augmented(aa_models.augment(on_meta('resnet18'), where='layer4.*', **VALUES)).values()
    assert layers and all(arguments(layer) == VALUES for layer in layers)


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
    model = evaluating(name, dk=1.0, dv=1.0).train()
    layers = augmented(model).values()
    assert layers and all(m.conv is None and m.dv == m.out_channels for m in layers)
    model(images(name)).square().sum().backward()
    for n, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), n


@pytest.mark.parametrize('name, plain, sides', [
    ('aa_wrn28_10', 'wrn28_10', (32, 16, 8)), ('laa_wrn28_10', 'wrn28_10', None), ('laa_resnet50', 'resnet50', None),
    ('aa_simplecnn', 'simplecnn', (16, 8))])
def test_parameters_of_attention_alone(name, plain, sides):
    """Those of the ResNets with relative positions are among those by the rule."""
    model = on_meta(name, dk=1.0, dv=1.0)
    attended = {n: sides and sides[int(n.split('.')[1])] for n in augmented(model)}
    assert count(model) == parameters(on_meta(plain), attended, lambda out: (max(out, 8 * 20), out))


# ResNeXt and wide ResNets: the ResNets' arguments, or any network through `augment`

@pytest.mark.parametrize('name, kwargs, plain', [
    ('aa_resnet50', dict(cardinality=32, base_width=4), 'resnext50_32x4d'),
    ('aa_resnet101', dict(cardinality=32, base_width=8), 'resnext101_32x8d'),
    ('aa_resnet50', dict(base_width=128), 'wide_resnet50_2')])
def test_resnext_and_wide_resnets(name, kwargs, plain):
    """dv = 1/4 leaves a number of filters that the groups divide; the same network comes from a mapping by stage."""
    model = on_meta(name, num_classes=1000, img_size=224, dk=0.25, dv=0.25, **kwargs)
    base, sides = on_meta(plain), {'layer2': 14, 'layer3': 14, 'layer4': 7}
    attended = {n: sides[n[:6]] for n, _ in base.named_modules() if n[:6] in sides and n.endswith('.conv2')}
    assert list(augmented(model)) == list(attended) and len(attended) in (13, 30)
    assert {m.groups for m in augmented(model).values()} == {kwargs.get('cardinality', 1)}
    assert count(model) == parameters(base, attended, lambda out: (max(out // 4, 8 * 20), out // 4))
    by_stage = {'layer2.*.conv2': dict(attn_pool=2), 'layer3.*.conv2': {}, 'layer4.*.conv2': {}}
    other = aa_models.augment(base, where=by_stage, img_size=224, dk=0.25, dv=0.25)
    assert {n: p.shape for n, p in other.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_groups_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match='layer2.0.conv2 cannot be augmented: groups=32 must divide .* 256 - 24 = 232'):
        on_meta('aa_resnet50', cardinality=32, base_width=4)


@torch.no_grad()
def test_resnet18_for_small_pictures():
    """The form that CIFAR-10 is trained with: a 3×3 stem, no max-pool, three stages that attend."""
    model = uneven(timm.create_model('resnet18', num_classes=10))
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert count(model) == 11_173_962  # the ResNet-18 known from CIFAR-10
    ours = timm.create_model('resnet18_cifar')
    ours.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 35, 32)
    assert torch.equal(ours.eval()(x), model.eval()(x))
    features = timm.create_model('aa_resnet18_cifar', features_only=True)
    assert [(x.shape[2], r) for x, r in zip(features(x[:, :, :32]), features.feature_info.reduction())] == [
        (32, 1), (32, 1), (16, 2), (8, 4), (4, 8)]
    sides = {'2': 16, '3': 8, '4': 4}
    attended = {f'layer{stage}.{i}.conv1': side for stage, side in sides.items() for i in range(2)}
    expected = parameters(model, attended, lambda out: (max(out // 4, 8 * 20), out // 4))
    aa_models.augment(model, where=['layer[234].*.conv1'], img_size=32, dk=0.25, dv=0.25)
    assert list(augmented(model)) == list(attended) and count(model) == expected
    assert count(on_meta('aa_resnet18_cifar')) == expected and list(augmented(features)) == list(attended)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize('name', NAMES)
def test_features_that_nothing_pools(name):
    """Its classifier cannot read them, and nobody asks it to."""
    pooling, model, x = evaluating(name), create(name, global_pool='').eval(), images(name)
    model.load_state_dict(pooling.state_dict())
    assert torch.equal(model.forward_features(x), pooling.forward_features(x))
    cut = create(name, global_pool='', num_classes=0).eval()
    cut.load_state_dict({key: tensor for key, tensor in model.state_dict().items() if key in cut.state_dict()})
    assert torch.equal(cut(x), model.forward_features(x))


def test_the_contracts_names_are_registered():
    assert set(NAMES) >= {
        'aa_resnet18', 'aa_resnet34', 'aa_resnet50', 'aa_resnet101', 'aa_resnet152', 'laa_resnet18', 'laa_resnet50',
        'aa_efficientnet_lite0', 'aa_efficientnet_lite1', 'aa_efficientnet_lite2', 'laa_efficientnet_lite0',
        'aa_mnasnet_100',
        'resnet18_cifar', 'aa_resnet18_cifar',
        *(prefix + net for net in ('wrn28_10', 'wrn28_2', 'wrn16_8', 'simplecnn') for prefix in ('', 'aa_', 'laa_'))}


@pytest.mark.parametrize('stride', [8, 16])
def test_output_stride_of_networks_for_small_pictures_is_refused(stride):
    """timm counts the strides of a stem that these have not, and gives maps four times as large as asked for."""
    with pytest.raises(ValueError, match=f'output_stride = {stride} counts the two strides of the stem'):
        on_meta('aa_resnet18_cifar', output_stride=stride)
    assert on_meta('aa_resnet18_cifar', output_stride=32) is not None
