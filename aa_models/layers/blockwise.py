"""Exact softmax attention with relative positions, a block of queries at a time.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.1. The logits of a block are made in one small
buffer that all blocks share, and made again in the backward pass, so no (H * W)² tensor arises in either. Everything is
computed in float32 (float64 for float64 inputs), whatever the inputs are.

A Python loop would be unrolled by every tracer; `torch.library` makes it one operator to all of them.
"""
import math
from collections.abc import Iterator
from typing import Any, cast

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
        # CPUs with bfloat16 instructions multiply it 2 to 3 times as fast, so, as fused kernels do, weights are rounded
        # to it before they are multiplied; float16 has no such instructions on most
        self.short = torch.empty_like(self.buffer, dtype=dtype) if dtype == torch.bfloat16 else self.buffer

    def shorten(self, block: torch.Tensor) -> torch.Tensor:
        """A block as a factor of products: in the inputs' own dtype where that is the faster one."""
        if self.short is self.buffer:
            return block
        return self.short[:block.numel()].view(block.shape).copy_(block)

    def by_heads(self) -> Iterator[slice]:
        """Slices of the M heads that are taken together."""
        for head in range(0, self.q.shape[0], self.heads):
            yield slice(head, min(head + self.heads, self.q.shape[0]))

    def by_queries(self) -> Iterator[tuple[slice, slice, slice]]:
        """Slices of the map's rows and columns whose queries are taken together, and of the keys they see."""
        for row in range(0, self.H, self.rows):
            for column in range(0, self.W, self.columns):
                end = min(column + self.columns, self.W)
                yield slice(row, min(row + self.rows, self.H)), slice(column, end), slice(end if self.causal else None)

    def offsets(self, rows: slice, columns: slice, keys: slice) -> list[slice]:
        """Slices of the table: the offsets between a block's queries and its keys, those of rows and of columns.

        Against the whole table there would be twice as many logits as a sequence has pairs of positions.
        """
        last = self.W if keys.stop is None else keys.stop
        by_row = slice(self.H - rows.stop, 2 * self.H - rows.start - 1)
        by_column = slice(self.W - columns.stop, self.W + last - columns.start - 1)
        if not self.has_rows:
            return [by_column]
        before = 2 * self.H - 1
        return [by_row, slice(before + by_column.start, before + by_column.stop)][:1 + self.has_columns]

    def chosen(self, parts: list[slice]) -> torch.Tensor:
        """Those offsets of the table, transposed: (dim, offsets)."""
        table = cast(torch.Tensor, self.table)
        return torch.cat([table[part] for part in parts]).t()

    def by_keys(
            self,
            relative: torch.Tensor,
            rows: slice,
            columns: slice,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """See logits against offsets (heads, queries, offsets) as those against the keys' rows and columns.

        Query i of n finds key j at the offset j - i, in place j - i + n - 1: with every i it begins one number earlier,
        which is but another stride.

        Returns:
            (heads, query's row, query's column, key's row, 1) and (heads, query's row, query's column, 1, key's
            column), each None without its table.
        """
        H, W = rows.stop - rows.start, columns.stop - columns.start
        M, _, offsets = relative.shape
        strides = H * W * offsets, W * offsets, offsets
        first = H - 1 + self.H if self.has_rows else 0  # of the columns' offsets
        by_row = by_column = None
        if self.has_rows:
            by_row = relative.as_strided(
                (M, H, W, self.H, 1), (strides[0], strides[1] - 1, strides[2], 1, 1), H - 1)
        if self.has_columns:
            by_column = relative.as_strided(
                (M, H, W, 1, offsets - first - W + 1), (strides[0], strides[1], strides[2] - 1, 1, 1), first + W - 1)
        return by_row, by_column

    def spread(self, block: torch.Tensor, rows: slice) -> torch.Tensor:
        """See (heads, queries, keys) as (heads, query's row, query's column, key's row, key's column)."""
        return block.view(block.shape[0], rows.stop - rows.start, -1, self.H, block.shape[2] // self.H)

    def weights(self, heads: slice, rows: slice, columns: slice, keys: slice) -> torch.Tensor:
        """The softmax of a block's logits, (heads, queries, keys), in the buffer."""
        q = self.q[heads, :, rows, columns].flatten(2).transpose(1, 2)
        k = self.k[heads, :, keys]
        size = q.shape[0], q.shape[1], k.shape[2]
        block = self.buffer[:math.prod(size)].view(size)
        if self.table is not None:
            table = self.chosen(self.offsets(rows, columns, keys))
            relative = torch.bmm(q, table.expand(size[0], -1, -1))
            terms = [term for term in self.by_keys(relative, rows, columns) if term is not None]
            out = self.spread(block, rows)
            torch.add(*terms, out=out) if len(terms) == 2 else out.copy_(terms[0])
        torch.baddbmm(block, q, k, beta=0 if self.table is None else 1, out=block)
        if self.causal:  # the last keys are the block's own queries
            future = torch.ones(size[1], size[1], dtype=torch.bool, device=q.device).triu(1)
            block[:, :, columns].masked_fill_(future, -math.inf)
        return torch.softmax(block, dim=2, out=block)

    def collect(self, grad: torch.Tensor, rows: slice, columns: slice, offsets: int) -> torch.Tensor:
        """Sum the gradient of a block's logits into that of its logits against offsets: (heads, queries, offsets)."""
        relative = grad.new_zeros(grad.shape[0], grad.shape[1], offsets)  # not every query has every offset
        grad = self.spread(grad, rows)
        by_row, by_column = self.by_keys(relative, rows, columns)
        if by_row is not None:
            by_row.copy_(grad.sum(4, keepdim=True))
        if by_column is not None:
            by_column.copy_(grad.sum(3, keepdim=True))
        return relative


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
        grad_q, grad_k, grad_v = torch.zeros_like(queries), torch.zeros_like(blocks.k), torch.zeros_like(values)
        grad_table = None if blocks.table is None else torch.zeros_like(blocks.table)
        grad_buffer = torch.empty_like(blocks.buffer)
        for heads in blocks.by_heads():
            for rows, columns, keys in blocks.by_queries():
                weights = blocks.weights(heads, rows, columns, keys)
                grad_v[heads, :, keys] += short_grad[heads, :, rows, columns].flatten(2) @ blocks.shorten(weights)
                grad_logits = grad_buffer[:weights.numel()].view(weights.shape)
                grad_out = grad[heads, :, rows, columns].flatten(2).transpose(1, 2)
                torch.bmm(grad_out, values[heads, :, keys], out=grad_logits)
                torch._softmax_backward_data(grad_logits, weights, 2, weights.dtype, grad_input=grad_logits)
                target = grad_q[heads, :, rows, columns]
                if grad_table is not None:
                    parts = blocks.offsets(rows, columns, keys)
                    table = blocks.chosen(parts)
                    relative = blocks.collect(grad_logits, rows, columns, table.shape[1])
                    block = queries[heads, :, rows, columns].flatten(2)
                    grads = torch.bmm(block, relative).sum(0).t().split([part.stop - part.start for part in parts])
                    for part, grad_part in zip(parts, grads):
                        grad_table[part] += grad_part
                    target.copy_((table @ relative.transpose(1, 2)).view(target.shape))
                grad_logits = blocks.shorten(grad_logits)
                target += (short_k[heads, :, keys] @ grad_logits.transpose(1, 2)).view(target.shape)
                grad_k[heads, :, keys] += short_q[heads, :, rows, columns].flatten(2) @ grad_logits
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


def _no_second_backward(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        'blockwise_attention_backward has no gradient of its own: for second derivatives build the layer after '
        'timm.layers.set_fused_attn(False), or with TIMM_FUSED_ATTN=0 in the environment')


blockwise_attention_backward.register_autograd(_no_second_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    saved = ctx.saved_tensors  # to be asked for but once under gradient checkpointing
    *grads, rel_h, rel_w = blockwise_attention_backward(grad, *saved, ctx.scale, ctx.causal)
    tables = [grad if table is not None else None for grad, table in zip((rel_h, rel_w), saved[3:])]
    return (*grads, *tables, None, None)


blockwise_attention.register_autograd(_backward, setup_context=_setup_context)
