"""How networks start: attention by the layer's own rule in every family, convolutions by the network's."""
import itertools
import math

import pytest
import timm
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import nn

import aa_models
from aa_models.layers import GridAttention
from aa_models.layers.local_start import UNUSED
from aa_models.layers.position import rel_logits_h, rel_logits_w
from found import augmented

# for each family its plain form, and arguments of both
FAMILIES = {
    'aa_resnet18': ('resnet18', {}), 'aa_wrn16_8': ('wrn16_8', dict(depth=10)), 'aa_simplecnn': ('simplecnn', {}),
    'aa_efficientnet_lite0': ('tf_efficientnet_lite0', {}),
}
FAMILIES.update({'l' + name: settings for name, settings in FAMILIES.items()})


def create(name, **kwargs):
    return timm.create_model(name, num_classes=100, img_size=32, **FAMILIES[name][1], **kwargs)


def create_plain(name):
    return timm.create_model(FAMILIES[name][0], num_classes=100, **FAMILIES[name][1])


def filled(name):
    """Built without memory, given it, and started: what FSDP and the like do."""
    model = create(name, device='meta').to_empty(device='cpu')
    model.init_weights()
    return model


def converted(name, **kwargs):
    """The plain network, augmented where the family is, with its settings."""
    layers = augmented(create(name, device='meta'))
    layer = next(iter(layers.values()))
    if name.startswith('l'):
        kwargs.update(attention='linear', pos_embed='sincos')
    return aa_models.augment(create_plain(name), where=list(layers), dk=layer.dk, dv=layer.dv, img_size=32, **kwargs)


STARTS = {
    'made': create, 'global': lambda name: create(name, attn_init='global'), 'filled': filled, 'augmented': converted,
    'augmented anew': lambda name: converted(name, warm_start=False)}


@pytest.fixture(scope='module', params=itertools.product(FAMILIES, STARTS), ids='-'.join)
def case(request):
    """Name of the family, name of the start, model."""
    torch.manual_seed(0)
    name, start = request.param
    return name, start, STARTS[start](name)


def assert_std(tensor, expected, what):
    """Compare with a standard deviation, as closely as so many numbers tell it."""
    assert tensor.std().item() == pytest.approx(expected, rel=0.01 + 4 / math.sqrt(2 * tensor.numel())), what


@torch.no_grad()
def test_attention_starts_by_the_layers_own_rule(case):
    assert augmented(case[2])
    for name, layer in augmented(case[2]).items():
        attn, dim = layer.attn, layer.dk // layer.num_heads
        weights = dict(attn.named_parameters())
        weights.update(zip('qkv', weights.pop('qkv.weight').split([attn.dk, attn.dk, attn.dv])))
        expected = {**dict.fromkeys('qkv', layer.in_channels ** -0.5), 'proj.weight': layer.dv ** -0.5}
        expected.update(dict.fromkeys(('rel_h', 'rel_w'), dim ** -0.5))
        if attn.q_const is not None:  # each head at one pixel: its first four dimensions are for that
            assert not weights.pop('q').any() and not weights['k'].unflatten(0, (-1, dim))[:, :4].any()
            weights['k'] = weights['k'].unflatten(0, (-1, dim))[:, 4:]
            for table in ('rel_h', 'rel_w'):
                weights[table], expected[table] = weights[table][:, 4:], 0.1 * dim ** -0.5
            if case[1] == 'augmented':  # values and projection are those of the filters that gave way
                del weights['v'], weights['proj.weight']
                for weight in ('k', 'rel_h', 'rel_w'):  # and whatever queries are to meet is small
                    expected[weight] /= UNUSED
        for weight, tensor in weights.items():
            assert_std(tensor, expected[weight], f'{name}.attn.{weight}')


@torch.no_grad()
def test_convolutions_start_by_the_networks_rule(case):
    _, start, model = case
    attention = {conv for m in model.modules() if isinstance(m, GridAttention) for conv in m.modules()}
    layers = augmented(model)
    for name, conv in model.named_modules():
        if not isinstance(conv, nn.Conv2d) or conv in attention:
            continue
        layer = layers.get(name.removesuffix('.conv'))
        # an augmented network keeps filters of the plain one, which has more of them
        outputs = layer.out_channels if layer and start == 'augmented' else conv.out_channels
        if 'efficientnet' in case[0]:
            outputs /= conv.groups  # timm's ResNet counts what one group does not see, its EfficientNet does not
        area = math.prod(conv.kernel_size)
        fresh = layer and start == 'augmented anew'  # as torch starts a convolution
        assert_std(conv.weight, (3 * area * conv.in_channels) ** -0.5 if fresh else (2 / (outputs * area)) ** 0.5, name)


@pytest.mark.parametrize('kind, name', [('nl', 'norm.weight'), ('lambda', 'conv_lambda.weight')])
def test_layers_of_timm_start_by_their_own_rule(kind, name):
    """Non-local blocks as the identity, lambdas small: a layer's rule comes after those of the layers in it."""
    kwargs = dict(num_classes=4, layers=(1, 1, 1, 1), block_args=dict(attn_layer=kind))
    plain = timm.create_model('resnet18', **kwargs)
    ours = timm.create_model('aa_resnet18', img_size=64, attn_stages=(False,) * 4, **kwargs)
    scales = [model.get_parameter(f'layer2.0.se.{name}').square().mean().sqrt().item() for model in (plain, ours)]
    assert scales[1] == pytest.approx(scales[0], rel=0.2)


@torch.no_grad()
def test_attention_logits_at_the_start(case):
    """Of inputs with deviation 1: query · key has 1, a relative logit 1 / sqrt(head dim) for each axis."""
    for name, layer in augmented(case[2]).items():
        attn, dim = layer.attn, layer.dk // layer.num_heads
        q, k, _ = attn.heads(torch.randn(8, layer.in_channels, 8, 8))
        if attn.attn_pool > 1 or attn.q_const is not None:  # tests/layers/test_local_start.py has those
            continue  # the mean of several pixels varies less, by how much depends on where the window lies
        if case[0].startswith('l'):  # linear attention has no logits of pairs; its waves add 1/2 to the variance
            assert torch.stack([q, k]).std().item() == pytest.approx(1.5 ** 0.5, rel=0.1), name
            continue
        q = q * dim ** -0.5
        logits = q.flatten(2, 3) @ k.flatten(2, 3).transpose(2, 3)
        assert logits.std().item() == pytest.approx(1, rel=0.1), name
        rel_logits = rel_logits_h(q, attn.rel_h).flatten(), rel_logits_w(q, attn.rel_w).flatten()
        assert torch.cat(rel_logits).std().item() == pytest.approx(dim ** -0.5, rel=0.3), name


@torch.no_grad()
def test_logits_of_the_network_at_the_start(case):
    """Answers no smaller than the plain network's, larger where the classifier reads means over the map.

    Pooled, a convolution's channels hardly tell one noise image from another; attention's means do.
    """
    name, _, model = case
    x = torch.randn(16, 3, 32, 32)
    assert 0.8 < model.train()(x).std() / create_plain(name).train()(x).std() < 2


class Scaled(nn.Module):
    """An activation that learns, and has no `reset_parameters`."""

    def __init__(self, inplace=True):
        super().__init__()
        self.beta = nn.Parameter(torch.full((1,), 1.5))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


@pytest.mark.parametrize('name', ['aa_resnet18', 'laa_resnet18', 'aa_efficientnet_lite0', 'aa_mnasnet_100'])
def test_layers_of_the_callers_keep_their_first_values(name):
    """Networks are built without memory where every layer can be filled later, with memory where one cannot."""
    model = timm.create_model(name, num_classes=3, img_size=32, act_layer=Scaled)
    found = [parameter.item() for key, parameter in model.named_parameters() if key.endswith('.beta')]
    assert found and set(found) == {1.5}
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_statistics_that_are_frozen_keep_their_first_values():
    model = timm.create_model('aa_resnet18', num_classes=3, img_size=32, norm_layer=FrozenBatchNormAct2d)
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNormAct2d)]
    assert norms and all((module.running_var == 1).all() for module in norms)


def test_init_weights_forgets_a_loaded_constant():
    """Of weights whose heads began locally: a network whose heads do not has none by itself."""
    model = timm.create_model('aa_simplecnn', attn_init='global', pretrained=True)
    constant = model.stages[1][1].conv.attn.q_const
    assert constant.any()
    model.init_weights()
    assert not constant.any()
