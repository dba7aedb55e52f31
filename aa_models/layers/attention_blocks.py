"""The attention weights of a block of queries, and what their gradients are to queries, keys and relative tables.

All blocks share the same small buffers, so no (H * W)² tensor arises.
"""
import math
from collections.abc import Sequence
from typing import cast

import torch

from aa_models.cpu import multiplies

from .block_layout import Block, BlockLayout


class AttentionBlocks:
    """The attention weights of some heads and some queries at a time.

    Tensors (M, H * W, dim) are multiplied in whatever order their memory has; results are best made as (M, dim, H * W).

    Args:
        q: Queries (M, H * W, dim), M being images times heads.
        k: Keys, same shape.
        rel_h: Relative table of the rows (2 * H - 1, dim), or None.
        rel_w: Relative table of the columns (2 * W - 1, dim), or None.
        scale: Factor of the queries.
        layout: The blocks.
        dtype: Of the layer's own tensors.
    """

    def __init__(
            self, q: torch.Tensor, k: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None,
            scale: float, layout: BlockLayout, dtype: torch.dtype,
    ) -> None:
        self.q, self.k, self.scale, self.causal = q, k, scale, layout.causal
        self.H, self.W = layout.H, layout.W
        tables = [table.to(q.dtype) for table in (rel_h, rel_w) if table is not None]
        self.table = torch.cat(tables).mul_(scale) if tables else None  # scaled in the queries' stead
        self.has_rows, self.has_columns = rel_h is not None, rel_w is not None
        # a block's logits, and in the backward pass then their gradient; its weights
        self._logits = q.new_empty(layout.logits)
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

    def _offsets(self, block: Block) -> list[slice]:
        """Slices of the table with the offsets that occur between a block's queries and its keys, rows then columns.

        Logits against the whole table would be twice as many as a sequence has pairs of positions.
        """
        rows, columns = block.rows, block.columns
        last = block.keys.stop if self.causal else self.W
        by_row = slice(self.H - rows.stop, 2 * self.H - rows.start - 1)
        by_column = slice(self.W - columns.stop, self.W + last - columns.start - 1)
        if not self.has_rows:
            return [by_column]
        before = 2 * self.H - 1
        return [by_row, slice(before + by_column.start, before + by_column.stop)][:1 + self.has_columns]

    def _chosen(self, parts: list[slice]) -> torch.Tensor:
        """The parts of the table side by side, transposed: (dim, offsets)."""
        table = cast(torch.Tensor, self.table)
        if sum(part.stop - part.start for part in parts) == table.shape[0]:
            return table.t()
        return torch.cat([table[part] for part in parts]).t()

    def _by_keys(self, relative: torch.Tensor, block: Block) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """View logits against offsets (heads, queries, offsets) as logits against the keys' rows and columns.

        For query i of n, the offset j - i of key j has the index j - i + n - 1: with each further query the keys begin
        one index earlier, which another stride expresses without a copy.

        Returns:
            (heads, query's row, query's column, key's row, 1) and (heads, query's row, query's column, 1, key's
            column), each None without its table.
        """
        H, W = block.rows.stop - block.rows.start, block.columns.stop - block.columns.start
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

    def _spread(self, logits: torch.Tensor, block: Block) -> torch.Tensor:
        """View (heads, queries, keys) as (heads, query's row, query's column, key's row, key's column)."""
        return logits.view(logits.shape[0], block.rows.stop - block.rows.start, -1, self.H, logits.shape[2] // self.H)

    def weights(self, block: Block) -> torch.Tensor:
        """The softmax of a block's logits, (heads, queries, keys); valid until the next block's."""
        q, k = self.q[block.heads, block.queries], self.k[block.heads, block.keys].transpose(1, 2)
        size = q.shape[0], q.shape[1], k.shape[2]
        logits = _part(self._logits, size)
        if self.table is not None:
            table = self._chosen(self._offsets(block))
            relative = torch.bmm(q, table.expand(size[0], -1, -1))
            terms = [term for term in self._by_keys(relative, block) if term is not None]
            out = self._spread(logits, block)
            torch.add(*terms, out=out) if len(terms) == 2 else out.copy_(terms[0])
        logits.baddbmm_(q, k, beta=0 if self.table is None else 1, alpha=self.scale)
        if self.causal:  # the last keys are the block's own queries
            future = torch.ones(size[1], size[1], dtype=torch.bool, device=q.device).triu(1)
            logits[:, :, block.columns].masked_fill_(future, -math.inf)
        return torch.softmax(logits, dim=2, out=_part(self._weights, size))

    def buffer_like(self, weights: torch.Tensor) -> torch.Tensor:
        """Where the block's logits were, as a tensor of the same shape as its weights."""
        return _part(self._logits, weights.shape)

    def table_gradients(self, grad: torch.Tensor, block: Block, grad_table: torch.Tensor) -> torch.Tensor:
        """Pass the gradient of a block's logits on to the table and to the block's queries.

        Args:
            grad: Of the logits (heads, queries, keys).
            grad_table: Gradient of the table, divided by `scale`, which is added to.

        Returns:
            What the table gives the queries' gradient, (heads, dim, queries).
        """
        parts = self._offsets(block)
        table = self._chosen(parts)
        relative = self._collect(grad, block, table.shape[1])
        by_offset = torch.bmm(self.q[block.heads, block.queries].transpose(1, 2), relative).sum(0).t()
        for part, grad_part in zip(parts, by_offset.split([part.stop - part.start for part in parts])):
            grad_table[part] += grad_part
        return torch.bmm(table.expand(grad.shape[0], -1, -1), relative.transpose(1, 2))

    def _collect(self, grad: torch.Tensor, block: Block, offsets: int) -> torch.Tensor:
        """Sum the gradient of a block's logits into that of its logits against offsets: (heads, queries, offsets)."""
        relative = grad.new_zeros(grad.shape[0], grad.shape[1], offsets)  # not every query has every offset
        grad = self._spread(grad, block)
        by_row, by_column = self._by_keys(relative, block)
        if by_row is not None:
            by_row.copy_(grad.sum(4, keepdim=True))
        if by_column is not None:
            by_column.copy_(grad.sum(3, keepdim=True))
        return relative


def _part(buffer: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The first numbers of a buffer as a tensor of that size."""
    return buffer[:math.prod(size)].view(size)
