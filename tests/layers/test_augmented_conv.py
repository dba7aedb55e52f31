"""The augmented convolutions against their definitions (reference.py), and as drop-ins for torch's convolutions."""
import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import fx, nn

import reference
from aa_models.layers import AugmentedConv1d, AugmentedConv2d
from aa_models.layers.position import rel_logits_h, rel_logits_w, resize_rel_table
from random_layers import KINDS, random_layer

every_kind = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: '{attention}-{pos_embed}'.format(**kind))


@every_kind
@pytest.mark.parametrize('axes', [1, 2])
@torch.no_grad()
def test_equals_reference(fused, axes, kind):
    rng = random.Random(f'{axes}{kind["attention"]}{kind["pos_embed"]}')
    torch.manual_seed(rng.randrange(2 ** 32))
    for _ in range(6):
        layer, x = random_layer(rng, axes, **kind)
        expected = reference.augmented_conv(layer, x)
        torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
        if fused:  # the map is made in one way only
            weights = reference.attention(layer, x, expected.shape[2:])[1]
            torch.testing.assert_close(layer.attn.attention_map(x), weights, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer.float()(x.float()).double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_causal_equals_reference(fused):
    rng = random.Random(0)
    for pos_embed, _ in itertools.product(['rel', 'sincos', None], range(4)):
        layer, x = random_layer(rng, 1, pos_embed=pos_embed, causal=True, padding=0, attn_pool=1)
        torch.testing.assert_close(layer(x), reference.augmented_conv(layer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('stride,dilation,kernel_size', list(itertools.product([1, 2, 3], [1, 2], [1, 2, 4])))
@torch.no_grad()
def test_causal_sees_no_later_input(fused, stride, dilation, kernel_size):
    layer = AugmentedConv1d(
        4, 6, kernel_size, stride, dilation=dilation, dk=4, dv=4, num_heads=2, feat_size=5, causal=True).double()
    for length in (1, 2, 7, 10):
        x = torch.randn(1, 4, length, dtype=torch.float64)
        y = layer(x)
        assert y.shape[2] == -(-length // stride)
        for t in range(length):
            later = x.clone()
            later[:, :, t] += torch.randn(4)
            unaffected = -(-t // stride)  # outputs at inputs before t
            torch.testing.assert_close(layer(x[:, :, :t + 1])[:, :, :unaffected], y[:, :, :unaffected])
            assert torch.equal(layer(later)[:, :, :unaffected], y[:, :, :unaffected])
            if t % stride == 0:
                assert not torch.allclose(layer(later)[:, :, unaffected], y[:, :, unaffected])


@pytest.mark.parametrize('axes,conv,augmented', [(1, nn.Conv1d, AugmentedConv1d), (2, nn.Conv2d, AugmentedConv2d)])
@torch.no_grad()
def test_output_size_is_that_of_the_plain_convolution(axes, conv, augmented):
    x = torch.randn(1, 4, *(12, 9)[:axes])
    geometries = [
        *itertools.product([1, 2, 3, 4], [1, 2, 3], [0, 1, 3], [1, 2], [1, 2]),
        *itertools.product([1, 2, 3, 4], [1], ['same', 'valid'], [1, 2], [1])]
    for geometry in geometries:
        assert augmented(4, 8, *geometry, dk=4, dv=4, num_heads=2)(x).shape == conv(4, 8, *geometry)(x).shape


@torch.no_grad()
def test_dv_0_is_the_plain_convolution():
    layer = AugmentedConv2d(4, 6, 3, 2, 1, groups=2, dv=0)
    assert layer.attn is None and [n for n, _ in layer.named_parameters()] == ['conv.weight', 'conv.bias']
    x = torch.randn(1, 4, 7, 8)
    assert torch.equal(layer(x), layer.conv(x))


@pytest.mark.parametrize('axes, kind', [
    *itertools.product((1, 2), KINDS), (1, dict(causal=True, pos_embed='rel'))], ids=str)
def test_traced_by_fx(axes, kind):
    """Alone and in a network; it holds for other sizes, and learns."""
    layer = (AugmentedConv1d, AugmentedConv2d)[axes - 1](4, 8, 3, 2, dk=4, dv=4, num_heads=2, feat_size=4, **kind)
    for traced in (fx.symbolic_trace(layer), fx.symbolic_trace(nn.Sequential(nn.Identity(), layer))):
        for size in ((9, 8), (4, 12)):
            x = torch.randn(2, 4, *size[:axes])
            torch.testing.assert_close(traced(x), layer(x))
        layer.zero_grad()
        traced(x).sum().backward()
        assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize('dv', [8, 1.0])
def test_dv_of_all_channels_has_no_convolution(dv):
    layer = AugmentedConv2d(4, 8, 3, 2, 1, dk=8, dv=dv, num_heads=2)
    assert layer.conv is None and layer(torch.randn(1, 4, 7, 8)).shape == (1, 8, 4, 4)
    assert not any(name.startswith('conv.') for name in layer.state_dict())


def test_parameters_are_those_of_the_keras_table():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    two = AugmentedConv2d(10, 20, 5, padding=2, dk=4, dv=4, num_heads=4, feat_size=(32, 32))
    parts = count(two.conv), count(two.attn.qkv), two.attn.rel_h.numel() + two.attn.rel_w.numel(), count(two.attn.proj)
    assert parts == (4016, 132, 126, 20) and count(two) == 4294
    one = AugmentedConv1d(10, 20, 5, padding=2, dk=4, dv=4, num_heads=4, feat_size=32)
    assert count(one) == 1031
    assert [n for n, _ in one.named_parameters() if 'rel' in n] == ['attn.rel_w']


def test_parameter_names_are_those_of_published_weights():
    names = {name for name, _ in AugmentedConv2d(8, 16, 3, dk=8, dv=8).named_parameters()}
    weights = {'conv.weight', 'attn.qkv.weight', 'attn.proj.weight', 'attn.rel_h', 'attn.rel_w'}
    assert names == weights | {'conv.bias', 'attn.qkv.bias', 'attn.proj.bias'}
    assert {n for n, _ in AugmentedConv2d(8, 16, 3, bias=False, dk=8, dv=8).named_parameters()} == weights


@pytest.mark.parametrize('out_channels,dk,dv,num_heads,expected', [
    (128, 0.25, 0.25, 8, (160, 32)),  # 20 dims a head bind
    (1024, 0.25, 0.25, 8, (256, 256)),
    (640, 0.2, 0.1, 8, (160, 64)),
    (100, 0.29, 0.29, 1, (29, 29)),  # 0.29 · 100 is 28.999… in binary
    (170, 1.0, 1.0, 8, (168, 168)),  # rounded down to a multiple of the heads
    (20, 4, 4, 4, (4, 4)),
    (20, 40, 10, 2, (40, 10)),  # the keys may be wider than the output
    (20, 4, 0, 3, (0, 0)),
    (128, np.int64(16), np.float32(0.25), np.int64(8), (16, 32)),
])
def test_depths_by_the_papers_rule(out_channels, dk, dv, num_heads, expected):
    layer = AugmentedConv2d(4, out_channels, 3, dk=dk, dv=dv, num_heads=num_heads)
    assert (layer.dk, layer.dv) == expected


def test_a_share_that_rounds_to_nothing_is_a_plain_convolution():
    with pytest.warns(UserWarning, match='dv=0.1 of 64 channels .* num_heads=8 heads: this is a plain convolution'):
        assert AugmentedConv2d(8, 64, 3).attn is None


@every_kind
def test_gradients_are_right(fused, kind):
    layer = AugmentedConv2d(4, 6, 3, 2, 1, dk=4, dv=4, num_heads=2, feat_size=(3, 2), attn_pool=2, **kind).double()
    reference.check_gradients(layer, torch.randn(1, 4, 6, 5, dtype=torch.float64))


@torch.no_grad()
def test_dropout_acts_in_training_only(fused):
    layer = AugmentedConv2d(4, 8, 3, padding=1, dk=8, dv=8, attn_drop=0.5, feat_size=6)
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(layer.eval()(x), layer(x))
    assert not torch.equal(layer.train()(x), layer(x))
    assert layer.attn.fused_attn == fused


@pytest.mark.parametrize('made_for', [1, 2, 5, 14])
@torch.no_grad()
def test_tables_are_interpolated_about_offset_0(made_for):
    table = torch.randn(2 * made_for - 1, 3, dtype=torch.float64)
    assert torch.equal(resize_rel_table(table, made_for), table)
    for size in (1, 2, 3, 7, 20):
        resized = resize_rel_table(table, size)
        expected = torch.stack([reference.relative(table, o, size) for o in range(1 - size, size)])
        torch.testing.assert_close(resized, expected)
        torch.testing.assert_close(resized[size - 1], table[made_for - 1])
    mirrored = resize_rel_table(table.flip(0), 9)
    torch.testing.assert_close(mirrored.flip(0), resize_rel_table(table, 9))


@torch.no_grad()
def test_relative_logits_are_translation_equivariant():
    """Moving query and key together moves the logits and changes none; moving the query alone does not."""
    q = torch.randn(1, 2, 1, 1, 4, dtype=torch.float64).expand(1, 2, 5, 7, 4)  # the same query everywhere
    rows, columns = (
        rel_logits(q, torch.randn(2 * n - 1, 4, dtype=torch.float64))
        for rel_logits, n in ((rel_logits_h, 5), (rel_logits_w, 7)))  # (1, 2, 5, 7, 5 or 7)
    torch.testing.assert_close(rows[:, :, 1:, :, 1:], rows[:, :, :-1, :, :-1])
    torch.testing.assert_close(columns[:, :, :, 1:, 1:], columns[:, :, :, :-1, :-1])
    assert not torch.allclose(rows[:, :, 1:], rows[:, :, :-1])


FUSED_MEMORY = '''
import resource, torch
from aa_models.layers import AugmentedConv1d, AugmentedConv2d
layer = AugmentedConv2d(4, 8, 3, padding=1, dk=8, dv=4, num_heads=2, feat_size=16)
x = torch.randn(1, 4, 128, 128)
layer(x[:, :, :8, :8]).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer(x).sum().backward()
layer = AugmentedConv1d(4, 8, 3, padding=1, dk=8, dv=4, num_heads=2, feat_size=16)
layer(x.flatten(2)[:, :, ::2]).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
'''


def test_fused_holds_no_full_logits():
    """A 128 × 128 map has 2 GiB of float32 logits for two heads; a fresh process must not grow by a fourth of that.

    A sequence half as long has 512 MiB, but twice as many logits against the offsets of its relative table.
    """
    environment = dict(os.environ, TIMM_FUSED_ATTN='1', PYTHONPATH=os.pathsep.join(sys.path))
    result = subprocess.run(
        [sys.executable, '-c', FUSED_MEMORY], capture_output=True, text=True, check=True, env=environment)
    assert float(result.stdout) < 512  # MiB
