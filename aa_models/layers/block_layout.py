"""How attention is cut into blocks: some heads and some queries at a time, small enough for the caches."""
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Logits of a block for each thread: 2 MiB of float32, which caches keep from one step to the next
_BLOCK = 2 ** 19


@dataclass(frozen=True)
class Block:
    """A part of the attention: of some heads, the queries of a part of the map, and the keys that these see."""
    heads: slice
    rows: slice  # of the queries
    columns: slice
    queries: slice  # the same, as positions: whole rows or a part of one
    keys: slice
    whole: bool  # all queries and all keys


class BlockLayout:
    """The blocks of an attention.

    Args:
        M: Images times heads.
        H: Rows of the map.
        W: Columns of the map.
        causal: Query i sees keys 0 … i only (maps of one row).
        threads: That share the work, by default as many as torch has.
    """

    def __init__(self, M: int, H: int, W: int, causal: bool = False, threads: int | None = None) -> None:
        self.M, self.H, self.W, self.causal = M, H, W, causal
        N, threads = H * W, threads or torch.get_num_threads()
        heads = min(M, max(threads, _BLOCK * threads // N ** 2))
        self.heads = math.ceil(M / math.ceil(M / heads))  # as many rounds, of even size
        queries = max(1, _BLOCK * threads // (self.heads * N))
        # whole rows or a part of one: both are slices of the positions
        self.rows = max(1, min(H, queries // W))
        self.columns = math.ceil(W / math.ceil(W / queries))

    @property
    def logits(self) -> int:
        """How many a block has at most."""
        return self.heads * self.rows * self.columns * self.H * self.W

    def __iter__(self) -> Iterator[Block]:
        H, W = self.H, self.W
        whole = self.rows == H and self.columns == W
        for head in range(0, self.M, self.heads):
            heads = slice(head, min(head + self.heads, self.M))
            for row in range(0, H, self.rows):
                rows = slice(row, min(row + self.rows, H))
                for column in range(0, W, self.columns):
                    columns = slice(column, min(column + self.columns, W))
                    queries = slice(row * W + column, (rows.stop - 1) * W + columns.stop)
                    keys = slice(0, columns.stop if self.causal else H * W)
                    yield Block(heads, rows, columns, queries, keys, whole)
