"""Dropout of attention weights by blocks: the numbers of explicit attention with the very same masks."""
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from aa_models.layers import AugmentedConv2d, block_layout, softmax_attention
from aa_models.layers.attention_dropout import AttentionDropout, dropout_factors
from aa_models.layers.blockwise import blockwise_attention
from aa_models.layers.explicit import attention_weights

SEED = torch.tensor([3])


def layer_of(p=0.3, **options):
    torch.manual_seed(0)
    return AugmentedConv2d(8, 16, 3, padding=1, dk=8, dv=8, num_heads=2, feat_size=6, attn_drop=p, **options)


@pytest.mark.parametrize('block', [1, 30, 100, 2 ** 19], ids='block{}'.format)
@pytest.mark.parametrize('shape, rows, columns, causal', [
    ((2, 2, 5, 7, 4, 3), True, True, False), ((1, 3, 7, 2, 3, 1), True, False, False),
    ((2, 1, 6, 3, 3, 2), False, False, False), ((2, 2, 1, 11, 4, 3), False, True, True)])
def test_equals_explicit_attention_with_the_same_masks(monkeypatch, shape, rows, columns, causal, block):
    monkeypatch.setattr(block_layout, '_BLOCK', block)
    B, num_heads, H, W, dim_k, dim_v = shape
    sizes = [(B, num_heads, H, W, dim_k)] * 2 + [(B, num_heads, H, W, dim_v)]
    sizes += [(2 * H - 1, dim_k) if rows else None, (2 * W - 1, dim_k) if columns else None]
    tensors = [None if s is None else torch.randn(s, dtype=torch.float64, requires_grad=True) for s in sizes]
    q, k, v, rel_h, rel_w = tensors
    factors = dropout_factors(v, causal, 0.4, SEED)
    weights = attention_weights(q * 0.3, k, rel_h, rel_w, causal) * factors
    outputs = [(weights @ v.flatten(2, 3)).view_as(v), blockwise_attention(*tensors, 0.3, causal, 0.4, SEED)]
    grad, wanted = torch.randn_like(v), [t for t in tensors if t is not None]
    expected, found = ([out, *torch.autograd.grad(out, wanted, grad)] for out in outputs)
    torch.testing.assert_close(found, expected)


def test_second_derivatives_are_of_the_same_masks(monkeypatch):
    monkeypatch.setattr(block_layout, '_BLOCK', 30)
    tensors = [torch.randn(1, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    tables = [torch.randn(size, 2, dtype=torch.float64, requires_grad=True) for size in (3, 5)]
    assert torch.autograd.gradgradcheck(
        lambda *inputs: blockwise_attention(*inputs, 0.3, False, 0.4, SEED), (*tensors, *tables))


@pytest.mark.parametrize('p', [0., 0.1, 0.5, 0.9, 1.])
def test_as_many_are_dropped_as_asked_for(p):
    factors = dropout_factors(torch.empty(2, 4, 12, 12, 1, dtype=torch.float64), False, p, SEED).flatten(0, 1)
    kept = factors != 0
    for axes in ((0, 1, 2), 2, (0, 1), (1, 2)):  # of all weights, of each query's, each key's, each head's
        share = kept.double().mean(axes)
        spread = (p * (1 - p) * share.numel() / kept.numel()) ** 0.5
        assert (share - (1 - p)).abs().max() <= 5 * spread + 2e-5
    assert p == 1 or torch.allclose(factors[kept], torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=1e-4)
    # neighbours do not depend on one another: how often two are kept together
    for axis in range(3):
        first, second = kept.narrow(axis, 0, kept.shape[axis] - 1), kept.narrow(axis, 1, kept.shape[axis] - 1)
        assert abs((first & second).double().mean() - (1 - p) ** 2) <= 6 * (p * (1 - p) / first.numel()) ** 0.5 + 4e-5


def test_the_average_over_masks_is_attention_without_dropout():
    q, k, v = (torch.randn(1, 2, 4, 4, 3, dtype=torch.float64) for _ in range(3))
    plain = blockwise_attention(q, k, v, None, None, 1., False)
    outputs = torch.stack([
        blockwise_attention(q, k, v, None, None, 1., False, 0.25, torch.tensor([seed])) for seed in range(2000)])
    error = (outputs.mean(0) - plain) / (outputs.std(0) / len(outputs) ** 0.5)
    assert outputs.std() > 0.05 and error.abs().max() < 5


def test_numbers_depend_on_the_seed_alone():
    """Not on the number of threads, nor on what is in the buffer."""
    def drawn(seed):
        dropout = AttentionDropout(0.5, torch.tensor([seed]), 600)
        return [dropout.draw(torch.full((2, 3, size), float('nan'))) for size in (100, 7, 100)]
    assert all(map(torch.equal, drawn(1), drawn(1))) and not torch.equal(drawn(1)[0], drawn(2)[0])
    assert not torch.equal(drawn(1)[0], drawn(1)[2])
    threads = torch.get_num_threads()
    q = torch.randn(2, 2, 20, 20, 4)
    outputs = []
    for number in (1, 3):
        torch.set_num_threads(number)
        outputs.append(blockwise_attention(q, q, q, None, None, 1., False, 0.5, SEED))
    torch.set_num_threads(threads)
    torch.testing.assert_close(*outputs)


def test_reproducible_by_torchs_seed(monkeypatch):
    monkeypatch.setattr(softmax_attention, 'attention_weights', None)  # all weights at once are never made
    layer, x = layer_of(), torch.randn(2, 8, 6, 6)

    def run(seed, function=layer):
        torch.manual_seed(seed)
        layer.zero_grad()
        out = function(x)
        out.sum().backward()
        return [out.detach(), layer.attn.qkv.weight.grad.clone()]
    assert all(map(torch.equal, run(1), run(1)))
    assert all(not torch.equal(a, b) for a, b in zip(run(1), run(2)))
    # recomputed in the backward pass with the same masks
    for a, b in zip(run(1), run(1, lambda x: checkpoint(layer, x, use_reentrant=False))):
        torch.testing.assert_close(a, b)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_half_precision():
    q, k, v = (torch.randn(2, 2, 6, 5, 8) for _ in range(3))
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    out = blockwise_attention(*exact, None, None, 0.3, False, 0.3, SEED)
    grad = torch.randn_like(v)
    expected = [out, *torch.autograd.grad(out, exact, grad.double())]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)):
        tensors = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        out = blockwise_attention(*tensors, None, None, 0.3, False, 0.3, SEED)
        for a, b in zip([out, *torch.autograd.grad(out, tensors, grad.to(dtype))], expected):
            assert a.dtype == dtype and (a.double() - b).abs().max() < tolerance * b.abs().max()


def test_is_an_operator_by_torchs_own_checks():
    tensors = [torch.randn(2, 2, 3, 4, 4, requires_grad=True) for _ in range(3)]
    tables = [torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)]
    torch.library.opcheck(blockwise_attention, (*tensors, *tables, 0.5, False, 0.3, SEED))


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('attention, pos_embed', [('softmax', 'rel'), ('linear', None)])
def test_the_dropout_module_decides(fused, attention, pos_embed):
    """It may drop in evaluation, and be off in training."""
    layer, x = layer_of(attention=attention, pos_embed=pos_embed), torch.randn(1, 8, 6, 6)
    layer.attn.fused_attn = fused
    for training in (True, False):
        layer.train(training).attn.attn_drop.train(not training)
        assert torch.equal(layer(x), layer(x)) is training
