"""Exact softmax attention with relative positions, a block of queries at a time.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.1. The logits of a block are made in one small
buffer that all blocks share, and made again in the backward pass, so no (H * W)² tensor arises in either. Everything is
computed in float32 (float64 for float64 inputs), whatever the inputs are.

A Python loop would be unrolled by every tracer; `torch.library` makes it one operator to all of them.
"""
import math
from collections.abc import Iterator
from typing import Any

import torch

# Logits held at a time for each thread: 2 MiB of float32, so that caches keep them from one step to the next.
_BLOCK = 2 ** 19


class _Blocks:
    """The attention weights of some heads and some queries at a time.

    Dense tensors with positions last throughout: products whose long side lies last are the faster ones on CPUs.

    Args:
        q: Scaled queries (M, dim, H, W), M being images times heads.
        k: Keys (M, dim, H * W).
        rel_h: Relative table of the rows (2 * H - 1, dim), or None.
        rel_w: Relative table of the columns (2 * W - 1, dim), or None.
        causal: Query i sees keys 0 … i only (maps of one row).
        dtype: Of the layer's own tensors.
    """

    def __init__(
            self,
            q: torch.Tensor,
            k: torch.Tensor,
            rel_h: torch.Tensor | None,
            rel_w: torch.Tensor | None,
            causal: bool,
            dtype: torch.dtype,
    ) -> None:
        self.q, self.k, self.causal = q, k, causal
        tables = [table.to(q.dtype) for table in (rel_h, rel_w) if table is not None]
        self.table = torch.cat(tables) if tables else None
        self.has_rows, self.has_columns = rel_h is not None, rel_w is not None
        M, _, self.H, self.W = q.shape
        N = self.H * self.W
        threads = torch.get_num_threads() if q.device.type == 'cpu' else 64
        heads = min(M, max(threads, _BLOCK * threads // N ** 2))
        self.heads = math.ceil(M / math.ceil(M / heads))  # as many rounds, but even ones
        queries = max(1, _BLOCK * threads // (self.heads * N))
        # whole rows, or a part of one: either is a slice of the map that flattens without a copy
        self.rows = max(1, min(self.H, queries // self.W))
        self.columns = math.ceil(self.W / math.ceil(self.W / queries))
        self.buffer = q.new_empty(self.heads * self.rows * self.columns * N)
        # logits of the heads' queries against the offsets of both tables
        self.relative = None if self.table is None else q.new_empty(self.heads, self.H, self.W, len(self.table))
        # CPUs with bfloat16 instructions multiply it 2 to 3 times as fast, so, as fused kernels do, weights are rounded
        # to it before they are multiplied; float16 has no such instructions on most
        self.short = torch.empty_like(self.buffer, dtype=dtype) if dtype == torch.bfloat16 else self.buffer

    def shorten(self, block: torch.Tensor) -> torch.Tensor:
        """A block as a factor of products: in the inputs' own dtype where that is the faster one."""
        if self.short is self.buffer:
            return block
        return self.short[:block.numel()].view(block.shape).copy_(block)

    def by_heads(self) -> Iterator[slice]:
        """Slices of the M heads that are taken together, their relative logits being ready."""
        for head in range(0, self.q.shape[0], self.heads):
            heads = slice(head, head + self.heads)
            if self.table is not None and self.relative is not None:
                q = self.q[heads].flatten(2).transpose(1, 2)
                out = self.relative[:q.shape[0]].flatten(1, 2)
                torch.bmm(q, self.table.t().expand(q.shape[0], -1, -1), out=out)
            yield heads

    def by_queries(self) -> Iterator[tuple[slice, slice, slice]]:
        """Slices of the map's rows and columns whose queries are taken together, and of the keys they see."""
        for row in range(0, self.H, self.rows):
            for column in range(0, self.W, self.columns):
                end = min(column + self.columns, self.W)
                yield slice(row, min(row + self.rows, self.H)), slice(column, end), slice(end if self.causal else None)

    def by_keys(self, relative: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """See logits against offsets as those against the keys' rows (M, H, W, H) and columns (M, H, W, W).

        Query i finds key j of n at the offset j - i, in row j - i + n - 1 of the table: with every i it begins one
        number earlier, which is but another stride.
        """
        M, H, W, _ = relative.shape
        stride_m, stride_h, stride_w, _ = relative.stride()
        rows = columns = None
        if self.has_rows:
            rows = relative.as_strided((M, H, W, H), (stride_m, stride_h - 1, stride_w, 1), H - 1)
        if self.has_columns:
            first = W - 1 + (2 * H - 1 if self.has_rows else 0)
            columns = relative.as_strided((M, H, W, W), (stride_m, stride_h, stride_w - 1, 1), first)
        return rows, columns

    def spread(self, block: torch.Tensor, rows: slice) -> torch.Tensor:
        """See (heads, queries, keys) as (heads, query's row, query's column, key's row, key's column)."""
        return block.view(block.shape[0], rows.stop - rows.start, -1, self.H, block.shape[2] // self.H)

    def weights(self, heads: slice, rows: slice, columns: slice, keys: slice) -> torch.Tensor:
        """The softmax of a block's logits, (heads, queries, keys), in the buffer."""
        q = self.q[heads, :, rows, columns].flatten(2).transpose(1, 2)
        k = self.k[heads, :, keys]
        size = q.shape[0], q.shape[1], k.shape[2]
        block = self.buffer[:math.prod(size)].view(size)
        if self.relative is not None:
            relative = self.by_keys(self.relative[:size[0]])
            terms = [term[:, rows, columns].unsqueeze(4 - i) for i, term in enumerate(relative) if term is not None]
            terms[-1] = terms[-1][..., keys] if self.causal else terms[-1]
            out = self.spread(block, rows)
            torch.add(*terms, out=out) if len(terms) == 2 else out.copy_(terms[0])
        torch.baddbmm(block, q, k, beta=0 if self.table is None else 1, out=block)
        if self.causal:  # the last keys are the block's own queries
            future = torch.ones(size[1], size[1], dtype=torch.bool, device=q.device).triu(1)
            block[:, :, columns].masked_fill_(future, -math.inf)
        return torch.softmax(block, dim=2, out=block)

    def collect(
            self, grad: torch.Tensor, grad_relative: torch.Tensor, rows: slice, columns: slice, keys: slice) -> None:
        """Sum the gradient of a block's logits into that of its relative logits, each entry of which it holds whole."""
        grad = self.spread(grad, rows)
        by_row, by_column = self.by_keys(grad_relative)
        if by_row is not None:
            by_row[:, rows, columns] = grad.sum(4)
        if by_column is not None:
            by_column = by_column[:, rows, columns]
            (by_column[..., keys] if self.causal else by_column).copy_(grad.sum(3))


def _by_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, num_heads, H, W, dim) -> (B * num_heads, dim, H, W), dense, at least float32, always a copy."""
    x = x.permute(0, 1, 4, 2, 3)
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)).copy_(x).flatten(0, 1)


def _like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The way back: (B * num_heads, dim, H, W) -> (B, num_heads, H, W, dim) in `like`'s dtype and order of strides."""
    B, num_heads, H, W, dim = like.shape
    x = x.view(B, num_heads, dim, H, W).permute(0, 1, 3, 4, 2)
    out = torch.empty_like(like)
    return x if x.dtype == out.dtype and x.stride() == out.stride() else out.copy_(x)


@torch.library.custom_op('aa_models::blockwise_attention', mutates_args=())
def blockwise_attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None,
        scale: float,
        causal: bool,
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
        blocks = _Blocks(_by_heads(q).mul_(scale), _by_heads(k).flatten(2), rel_h, rel_w, causal, v.dtype)
        values = _by_heads(v).to(blocks.short.dtype)
        out = torch.empty_like(values)
        values = values.flatten(2)
        for heads in blocks.by_heads():
            for rows, columns, keys in blocks.by_queries():
                weights = blocks.shorten(blocks.weights(heads, rows, columns, keys))
                target = out[heads, :, rows, columns]
                target.copy_(torch.bmm(values[heads, :, keys], weights.transpose(1, 2)).view(target.shape))
        return _like(out, v)


@blockwise_attention.register_fake
def _(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None,
        scale: float,
        causal: bool,
) -> torch.Tensor:
    return torch.empty_like(v)


@torch.library.custom_op('aa_models::blockwise_attention_backward', mutates_args=())
def blockwise_attention_backward(
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None,
        scale: float,
        causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v, rel_h and rel_w (empty where a table is None); arguments as in the forward pass."""
    tables = [q.new_zeros(0) if table is None else table.new_zeros(table.shape) for table in (rel_h, rel_w)]
    if v.numel() == 0 or q.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), tables[0], tables[1]
    with torch.autocast(q.device.type, enabled=False):
        queries, values, grad = _by_heads(q).mul_(scale), _by_heads(v).flatten(2), _by_heads(grad)
        blocks = _Blocks(queries, _by_heads(k).flatten(2), rel_h, rel_w, causal, v.dtype)
        short_q, short_k, short_grad = (t.to(blocks.short.dtype) for t in (queries, blocks.k, grad))
        grad_q, grad_k, grad_v = torch.empty_like(queries), torch.zeros_like(blocks.k), torch.zeros_like(values)
        grad_table = None if blocks.table is None else torch.zeros_like(blocks.table)
        grad_buffer = torch.empty_like(blocks.buffer)
        # what lies beyond the map's own offsets stays zero
        grad_relative = None if blocks.relative is None else torch.zeros_like(blocks.relative)
        for heads in blocks.by_heads():
            for rows, columns, keys in blocks.by_queries():
                weights = blocks.weights(heads, rows, columns, keys)
                grad_v[heads, :, keys] += short_grad[heads, :, rows, columns].flatten(2) @ blocks.shorten(weights)
                grad_logits = grad_buffer[:weights.numel()].view(weights.shape)
                grad_out = grad[heads, :, rows, columns].flatten(2).transpose(1, 2)
                torch.bmm(grad_out, values[heads, :, keys], out=grad_logits)
                torch._softmax_backward_data(grad_logits, weights, 2, weights.dtype, grad_input=grad_logits)
                if grad_relative is not None:
                    blocks.collect(grad_logits, grad_relative[:weights.shape[0]], rows, columns, keys)
                grad_logits = blocks.shorten(grad_logits)
                target = grad_q[heads, :, rows, columns]
                target.copy_((short_k[heads, :, keys] @ grad_logits.transpose(1, 2)).view(target.shape))
                grad_k[heads, :, keys] += short_q[heads, :, rows, columns].flatten(2) @ grad_logits
            if blocks.table is not None and grad_relative is not None and grad_table is not None:
                flat = grad_relative[:queries[heads].shape[0]].flatten(1, 2)  # (heads, H * W, rows of the table)
                table = blocks.table.t().expand(flat.shape[0], -1, -1)
                grad_q[heads].flatten(2).baddbmm_(table, flat.transpose(1, 2))
                grad_table += torch.bmm(queries[heads].flatten(2), flat).sum(0).t()
        if grad_table is not None:
            parts = grad_table.split([table.shape[0] for table in tables])
            tables = [part.to(table.dtype, copy=True) for part, table in zip(parts, tables)]
        grad_q = grad_q.mul_(scale)
        return (
            _like(grad_q, q), _like(grad_k.view_as(grad_q), k), _like(grad_v.view_as(grad), v),
            tables[0], tables[1])


@blockwise_attention_backward.register_fake
def _(
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None,
        scale: float,
        causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    tables = [q.new_empty(0) if table is None else table.new_empty(table.shape) for table in (rel_h, rel_w)]
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), tables[0], tables[1]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    saved = ctx.saved_tensors  # to be asked for but once under gradient checkpointing
    *grads, rel_h, rel_w = blockwise_attention_backward(grad, *saved, ctx.scale, ctx.causal)
    tables = [grad if table is not None else None for grad, table in zip((rel_h, rel_w), saved[3:])]
    return (*grads, *tables, None, None)


blockwise_attention.register_autograd(_backward, setup_context=_setup_context)
