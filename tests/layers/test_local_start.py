"""Heads that start at one neighbour each."""
import copy
import math

import pytest
import timm
import torch
from timm.models import save_for_hf

import reference
from aa_models.augmentation import imitation
from aa_models.layers import AttentionArgs, AugmentedConv2d, softmax_attention
from aa_models.layers.local_start import STRENGTH, balanced, head_offsets, local_query
from aa_models.layers.softmax_attention import SoftmaxAttention


def attention_of(num_heads=8, feat_size=(5, 7), attn_init='local', bias=False, **kwargs):
    args = AttentionArgs(dk=6 * num_heads, dv=2 * num_heads, num_heads=num_heads, attn_init=attn_init)
    axes = len(feat_size)
    return SoftmaxAttention(
        6, args, feat_size=feat_size, stride=[1] * axes, sample_pad=[0] * (2 * axes), bias=bias, **kwargs)


def test_offsets_are_the_nearest_pixels():
    around = {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)} - {(0, 0)}
    assert set(head_offsets(8, 2)) == around and set(head_offsets(4, 2)) == {o for o in around if 0 in o}
    assert head_offsets(5, 1) == [(-1,), (1,), (-2,), (2,), (-3,)]
    assert head_offsets(4, 1, causal=True) == [(0,), (-1,), (-2,), (-3,)]
    for num_heads in (1, 2, 3, 7, 12, 13, 24, 48, 100):
        offsets = head_offsets(num_heads, 2)
        assert len(set(offsets)) == num_heads and (0, 0) not in offsets
        left_out = min(y * y + x * x for y in range(-12, 13) for x in range(-12, 13)
                       if (y or x) and (y, x) not in offsets)
        assert max(y * y + x * x for y, x in offsets) <= left_out
        if num_heads % 2 == 0:
            assert {(-y, -x) for y, x in offsets} == set(offsets)


@pytest.mark.parametrize('num_heads', [1, 4, 8, 12])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_every_head_looks_at_its_neighbour_first(num_heads, dtype):
    """At the border at the nearest there is; on a map twice as large twice as far."""
    attn = attention_of(num_heads, dtype=dtype)
    for H, W, step in ((5, 7, 1), (10, 14, 2)):
        weights = attn.attention_map(torch.randn(2, 6, H, W, dtype=dtype))
        for head, (dy, dx) in enumerate(head_offsets(num_heads, 2)):
            for i in range(H * W):
                y, x = min(max(i // W + step * dy, 0), H - 1), min(max(i % W + step * dx, 0), W - 1)
                assert (weights[:, head, i].argmax(-1) == y * W + x).all()


@torch.no_grad()
def test_sequences_look_beside_or_back():
    for causal in (False, True):
        attn = attention_of(4, (9,), causal=causal)
        peaks = attn.attention_map(torch.randn(1, 6, 9))[0].argmax(-1)
        for head, (d,) in enumerate(head_offsets(4, 1, causal)):
            assert peaks[head].tolist() == [min(max(i + d, 0), 8) for i in range(9)]


@torch.no_grad()
def test_long_sequences_stay_finite_in_float16():
    attn = attention_of(2, (1500,), dtype=torch.float16)
    assert attn.rel_w.isfinite().all()
    x = torch.randn(1, 6, 1500, dtype=torch.float16)
    peaks = attn.attention_map(x)[0].argmax(-1)
    assert peaks[0].tolist() == [max(i - 1, 0) for i in range(1500)]
    assert attn(x).isfinite().all()


@torch.no_grad()
def test_logits_fall_with_the_squared_distance():
    attn = attention_of(dtype=torch.float64)
    weights = attn.attention_map(torch.randn(1, 6, 5, 7, dtype=torch.float64))[0]
    for head, (dy, dx) in enumerate(head_offsets(8, 2)):
        logits = [[
            -0.5 * ((j // 7 - i // 7 - dy) ** 2 + (j % 7 - i % 7 - dx) ** 2) for j in range(35)] for i in range(35)]
        expected = torch.tensor(logits, dtype=torch.float64)
        torch.testing.assert_close(weights[head], expected.softmax(-1))


def trained(attn):
    """Every parameter moved away from its start."""
    for p in attn.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return attn


@torch.no_grad()
def test_every_implementation_agrees_with_the_definition(monkeypatch):
    attn = trained(attention_of(dtype=torch.float64))
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    q, k, v = reference.heads(attn, x, 2)
    out = torch.einsum('bnij,bnjd->bnid', reference.softmax_weights(attn, q, k, 5, 7), v)
    expected = torch.einsum('oc,bchw->bohw', attn.proj.weight.flatten(1), out.transpose(2, 3).reshape(2, -1, 5, 7))
    for name in ('explicit', 'folded', 'blockwise'):
        monkeypatch.setattr(softmax_attention, 'choose_backend', lambda *args, name=name: name)
        torch.testing.assert_close(attn(x), expected)
    monkeypatch.undo()
    for other in (torch.jit.script(attn), torch.export.export(attn, (x,)).module()):
        torch.testing.assert_close(other(x), expected)


def test_gradients_reach_content_and_position():
    attn = attention_of()
    attn(torch.randn(2, 6, 5, 7)).square().sum().backward()
    q, k, v = attn.qkv.weight.grad.split([attn.dk, attn.dk, attn.dv])
    for grad in (q, k, v, attn.proj.weight.grad, attn.rel_h.grad, attn.rel_w.grad):
        assert math.isfinite(grad.norm()) and grad.norm() > 0


@torch.no_grad()
def test_checkpoints_say_how_they_started():
    local, other, x = trained(attention_of()), attention_of(attn_init='global'), torch.randn(1, 6, 5, 7)
    assert 'q_const' not in other.state_dict()
    assert sum(p.numel() for p in local.parameters()) == sum(p.numel() for p in other.parameters())
    old = trained(attention_of(attn_init='global'))
    expected, old_expected = local(x), old(x)
    other.load_state_dict(local.state_dict())
    local.load_state_dict(old.state_dict())
    assert torch.equal(other(x), expected) and torch.equal(local(x), old_expected)


def test_the_constant_is_loaded_as_buffers_are():
    """Onto whatever device, by assignment too, into the place where it lies; one of another shape is refused."""
    model = attention_of()
    weights = model.state_dict()
    without = {name: tensor for name, tensor in weights.items() if name != 'q_const'}
    for given in (weights, without):
        with torch.device('meta'):
            other = attention_of()
        assert not any(other.load_state_dict(given, assign=True))
        assert torch.equal(other.q_const, weights['q_const'] if given is weights else torch.zeros(8, 6))
    place = model.q_const
    model.load_state_dict(without)
    assert model.q_const is place and not place.any()
    with pytest.raises(RuntimeError, match='size mismatch for q_const'):
        model.load_state_dict({**weights, 'q_const': torch.zeros(3, 5)})


def test_constant_is_the_formula():
    constant = local_query([(-1, 1)], 6, 0.5, strength=2.)
    assert constant.tolist() == [[-8., -4., 8., -4., 0., 0.]]


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_a_large_constant_is_divided_anew(dtype):
    """Published weights have such, from when a was the same for every β; nothing changes but how they learn."""
    attn, x = trained(attention_of(bias=True)).to(dtype), torch.randn(2, 6, 5, 7, dtype=dtype)
    assert balanced(dict(attn.named_parameters(), q_const=attn.q_const)) == {}
    by, dk = torch.tensor([8., 16., 8., 32., 1., 1.], dtype=dtype), attn.dk  # of each dimension
    attn.q_const *= by
    for name in ('weight', 'bias'):
        q, k, _ = getattr(attn.qkv, name).split([dk, dk, attn.dv])
        for rows, factor in ((q, by), (k, 1 / by)):
            rows.unflatten(0, [attn.num_heads, -1]).mul_(factor.view(-1, *[1] * (rows.dim() - 1)))
    for table in (attn.rel_h, attn.rel_w):
        table /= by
    expected, before = attn(x), copy.deepcopy(attn.state_dict())
    changed = balanced(dict(attn.named_parameters(), q_const=attn.q_const))
    assert set(changed) == {'q_const', 'qkv.weight', 'qkv.bias', 'rel_h', 'rel_w'}
    attn.load_state_dict(before | changed)
    assert attn.q_const.abs().max() < 4.1 / attn.scale < before['q_const'].abs().max()
    assert torch.equal(attn(x), expected)


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_large_keys_that_queries_hardly_met_are_divided_anew(dtype):
    attn, x = trained(attention_of(bias=True)).to(dtype), torch.randn(2, 6, 5, 7, dtype=dtype)
    dim, content = attn.dk // attn.num_heads, (attn.q_const == 0).all(0)
    rows = attn.qkv.weight.flatten(1)[:2 * attn.dk].unflatten(0, [2, attn.num_heads, dim])
    rows[0, :, content] /= 100
    expected, before = attn(x), copy.deepcopy(attn.state_dict())
    attn.load_state_dict(before | balanced(dict(attn.named_parameters(), q_const=attn.q_const)))
    queries, keys = rows.float().square().mean((1, 3)).sqrt()
    assert content.any() and (keys / queries)[content].max() < 4 and torch.equal(attn(x), expected)
    assert torch.equal(rows[:, :, ~content].flatten(), before['qkv.weight'].flatten(1)[:2 * attn.dk].unflatten(
        0, [2, attn.num_heads, dim])[:, :, ~content].flatten())
    rows[0] = 0  # of a start that nobody has trained
    assert balanced(dict(attn.named_parameters(), q_const=attn.q_const)) == {}


def test_heads_that_imitate_filters_stay_through_an_epoch():
    """Weights have moved so far after an epoch, by little gradient: with large keys three times as much is lost."""
    layer = AugmentedConv2d(192, 192, 1, dk=160, dv=64, num_heads=8, feat_size=(7, 7), bias=False)
    imitation.imitate(layer, torch.randn(64, 192, 1, 1))
    x = 4 * torch.randn(2, 192, 7, 7)  # as in EfficientNet-Lite0
    before = layer.attn.attention_map(x).detach()
    with torch.no_grad():
        for parameter in layer.attn.parameters():
            parameter += 0.012 * torch.randn_like(parameter).sign()
    assert (layer.attn.attention_map(x) - before).abs().sum(-1).mean() < 0.35


@pytest.mark.parametrize('strength', [STRENGTH, imitation.STRENGTH])
def test_one_step_leaves_heads_where_they_are(strength):
    """Adam moves every weight by its learning rate at first, however little the loss depends on it."""
    attn = AugmentedConv2d(64, 64, 1, dk=160, dv=64, num_heads=8, feat_size=(7, 7)).attn
    attn.look_at(head_offsets(8, 2), strength)
    x = torch.randn(4, 64, 7, 7)

    def weights():
        q, k, _ = attn.heads(x)
        return attn.weights(q, k)
    before = weights().detach()
    for _ in range(8):  # in random directions, as they are where the loss hardly depends on a weight
        with torch.no_grad():
            for parameter in attn.parameters():
                parameter += 1e-3 * torch.randn_like(parameter).sign()
    assert (weights() - before).abs().sum(-1).max() < 0.5


def test_heads_too_small_for_a_distance_are_refused():
    with pytest.raises(ValueError, match="attn_init must be 'local' or 'global', got 'near'"):
        AugmentedConv2d(8, 16, 3, dk=32, dv=8, attn_init='near')
    # a head needs two key channels for each axis, and positions
    assert AugmentedConv2d(8, 16, 3, dk=16, dv=8, num_heads=8, attn_init='local').attn.q_const is None
    assert AugmentedConv2d(8, 16, 3, dk=32, dv=8, pos_embed=None, attn_init='local').attn.q_const is None
    assert AugmentedConv2d(8, 16, 3, dk=32, dv=8, num_heads=8).attn.q_const is not None  # the default


@pytest.mark.parametrize('model_args', [dict(attn_init='local'), {}])
@torch.no_grad()
def test_networks_come_back_as_they_started(model_args, tmp_path):
    model = timm.create_model('aa_simplecnn', attn_init='local').eval()
    save_for_hf(model, tmp_path, model_args=model_args)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(x), model(x))


@torch.no_grad()
def test_published_weights_are_what_they_were():
    x = torch.randn(2, 3, 32, 32)
    local, known = (
        timm.create_model('aa_simplecnn', pretrained=True, attn_init=init).eval() for init in ('local', 'global'))
    assert torch.equal(local(x), known(x))
