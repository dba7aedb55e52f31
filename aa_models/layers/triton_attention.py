"""Exact softmax attention with relative positions by Triton kernels (`triton_kernels.py`), as one operator of torch.

Where the folded way lengthens queries and keys by H + W numbers and pads values to their length, the kernels add the
relative logits to the product of what there is. Those, against all offsets, are held for some heads at a time.

Triton comes with torch's CUDA builds for Linux; it is imported by the first launch of a kernel.
"""
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .explicit import attention_gradients

_NUMBERS = 2 ** 26  # relative logits, or their gradients, that are held at a time: 256 MiB
_KEYS = 32  # of a tile: with more, registers overflow


def tile_columns(W: int) -> int:
    """How many columns a tile of keys has on a map of W of them."""
    return 8 if W <= 8 else 16 if W <= 16 else _KEYS  # a compiled layer takes each range as a whole


class _Launch:
    """What all kernels of one attention need to know.

    Args:
        q: Queries (B, num_heads, H, W, dim_k).
        v: Values (B, num_heads, H, W, dim_v).
        rel_h: Relative table of the rows, or None.
        rel_w: Relative table of the columns, or None.
        scale: Factor of the queries.
        causal: Query i sees keys 0 … i only.
    """

    def __init__(
            self, q: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None,
            scale: float, causal: bool,
    ) -> None:
        self.M, self.H, self.W = q.shape[0] * q.shape[1], q.shape[2], q.shape[3]
        self.N, self.scale = self.H * self.W, scale
        columns = tile_columns(self.W)
        self.across, self.rows = math.ceil(self.W / columns), _KEYS // columns
        dim_k, dim_v = q.shape[4], v.shape[4]
        # of float32, and of longer vectors, fewer fit into the registers
        self.queries = 64 if q.element_size() == 2 and max(dim_k, dim_v) <= 32 else 32
        self.constants = dict(
            CAUSAL=causal, DIM_K=dim_k, DIM_V=dim_v, PADDED_K=_padded(dim_k), PADDED_V=_padded(dim_v),
            QUERIES=self.queries, ROWS=self.rows, COLUMNS=columns, num_warps=4, num_stages=2)
        offsets = (0 if rel_h is None else self.across * len(rel_h)) + (0 if rel_w is None else len(rel_w))
        self.heads = max(1, _NUMBERS // max(1, self.N * offsets))  # at a time

    def parts(self) -> Iterator[slice]:
        """The heads by turns."""
        return (slice(first, min(first + self.heads, self.M)) for first in range(0, self.M, self.heads))

    def __call__(self, name: str, heads: int, *tensors: torch.Tensor | None) -> None:
        """Run a kernel on some heads; a program for each block of queries, or for each tile of keys."""
        from . import triton_kernels

        programs = math.ceil(self.N / self.queries)
        if name == 'backward_keys':
            programs = math.ceil(self.H / self.rows) * self.across
        kernel = getattr(triton_kernels, name)
        kernel[(heads * programs,)](*tensors, self.H, self.W, self.scale, **self.constants)


def _padded(dim: int) -> int:
    return max(16, 2 ** (dim - 1).bit_length())


def _by_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, num_heads, H, W, dim) -> (B * num_heads, H * W, dim), contiguous."""
    return x.flatten(2, 3).flatten(0, 1).contiguous()


def _by_offset(q: torch.Tensor, table: torch.Tensor | None, scale: float) -> torch.Tensor | None:
    """Logits of the queries (heads, N, dim_k) against all offsets of an axis, (heads, N, 2 * length - 1) in float32."""
    return None if table is None else q.float() @ (table.float() * scale).t()


@torch.library.custom_op('aa_models::triton_attention', mutates_args=())
def triton_attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None,
        scale: float, causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weigh the values by softmax(scale · q · (k + relative embeddings)).

    Args:
        q: Queries (B, num_heads, H, W, dim_k), of float32, float16 or bfloat16.
        k: Keys, same shape and dtype.
        v: Values (B, num_heads, H, W, dim_v), same dtype.
        rel_h: One row for each offset between rows (2 * H - 1, dim_k), or None.
        rel_w: One row for each offset between columns (2 * W - 1, dim_k), or None.
        scale: Factor of the queries.
        causal: Query i sees keys 0 … i only; H must be 1 then, and rel_h None.

    Returns:
        (B, num_heads, H, W, dim_v) in v's dtype, and for the backward pass the logarithms of the weights' sums
        (B * num_heads, H * W), which have no gradient.
    """
    launch = _Launch(q, v, rel_h, rel_w, scale, causal)
    out, log_sum = v.new_empty(v.shape), q.new_empty(launch.M, launch.N, dtype=torch.float32)
    if v.numel() == 0 or q.numel() == 0:
        return out.zero_(), log_sum.zero_()
    with torch.autocast(q.device.type, enabled=False), torch.cuda.device_of(q):
        q, k, v, flat = (_by_heads(t) for t in (q, k, v, out))  # the last is a view
        for part in launch.parts():
            offsets = [_by_offset(q[part], table, scale) for table in (rel_h, rel_w)]
            launch(
                'forward', part.stop - part.start, q[part], k[part], v[part], *offsets, flat[part], log_sum[part])
    return out, log_sum


@triton_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    B, num_heads, H, W, _ = q.shape
    return v.new_empty(v.shape), q.new_empty(B * num_heads, H * W, dtype=torch.float32)


@torch.library.custom_op('aa_models::triton_attention_backward', mutates_args=())
def triton_attention_backward(
        grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None, out: torch.Tensor, log_sum: torch.Tensor, scale: float, causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v, rel_h and rel_w (empty where a table is None); arguments and results as forward."""
    launch, tables = _Launch(q, v, rel_h, rel_w, scale, causal), (rel_h, rel_w)
    grads = [t.new_zeros(t.shape) for t in (q, k, v)]
    grad_tables = [q.new_zeros(0 if t is None else t.shape, dtype=torch.float32) for t in tables]
    if v.numel() > 0 and q.numel() > 0:
        with torch.autocast(q.device.type, enabled=False), torch.cuda.device_of(q):
            grad, q, k, v, out = (_by_heads(t) for t in (grad, q, k, v, out))
            tensors = [grad, q, k, v, log_sum, (grad.float() * out.float()).sum(2)]
            results = [_by_heads(t) for t in grads]  # views
            for part in launch.parts():
                _add_gradients(launch, [t[part] for t in tensors], tables, [t[part] for t in results], grad_tables)
    grad_h, grad_w = (q.new_zeros(0) if t is None else g.to(t.dtype) for g, t in zip(grad_tables, tables))
    return grads[0], grads[1], grads[2], grad_h, grad_w


def _add_gradients(
        launch: _Launch, tensors: list[torch.Tensor], tables: Sequence[torch.Tensor | None],
        results: list[torch.Tensor], grad_tables: list[torch.Tensor],
) -> None:
    """Write the gradients of some heads, and add to those of the tables.

    Args:
        tensors: The output's gradient, q, k and v; `log_sum`, and the product of the output and its gradient.
        results: The gradients of q, k and v.
        grad_tables: Those of the tables.
    """
    grad, q, k, v, log_sum, delta = tensors
    by_row, by_column = offsets = [_by_offset(q, table, launch.scale) for table in tables]
    size = [*q.shape[:2], launch.across, 2 * launch.H - 1]  # a part for each column of tiles
    grad_row = None if by_row is None else by_row.new_zeros(size)
    grad_column = None if by_column is None else torch.zeros_like(by_column)
    known = grad, q, k, v, *offsets, log_sum, delta
    grad_q = torch.empty_like(q, dtype=torch.float32)
    launch('backward_queries', len(q), *known, grad_q, grad_row, grad_column)
    launch('backward_keys', len(q), *known, results[1], results[2])
    for by_offset, table, grad_table in zip((grad_row, grad_column), tables, grad_tables):
        if by_offset is not None and table is not None:
            by_offset = (by_offset.sum(2) if by_offset is grad_row else by_offset).flatten(0, 1).mul_(launch.scale)
            grad_q.flatten(0, 1).addmm_(by_offset, table.float())
            grad_table.addmm_(by_offset.t(), q.flatten(0, 1).float())
    results[0].copy_(grad_q)


@triton_attention_backward.register_fake
def _(grad: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    q, *tables = inputs[0], *inputs[3:5]
    return (
        *(t.new_empty(t.shape) for t in inputs[:3]),
        *(q.new_empty(0) if t is None else t.new_empty(t.shape) for t in tables))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    *inputs, out, log_sum = ctx.saved_tensors  # gradient checkpointing allows this to be asked once
    if torch.is_grad_enabled():  # create_graph=True: second derivatives are wanted, and the operator below has none
        return (*attention_gradients(grad, *inputs, scale=ctx.scale, causal=ctx.causal), None, None)
    *grads, grad_h, grad_w = triton_attention_backward(grad, *inputs, out, log_sum, ctx.scale, ctx.causal)
    tables = [None if table is None else grad for table, grad in zip(inputs[3:], (grad_h, grad_w))]
    return (*grads, *tables, None, None)


triton_attention.register_autograd(_backward, setup_context=_setup_context)
