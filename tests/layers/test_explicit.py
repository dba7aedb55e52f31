"""Explicit attention and what it shares with the folded one: what they keep in memory, gradients to any order."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aa_models.layers import AugmentedConv1d, softmax_attention
from aa_models.layers.blockwise import blockwise_attention


class Largest(TorchDispatchMode):
    """The most numbers that any tensor given by an operation has."""
    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(t.numel() for t in tree_leaves(results) if isinstance(t, torch.Tensor)), 0)
        return results


@pytest.mark.parametrize('backend', ['explicit', 'folded'])
@pytest.mark.parametrize('causal', [False, True])
def test_a_sequence_has_no_tensor_of_embeddings_for_all_pairs(monkeypatch, backend, causal):
    """Forward and backward: logits against all offsets, twice as many as pairs, and no `dim` times as many as pairs."""
    monkeypatch.setattr(softmax_attention, 'choose_backend', lambda *args: backend)
    N, num_heads, dim = 128, 2, 32
    layer = AugmentedConv1d(4, 8, 1, dk=num_heads * dim, dv=4, num_heads=num_heads, feat_size=N, causal=causal)
    with Largest() as largest:
        layer(torch.randn(1, 4, N, requires_grad=True)).sum().backward()
    assert num_heads * N ** 2 <= largest.numbers <= 2 * num_heads * N ** 2 < dim * N ** 2


def test_each_place_of_a_tensor_given_twice_has_its_own_gradient():
    """Where second derivatives are wanted, too; and tensors that want none get none."""
    x, table = torch.randn(1, 2, 3, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4).double()
    assert torch.autograd.gradgradcheck(lambda x: blockwise_attention(x, x, x, table, table, 0.5, False), x)
    loss = blockwise_attention(x, x, x, table, table, 0.5, False).square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x, create_graph=True), first)
