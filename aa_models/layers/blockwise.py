"""Exact softmax attention with relative positions, a block of queries at a time.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.1. The backward pass makes the logits of each
block again. Sums are in float32 (float64 for float64 inputs), whatever the inputs are; factors of bfloat16 layers are
rounded to it where the CPU has instructions for that. Where there is a C++ kernel for the inputs, it computes all that.

Tracers would unroll the Python loop over the blocks; registered with `torch.library` it is one operator to them.
"""
from typing import Any

import torch

from .attention_blocks import AttentionBlocks
from .attention_dropout import AttentionDropout, dropout_factors, dropout_layout
from .block_layout import BlockLayout
from .cpp_attention import kernel_for
from .explicit import attention_gradients


def _by_heads(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """(B, num_heads, H, W, dim) -> (B * num_heads, H * W, dim), a view where that is possible, in the order of memory.

    Args:
        dtype: By default float32 at least.
    """
    dtype = dtype or torch.promote_types(x.dtype, torch.float32)
    if x.stride(4) == 1:
        return x.to(dtype).flatten(2, 3).flatten(0, 1)
    return x.permute(0, 1, 4, 2, 3).to(dtype).flatten(3).flatten(0, 1).transpose(1, 2)


def _like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B * num_heads, dim, H * W) -> (B, num_heads, H, W, dim) in the dtype and memory order of `like`."""
    B, num_heads, H, W, dim = like.shape
    x = x.view(B, num_heads, dim, H, W).permute(0, 1, 3, 4, 2)
    out = torch.empty_like(like)
    return x if x.dtype == out.dtype and x.stride() == out.stride() else out.copy_(x)


def _blocks(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None,
        scale: float, causal: bool, dropout_p: float, seed: torch.Tensor | None,
) -> tuple[BlockLayout, AttentionBlocks, AttentionDropout | None]:
    M, H, W = q.shape[0] * q.shape[1], q.shape[2], q.shape[3]
    layout = BlockLayout(M, H, W, causal) if seed is None else dropout_layout(M, H, W, causal)
    blocks = AttentionBlocks(_by_heads(q), _by_heads(k), rel_h, rel_w, scale, layout, v.dtype)
    return layout, blocks, None if seed is None else AttentionDropout(dropout_p, seed, layout.logits)


@torch.library.custom_op('aa_models::blockwise_attention', mutates_args=())
def blockwise_attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None,
        scale: float, causal: bool, dropout_p: float = 0., seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weigh the values by dropout(softmax(scale · q · (k + relative embeddings))).

    Args:
        q: Queries (B, num_heads, H, W, dim_k).
        k: Keys, same shape.
        v: Values (B, num_heads, H, W, dim_v).
        rel_h: One row for each offset between rows (2 * H - 1, dim_k), or None.
        rel_w: One row for each offset between columns (2 * W - 1, dim_k), or None.
        scale: Factor of the queries.
        causal: Query i sees keys 0 … i only; H must be 1 then, and rel_h None.
        dropout_p: Probability of dropping a weight.
        seed: One integer, from which the backward pass draws the same numbers again; None for no dropout.

    Returns:
        (B, num_heads, H, W, dim_v) in v's dtype and memory order.
    """
    if v.numel() == 0 or q.numel() == 0:
        return torch.zeros_like(v)
    if kernel := kernel_for(q, k, v, seed):
        return kernel.forward(q, k, v, rel_h, rel_w, scale, causal)
    with torch.autocast(q.device.type, enabled=False):
        layout, blocks, dropout = _blocks(q, k, v, rel_h, rel_w, scale, causal, dropout_p, seed)
        values = _by_heads(v, blocks.factor_dtype).transpose(1, 2)
        out = torch.empty(values.shape, dtype=values.dtype, device=v.device)
        for block in layout:
            weights = blocks.weights(block)
            if dropout is not None:
                weights.mul_(dropout.draw(blocks.buffer_like(weights)))
            factors = values[block.heads, :, block.keys], blocks.as_factor(weights).transpose(1, 2)
            if block.whole:
                torch.bmm(*factors, out=out[block.heads])
            else:
                out[block.heads, :, block.queries] = torch.bmm(*factors)
        return _like(out if dropout is None else out.mul_(dropout.scale), v)


@blockwise_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(v)


def _add_product(target: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float = 1.) -> None:
    """target += scale * a @ b, for each of the heads."""
    if a.dtype == target.dtype:
        target.baddbmm_(a, b, alpha=scale)
    else:
        target.add_(torch.bmm(a, b), alpha=scale)  # `@` would copy a transposed factor of one head


@torch.library.custom_op('aa_models::blockwise_attention_backward', mutates_args=())
def blockwise_attention_backward(
        grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None, scale: float, causal: bool, dropout_p: float = 0., seed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v, rel_h and rel_w (empty where a table is None); arguments as in the forward pass."""
    tables = [q.new_zeros(0) if table is None else table.new_zeros(table.shape) for table in (rel_h, rel_w)]
    if v.numel() == 0 or q.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), tables[0], tables[1]
    if kernel := kernel_for(q, k, v, seed):
        return kernel.backward(grad, q, k, v, rel_h, rel_w, scale, causal)
    with torch.autocast(q.device.type, enabled=False):
        layout, blocks, dropout = _blocks(q, k, v, rel_h, rel_w, scale, causal, dropout_p, seed)
        values, grad_out = _by_heads(v).transpose(1, 2), _by_heads(grad)
        short = [blocks.q, blocks.k, grad_out]
        if blocks.factor_dtype != blocks.q.dtype:
            short = [_by_heads(t, blocks.factor_dtype) for t in (q, k, grad)]
        short_q, short_k, short_grad = (t.transpose(1, 2) for t in short)
        grad_q, grad_k, grad_v = (blocks.q.new_zeros(t.shape) for t in (short_q, short_k, values))
        grad_table = None if blocks.table is None else torch.zeros_like(blocks.table)
        kept_scale, mask = 1., torch.empty(0)
        if dropout is not None:
            kept_scale, mask = dropout.scale, blocks.q.new_empty(layout.logits)
            values = values * kept_scale
        for block in layout:
            heads, queries, keys = block.heads, block.queries, block.keys
            weights = blocks.weights(block)
            used = weights
            if dropout is not None:
                kept = dropout.draw(mask[:weights.numel()].view(weights.shape))
                used = torch.mul(weights, kept, out=blocks.buffer_like(weights))
            _add_product(grad_v[heads, :, keys], short_grad[heads, :, queries], blocks.as_factor(used), kept_scale)
            # the gradient of the weights, then of the logits
            grad_logits = torch.bmm(
                grad_out[heads, queries], values[heads, :, keys], out=blocks.buffer_like(weights))
            if dropout is not None:
                grad_logits.mul_(kept)
            grad_logits.mul_(weights)
            grad_logits.addcmul_(weights, grad_logits.sum(2, keepdim=True), value=-1)
            if grad_table is not None:
                grad_q[heads, :, queries] = blocks.table_gradients(grad_logits, block, grad_table)
            grad_logits = blocks.as_factor(grad_logits)
            _add_product(grad_q[heads, :, queries], short_k[heads, :, keys], grad_logits.transpose(1, 2), scale)
            _add_product(grad_k[heads, :, keys], short_q[heads, :, queries], grad_logits, scale)
        if grad_table is not None:
            parts = grad_table.mul_(scale).split([table.shape[0] for table in tables])
            tables = [part.to(table.dtype, copy=True) for part, table in zip(parts, tables)]
        return _like(grad_q, q), _like(grad_k, k), _like(grad_v, v), tables[0], tables[1]


@blockwise_attention_backward.register_fake
def _(grad: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    q, *tables = inputs[0], *inputs[3:5]
    return (
        *(torch.empty_like(t) for t in inputs[:3]),
        *(q.new_empty(0) if table is None else table.new_empty(table.shape) for table in tables))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale, ctx.causal, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(*tensors, seed)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    q, k, v, rel_h, rel_w, seed = ctx.saved_tensors  # gradient checkpointing allows this to be asked once
    if torch.is_grad_enabled():  # create_graph=True: second derivatives are wanted, and the operator below has none
        factors = None if seed is None else dropout_factors(v, ctx.causal, ctx.dropout_p, seed)
        grads = attention_gradients(
            grad, q, k, v, rel_h, rel_w, scale=ctx.scale, causal=ctx.causal, factors=factors)
        return (*grads, None, None, None, None)
    *grads, grad_h, grad_w = blockwise_attention_backward(
        grad, q, k, v, rel_h, rel_w, ctx.scale, ctx.causal, ctx.dropout_p, seed)
    tables = [None if table is None else grad for table, grad in ((rel_h, grad_h), (rel_w, grad_w))]
    return (*grads, *tables, None, None, None, None)


blockwise_attention.register_autograd(_backward, setup_context=_setup_context)
