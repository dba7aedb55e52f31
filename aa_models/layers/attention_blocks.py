"""How a map is cut into blocks of queries, and the attention weights of each block.

All blocks share the same small buffers, so no (H * W)² tensor arises.
"""
import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch

from aa_models.cpu import multiplies

# Logits of a block for each thread: 2 MiB of float32, which caches keep from one step to the next
_BLOCK = 2 ** 19


class AttentionBlocks:
    """The attention weights of some heads and some queries at a time.

    All tensors are dense, with the positions as last axis, because CPUs multiply them fastest so.

    Args:
        q: Scaled queries (M, dim, H, W), M being images times heads.
        k: Keys (M, dim, H * W).
        rel_h: Relative table of the rows (2 * H - 1, dim), or None.
        rel_w: Relative table of the columns (2 * W - 1, dim), or None.
        causal: Query i sees keys 0 … i only (maps of one row).
        dtype: Of the layer's own tensors.
    """

    def __init__(
            self, q: torch.Tensor, k: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None,
            causal: bool, dtype: torch.dtype,
    ) -> None:
        self.q, self.k, self.causal = q, k, causal
        tables = [table.to(q.dtype) for table in (rel_h, rel_w) if table is not None]
        self.table = torch.cat(tables) if tables else None
        self.has_rows, self.has_columns = rel_h is not None, rel_w is not None
        M, _, self.H, self.W = q.shape
        N = self.H * self.W
        threads = torch.get_num_threads()
        heads = min(M, max(threads, _BLOCK * threads // N ** 2))
        self.heads = math.ceil(M / math.ceil(M / heads))  # as many rounds, of even size
        queries = max(1, _BLOCK * threads // (self.heads * N))
        # whole rows or a part of one: both are slices of the map
        self.rows = max(1, min(self.H, queries // self.W))
        self.columns = math.ceil(self.W / math.ceil(self.W / queries))
        # a block's logits, and in the backward pass then their gradient; its weights
        self._logits = q.new_empty(self.heads * self.rows * self.columns * N)
        self._weights = torch.empty_like(self._logits)
        # CPUs with bfloat16 instructions multiply it 2 to 3 times as fast as float32; so weights are rounded to it
        # before they are multiplied, as in fused kernels. Without, it takes 16 times as long, and everything stays in
        # float32. So does float16, which ends at 65504 and for which few CPUs have instructions.
        short = dtype == torch.bfloat16 and multiplies(dtype)
        self.factor_dtype = dtype if short else q.dtype
        self._factor = torch.empty_like(self._logits, dtype=dtype) if short else None

    def as_factor(self, block: torch.Tensor) -> torch.Tensor:
        """A block in the dtype of a matrix product's factors."""
        return block if self._factor is None else _part(self._factor, block.shape).copy_(block)

    def by_heads(self) -> Iterator[slice]:
        """Slices of the M heads, one for each round."""
        for head in range(0, self.q.shape[0], self.heads):
            yield slice(head, min(head + self.heads, self.q.shape[0]))

    def by_queries(self) -> Iterator[tuple[slice, slice, slice]]:
        """Slices of the map's rows and columns that hold a block's queries, and of the keys that these see."""
        for row in range(0, self.H, self.rows):
            for column in range(0, self.W, self.columns):
                end = min(column + self.columns, self.W)
                yield slice(row, min(row + self.rows, self.H)), slice(column, end), slice(end if self.causal else None)

    def _offsets(self, rows: slice, columns: slice, keys: slice) -> list[slice]:
        """Slices of the table with the offsets that occur between a block's queries and its keys, rows then columns.

        Logits against the whole table would be twice as many as a sequence has pairs of positions.
        """
        last = self.W if keys.stop is None else keys.stop
        by_row = slice(self.H - rows.stop, 2 * self.H - rows.start - 1)
        by_column = slice(self.W - columns.stop, self.W + last - columns.start - 1)
        if not self.has_rows:
            return [by_column]
        before = 2 * self.H - 1
        return [by_row, slice(before + by_column.start, before + by_column.stop)][:1 + self.has_columns]

    def _chosen(self, parts: list[slice]) -> torch.Tensor:
        """The parts of the table side by side, transposed: (dim, offsets)."""
        table = cast(torch.Tensor, self.table)
        return torch.cat([table[part] for part in parts]).t()

    def _by_keys(
            self, relative: torch.Tensor, rows: slice, columns: slice,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """View logits against offsets (heads, queries, offsets) as logits against the keys' rows and columns.

        For query i of n, the offset j - i of key j has the index j - i + n - 1: with each further query the keys begin
        one index earlier, which another stride expresses without a copy.

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
            by_row = relative.as_strided((M, H, W, self.H, 1), (strides[0], strides[1] - 1, strides[2], 1, 1), H - 1)
        if self.has_columns:
            by_column = relative.as_strided(
                (M, H, W, 1, offsets - first - W + 1), (strides[0], strides[1], strides[2] - 1, 1, 1), first + W - 1)
        return by_row, by_column

    def _spread(self, block: torch.Tensor, rows: slice) -> torch.Tensor:
        """View (heads, queries, keys) as (heads, query's row, query's column, key's row, key's column)."""
        return block.view(block.shape[0], rows.stop - rows.start, -1, self.H, block.shape[2] // self.H)

    def weights(self, heads: slice, rows: slice, columns: slice, keys: slice) -> torch.Tensor:
        """The softmax of a block's logits, (heads, queries, keys); valid until the next block's."""
        q = self.q[heads, :, rows, columns].flatten(2).transpose(1, 2)
        k = self.k[heads, :, keys]
        size = q.shape[0], q.shape[1], k.shape[2]
        block = _part(self._logits, size)
        if self.table is not None:
            table = self._chosen(self._offsets(rows, columns, keys))
            relative = torch.bmm(q, table.expand(size[0], -1, -1))
            terms = [term for term in self._by_keys(relative, rows, columns) if term is not None]
            out = self._spread(block, rows)
            torch.add(*terms, out=out) if len(terms) == 2 else out.copy_(terms[0])
        block.baddbmm_(q, k, beta=0 if self.table is None else 1)
        if self.causal:  # the last keys are the block's own queries
            future = torch.ones(size[1], size[1], dtype=torch.bool, device=q.device).triu(1)
            block[:, :, columns].masked_fill_(future, -math.inf)
        return torch.softmax(block, dim=2, out=_part(self._weights, size))

    def grad_logits(self, grad_out: torch.Tensor, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The gradient of a block's logits, (heads, queries, keys), where the logits were.

        Args:
            grad_out: Gradient of the block's output (heads, queries, dim_v).
            values: Values of its keys (heads, dim_v, keys).
            weights: Of this block.
        """
        grad = torch.bmm(grad_out, values, out=_part(self._logits, weights.shape))
        grad.mul_(weights)
        return grad.addcmul_(weights, grad.sum(2, keepdim=True), value=-1)

    def table_gradients(
            self, grad: torch.Tensor, heads: slice, rows: slice, columns: slice, keys: slice, grad_table: torch.Tensor,
    ) -> torch.Tensor:
        """Pass the gradient of a block's logits on to the table and to the block's queries.

        Args:
            grad: Of the logits, as `grad_logits` returns it.
            heads: The block's, as are the other slices.
            grad_table: Gradient of the table, which is added to.

        Returns:
            What the table gives the queries' gradient, (heads, dim, queries).
        """
        parts = self._offsets(rows, columns, keys)
        table = self._chosen(parts)
        relative = self._collect(grad, rows, columns, table.shape[1])
        by_offset = torch.bmm(self.q[heads, :, rows, columns].flatten(2), relative).sum(0).t()
        for part, grad_part in zip(parts, by_offset.split([part.stop - part.start for part in parts])):
            grad_table[part] += grad_part
        return table @ relative.transpose(1, 2)

    def _collect(self, grad: torch.Tensor, rows: slice, columns: slice, offsets: int) -> torch.Tensor:
        """Sum the gradient of a block's logits into that of its logits against offsets: (heads, queries, offsets)."""
        relative = grad.new_zeros(grad.shape[0], grad.shape[1], offsets)  # not every query has every offset
        grad = self._spread(grad, rows)
        by_row, by_column = self._by_keys(relative, rows, columns)
        if by_row is not None:
            by_row.copy_(grad.sum(4, keepdim=True))
        if by_column is not None:
            by_column.copy_(grad.sum(3, keepdim=True))
        return relative


def _part(buffer: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The first numbers of a buffer as a tensor of that size."""
    return buffer[:math.prod(size)].view(size)
