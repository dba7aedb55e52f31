"""Exact softmax attention with relative positions, a block of queries at a time.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.1. The backward pass makes the logits of each
block again. Everything is computed in float32 (float64 for float64 inputs), whatever the inputs are.

Tracers would unroll the Python loop over the blocks; registered with `torch.library` it is one operator to them.
"""
from typing import Any

import torch

from .attention_blocks import AttentionBlocks
from .explicit import attention_gradients


def _by_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, num_heads, H, W, dim) -> (B * num_heads, dim, H, W), dense, at least float32, always a copy."""
    x = x.permute(0, 1, 4, 2, 3)
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)).copy_(x).flatten(0, 1)


def _like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B * num_heads, dim, H, W) -> (B, num_heads, H, W, dim) in the dtype and memory order of `like`."""
    B, num_heads, H, W, dim = like.shape
    x = x.view(B, num_heads, dim, H, W).permute(0, 1, 3, 4, 2)
    out = torch.empty_like(like)
    return x if x.dtype == out.dtype and x.stride() == out.stride() else out.copy_(x)


@torch.library.custom_op('aa_models::blockwise_attention', mutates_args=())
def blockwise_attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None,
        scale: float, causal: bool,
) -> torch.Tensor:
    """Weigh the values by softmax(scale · q · (k + relative embeddings)).

    Args:
        q: Queries (B, num_heads, H, W, dim_k).
        k: Keys, same shape.
        v: Values (B, num_heads, H, W, dim_v).
        rel_h: One row for each offset between rows (2 * H - 1, dim_k), or None.
        rel_w: One row for each offset between columns (2 * W - 1, dim_k), or None.
        scale: Factor of the queries.
        causal: Query i sees keys 0 … i only; H must be 1 then, and rel_h None.

    Returns:
        (B, num_heads, H, W, dim_v) in v's dtype and memory order.
    """
    if v.numel() == 0 or q.numel() == 0:
        return torch.zeros_like(v)
    with torch.autocast(q.device.type, enabled=False):
        blocks = AttentionBlocks(_by_heads(q).mul_(scale), _by_heads(k).flatten(2), rel_h, rel_w, causal, v.dtype)
        values = _by_heads(v).to(blocks.factor_dtype)
        out = torch.empty_like(values)
        values = values.flatten(2)
        for heads in blocks.by_heads():
            for rows, columns, keys in blocks.by_queries():
                weights = blocks.as_factor(blocks.weights(heads, rows, columns, keys))
                target = out[heads, :, rows, columns]
                target.copy_(torch.bmm(values[heads, :, keys], weights.transpose(1, 2)).view(target.shape))
        return _like(out, v)


@blockwise_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(v)


@torch.library.custom_op('aa_models::blockwise_attention_backward', mutates_args=())
def blockwise_attention_backward(
        grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None, scale: float, causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v, rel_h and rel_w (empty where a table is None); arguments as in the forward pass."""
    tables = [q.new_zeros(0) if table is None else table.new_zeros(table.shape) for table in (rel_h, rel_w)]
    if v.numel() == 0 or q.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), tables[0], tables[1]
    with torch.autocast(q.device.type, enabled=False):
        queries, values, grad = _by_heads(q).mul_(scale), _by_heads(v).flatten(2), _by_heads(grad)
        blocks = AttentionBlocks(queries, _by_heads(k).flatten(2), rel_h, rel_w, causal, v.dtype)
        short_q, short_k, short_grad = (t.to(blocks.factor_dtype) for t in (queries, blocks.k, grad))
        grad_q, grad_k, grad_v = torch.zeros_like(queries), torch.zeros_like(blocks.k), torch.zeros_like(values)
        grad_table = None if blocks.table is None else torch.zeros_like(blocks.table)
        for heads in blocks.by_heads():
            for rows, columns, keys in blocks.by_queries():
                weights = blocks.weights(heads, rows, columns, keys)
                grad_v[heads, :, keys] += short_grad[heads, :, rows, columns].flatten(2) @ blocks.as_factor(weights)
                grad_out = grad[heads, :, rows, columns].flatten(2).transpose(1, 2)
                grad_logits = blocks.grad_logits(grad_out, values[heads, :, keys], weights)
                target = grad_q[heads, :, rows, columns]
                if grad_table is not None:
                    target.copy_(blocks.table_gradients(
                        grad_logits, heads, rows, columns, keys, grad_table).view(target.shape))
                grad_logits = blocks.as_factor(grad_logits)
                target += (short_k[heads, :, keys] @ grad_logits.transpose(1, 2)).view(target.shape)
                grad_k[heads, :, keys] += short_q[heads, :, rows, columns].flatten(2) @ grad_logits
        if grad_table is not None:
            parts = grad_table.split([table.shape[0] for table in tables])
            tables = [part.to(table.dtype, copy=True) for part, table in zip(parts, tables)]
        grad_q = grad_q.mul_(scale)
        grad_k, grad_v = _like(grad_k.view_as(grad_q), k), _like(grad_v.view_as(grad), v)
        return _like(grad_q, q), grad_k, grad_v, tables[0], tables[1]


@blockwise_attention_backward.register_fake
def _(grad: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    q, *tables = inputs[0], *inputs[3:5]
    return (
        *(torch.empty_like(t) for t in inputs[:3]),
        *(q.new_empty(0) if table is None else table.new_empty(table.shape) for table in tables))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    saved = ctx.saved_tensors  # gradient checkpointing allows this to be asked once
    if torch.is_grad_enabled():  # create_graph=True: second derivatives are wanted, and the operator below has none
        return (*attention_gradients(grad, *saved, scale=ctx.scale, causal=ctx.causal), None, None)
    *grads, rel_h, rel_w = blockwise_attention_backward(grad, *saved, ctx.scale, ctx.causal)
    tables = [grad if table is not None else None for grad, table in zip((rel_h, rel_w), saved[3:])]
    return (*grads, *tables, None, None)


blockwise_attention.register_autograd(_backward, setup_context=_setup_context)
