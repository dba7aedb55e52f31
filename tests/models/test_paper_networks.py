"""The networks of the papers: parameters as in their tables and by their rule, and where they attend."""
import fnmatch
import itertools

import pytest
import timm
import torch

from aa_models.models.simplecnn import checkpoint_filter_fn
from found import augmented
from our_models import create


def count(name, **kwargs):
    return sum(p.numel() for p in timm.create_model(name, device='meta', **kwargs).parameters())


@pytest.mark.parametrize('name,kwargs,expected', [
    ('aa_resnet34', {}, 20_745_072), ('aa_resnet34', dict(attn_stages=(False,) * 4), 21_797_672),
    ('aa_resnet50', {}, 25_809_392), ('aa_resnet50', dict(attn_stages=(False,) * 4), 25_557_032),
    ('aa_resnet50', dict(dk=0.25, dv=0.25), 24_303_728),
    ('wrn28_10', {}, 36_536_884), ('aa_wrn28_10', {}, 36_312_660),
])
def test_parameters_of_the_papers_tables(name, kwargs, expected):
    assert count(name, **kwargs, **(dict(num_classes=1000, img_size=224) if 'resnet' in name else {})) == expected


def resnet_parameters(plain, bottleneck, layers, kappa, upsilon):
    """The paper's rule, written out: what each augmented 3×3 has more or less than the plain one."""
    total = count(plain)
    map_size = {1: 14, 2: 14, 3: 7}  # attended at 224 px: 28 pooled to 14, 14, 7
    for stage in (1, 2, 3):
        width = 64 * 2 ** stage
        dk, dv = max(20 * 8, int(kappa * width / 8) * 8), int(upsilon * width / 8) * 8
        for block in range(layers[stage]):
            fan_in = width // 2 if not bottleneck and block == 0 else width
            total += fan_in * (2 * dk + dv) + dv * dv + 2 * (2 * map_size[stage] - 1) * dk // 8 - 9 * fan_in * dv
    return total


BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@pytest.mark.parametrize('depth, share', [
    *itertools.product((18, 50), (None, 0.25, 0.5, 0.75, 1.0)), (34, None), (101, None), (152, None)])
def test_parameters_by_the_rule(depth, share):
    """All shares with basic blocks and with bottlenecks; deeper networks are more of the same blocks."""
    bottleneck = depth >= 50
    kwargs = dict(dk=share, dv=share) if share else {}
    shares = (share, share) if share else (0.2, 0.1) if bottleneck else (0.25, 0.25)
    expected = resnet_parameters(f'resnet{depth}', bottleneck, BLOCKS[depth], *shares)
    assert count(f'aa_resnet{depth}', num_classes=1000, img_size=224, **kwargs) == expected


def test_what_is_augmented():
    layers = augmented(timm.create_model('aa_resnet50', device='meta', img_size=224))
    assert [fnmatch.fnmatch(n, 'layer[234].*.conv2') for n in layers].count(True) == len(layers) == 4 + 6 + 3
    sizes = {n: ((m.attn.rel_h.shape[0] + 1) // 2, m.attn.attn_pool) for n, m in layers.items()}
    assert [sizes[f'layer{i}.0.conv2'] for i in (2, 3, 4)] == [(14, 2), (14, 1), (7, 1)]
    layers = augmented(timm.create_model('aa_resnet18', device='meta'))
    assert all(n.endswith('conv1') for n in layers) and len(layers) == 6
    layers = augmented(timm.create_model('aa_wrn28_10', device='meta'))
    assert {(m.dk, m.dv, (m.attn.rel_w.shape[0] + 1) // 2) for m in layers.values()} == {
        (160, 16, 32), (160, 32, 16), (160, 64, 8)}
    assert len(layers) == 12 and all(n.endswith('conv1') for n in layers)
    assert not augmented(timm.create_model('wrn28_10', device='meta'))


@pytest.mark.parametrize('name', ['laa_resnet18', 'laa_wrn16_8', 'laa_simplecnn'])
def test_laa_is_linear_attention_with_waves(name):
    layers = augmented(timm.create_model(name, device='meta'))
    assert layers and all(type(m.attn).__name__ == 'LinearAttention' for m in layers.values())
    assert {m.attn.pos_embed for m in layers.values()} == {'sincos'}


@pytest.mark.parametrize('img_size', [0, -5, 1.5, 'a', (96,), (3, 224, 224)])
def test_bad_img_size(img_size):
    with pytest.raises(ValueError, match='img_size must be an int or a pair'):
        timm.create_model('aa_simplecnn', img_size=img_size)


def test_zero_init_last():
    for zero in (True, False):
        model = create('aa_resnet18', zero_init_last=zero)
        assert bool(model.layer2[0].bn2.weight.any()) != zero


def test_tables_are_made_for_img_size():
    layers = augmented(timm.create_model('aa_resnet18', device='meta', img_size=(96, 160)))
    lengths = {n: (m.attn.rel_h.shape[0], m.attn.rel_w.shape[0]) for n, m in layers.items()}
    assert lengths['layer2.0.conv1'] == (11, 19) and lengths['layer4.1.conv1'] == (5, 9)  # 6 × 10 pooled, 3 × 5


@torch.no_grad()
def test_checkpoints_load_at_another_size():
    model, other = create('aa_simplecnn'), create('aa_simplecnn', img_size=24)
    native = model.state_dict()
    assert all(torch.equal(v, native[k]) for k, v in checkpoint_filter_fn(dict(native), model).items())
    other.load_state_dict(checkpoint_filter_fn(dict(native), other))
    table, resized = model.stages[0][1].conv.attn.rel_h, other.stages[0][1].conv.attn.rel_h
    assert resized.shape[0] == 23
    torch.testing.assert_close(resized[11], table[7])
