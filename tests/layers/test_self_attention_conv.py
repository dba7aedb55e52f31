"""SAGAN's layer against its definition (reference.py), learned from γ = 0, saved, compiled and exported."""
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn

import reference
from aa_models.layers import SelfAttentionConv2d


def small(**kwargs):
    return SelfAttentionConv2d(**{**dict(in_channels=8, out_channels=6, num_heads=2, dim_head=3, gamma=0.7), **kwargs})


@torch.no_grad()
def test_equals_reference(fused):
    """First layers (1 → 8 channels) and inner ones, non-square, odd and size 1."""
    rng = random.Random(0)
    for in_channels, out_channels in ((1, 8), (8, None), (8, 8), (16, 5), (5, 16)):
        for _ in range(3):
            layer = SelfAttentionConv2d(
                in_channels, out_channels, rng.choice([1, 2, 3]), rng.choice([None, 1, 2, 5]),
                rng.choice([None, 'relu', 'gelu', nn.Tanh]), gamma=rng.uniform(-2, 2), bias=rng.choice([True, False]),
                dtype=torch.float64)
            x = torch.randn(2, in_channels, *(rng.choice([1, 3, 4, 7]) for _ in range(2)), dtype=torch.float64)
            expected, scores = reference.self_attention_conv(layer, x)
            torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(layer.attention_map(x), scores, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(layer.float()(x.float()).double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_unscaled_logits_are_a_matter_of_the_query_weights():
    """As the docstring says, SAGAN's own weights load after multiplying those of the queries by √dim_head."""
    layer = SelfAttentionConv2d(16, dim_head=9, dtype=torch.float64)
    x = torch.randn(1, 16, 4, 3, dtype=torch.float64)
    g, f, _ = layer.attn.qkv(x).flatten(2).split(9, dim=1)
    layer.attn.qkv.weight[:9] *= 3
    torch.testing.assert_close(layer.attention_map(x)[:, 0], (g.transpose(1, 2) @ f).softmax(-1))


@pytest.mark.parametrize('in_channels,num_heads,dim_head', [(64, 1, 8), (64, 8, 8), (20, 1, 2), (7, 3, 1), (1, 1, 1)])
def test_default_depth_and_parameters(in_channels, num_heads, dim_head):
    layer = SelfAttentionConv2d(in_channels, 2 * in_channels, num_heads)
    assert layer.dim_head == dim_head
    C, D, out = in_channels, num_heads * dim_head, 2 * in_channels
    assert sum(p.numel() for p in layer.parameters()) == 3 * D * (C + 1) + out * (D + 1) + out * (C + 1) + 1


@torch.no_grad()
def test_gamma_0_is_the_shortcut():
    x = torch.randn(2, 8, 5, 6)
    assert torch.equal(SelfAttentionConv2d(8)(x), x)
    assert torch.equal(SelfAttentionConv2d(8, act_layer='relu')(x), x.relu())
    projected = SelfAttentionConv2d(8, 12)
    assert torch.equal(projected(x), projected.shortcut(x))


def test_gamma_is_learned_from_0():
    """The target needs the whole map, its mean: γ alone has a gradient at first, then everything does."""
    layer = SelfAttentionConv2d(4, num_heads=2, dim_head=4)
    x = torch.randn(8, 4, 5, 5)
    target = x + x.mean((2, 3), keepdim=True)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for step in range(60):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        moved = {name for name, p in layer.named_parameters() if p.grad.abs().sum() > 0}
        assert moved == ({'gamma'} if step == 0 else set(dict(layer.named_parameters())))
        optimizer.step()
        losses.append(loss.item())
    assert layer.gamma.abs() > 0.1 and losses[-1] < 0.2 * losses[0]


def test_gradients_are_right(fused):
    reference.check_gradients(small(act_layer='gelu').double(), torch.randn(1, 8, 3, 2, dtype=torch.float64))


def test_names_of_what_is_saved():
    assert set(small(act_layer='prelu').state_dict()) == {
        'gamma', 'act.weight', *(f'{m}.{p}' for m in ('attn.qkv', 'attn.proj', 'shortcut') for p in ('weight', 'bias'))}


def test_first_and_in_between_in_a_network(tmp_path):
    """It learns a label that no 3×3 window tells; safetensors brings the network back, which takes any size."""
    def network():
        return nn.Sequential(
            SelfAttentionConv2d(1, 8, act_layer='relu'), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            SelfAttentionConv2d(16, num_heads=2, dim_head=4), nn.Conv2d(16, 2, 3, padding=1))

    net = network()
    x = torch.randn(64, 1, 8, 8)
    label = (x.sum((1, 2, 3)) > 0).long().view(-1, 1, 1).expand(-1, 4, 4)  # asked at every pixel
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        loss = F.cross_entropy(net(x), label)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and all(net[i].gamma.abs() > 0.01 for i in (0, 3))

    save_model(net, tmp_path / 'model.safetensors')
    other = network()
    assert load_model(other, tmp_path / 'model.safetensors') == (set(), [])
    image = torch.randn(2, 1, 11, 6)
    with torch.no_grad():
        assert torch.equal(other(image), net(image))


@torch.no_grad()
def test_compiled_exported_and_scripted_are_equal(fused, fresh_compiler):
    layer = small(act_layer='relu').eval()
    x, other = torch.randn(2, 8, 6, 7), torch.randn(3, 8, 9, 5)
    sizes = {0: torch.export.Dim('batch', max=64)} | {
        axis: torch.export.Dim(name, min=2, max=64) for axis, name in ((2, 'height'), (3, 'width'))}
    for same in (
            torch.compile(layer, fullgraph=True, backend='aot_eager', dynamic=True),
            torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module(),
            torch.jit.script(layer),
    ):
        for image in (x, other):
            torch.testing.assert_close(same(image), layer(image))


@torch.no_grad()
def test_activation_by_name_class_or_partial():
    x = torch.randn(1, 8, 3, 3)
    plain = small()
    for act_layer, function in (('hard_swish', F.hardswish), (nn.ELU, F.elu),
                                (partial(nn.LeakyReLU, 0.3), partial(F.leaky_relu, negative_slope=0.3))):
        layer = small(act_layer=act_layer)
        layer.load_state_dict(plain.state_dict())
        torch.testing.assert_close(layer(x), function(plain(x)))


@pytest.mark.parametrize('kwargs,error,words', [
    (dict(in_channels=0), ValueError, 'in_channels .* got 0'),
    (dict(out_channels=-3), ValueError, 'out_channels .* got -3'),
    (dict(num_heads=True), ValueError, 'num_heads .* got True'),
    (dict(num_heads=None), ValueError, 'num_heads .* got None'), (dict(filters=8), TypeError, 'filters'),
    (dict(dim_head=2.5), ValueError, 'dim_head .* got 2.5'), (dict(gamma='0'), TypeError, "gamma .* got '0'"),
    (dict(act_layer='rellu'), ValueError, "act_layer .* got 'rellu'"),
    (dict(act_layer=F.relu), TypeError, 'act_layer .* got <function relu'),
    (dict(act_layer=nn.ReLU()), TypeError, r'act_layer .* got ReLU\(\)'),
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        small(**kwargs)


@pytest.mark.parametrize('shape', [(8, 5, 5), (2, 7, 5, 5), (2, 8, 5)])
def test_bad_inputs(shape):
    for call in (small(), small().attention_map):
        with pytest.raises(ValueError, match=rf'\(B, 8, H, W\), got \({shape[0]}, '):
            call(torch.randn(shape))
