"""All attention maps of a picture in little room: a byte for each weight.

A weight is kept as a multiple of the average weight of its map, which is what maps of different sizes have in common.
The largest of each query is kept as it is, and of the others the square root of their share of it, in 255 steps. So
`largest * (code / 255) ** 2` differs from a weight by no more than 0.4 % of the largest one of its query.
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

STEPS = 255


@dataclass(frozen=True)
class CompactMaps:
    """The maps of a layer; `rows` x `columns` is their size in blocks of cells, positions are in row-major order."""
    height: int  # of the layer's map
    width: int
    block: int  # side of the squares of cells whose mean is kept; 1: every cell is
    largest: torch.Tensor  # (num_heads, rows * columns), float32: of each query, in multiples of the average weight
    codes: torch.Tensor  # (num_heads, rows * columns, rows * columns), uint8: query, key


def compact(weights: torch.Tensor, size: tuple[int, int], block: int = 1) -> CompactMaps:
    """Reduce the attention weights of a layer.

    Args:
        weights: (num_heads, H * W, H * W), rows summing to 1.
        size: (H, W).
        block: Side of the squares of cells, of queries and of keys, of which only the mean is kept; those at the
            lower and right edge may hold fewer cells.
    """
    multiples = weights.float() * weights.shape[-1]
    if block > 1:
        keys = _pool(multiples, size, block)  # (num_heads, H * W, blocks)
        multiples = _pool(keys.transpose(1, 2), size, block).transpose(1, 2)
    largest = multiples.amax(2)
    share = multiples / largest[..., None].clamp_min(torch.finfo(torch.float32).tiny)
    codes = (STEPS * share.sqrt()).round().to(torch.uint8)
    return CompactMaps(*size, block, largest.cpu(), codes.cpu())


def _pool(rows: torch.Tensor, size: tuple[int, int], block: int) -> torch.Tensor:
    """Replace a map in the last axis by the means of its blocks: (A, B, H * W) -> (A, B, rows * columns)."""
    maps = rows.unflatten(2, size).flatten(0, 1)[:, None]  # (A * B, 1, H, W)
    pooled = F.avg_pool2d(maps, block, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(1).unflatten(0, rows.shape[:2])


def stored_bytes(num_heads: int, size: tuple[int, int], block: int) -> int:
    """What the maps of a layer take."""
    cells = _cells(size, block)
    return num_heads * cells * (cells + torch.float32.itemsize)


def choose_blocks(maps: Mapping[str, tuple[int, tuple[int, int]]], most: float) -> dict[str, int]:
    """Choose blocks with which the maps of all layers fit into a room; the finest maps give way first, all alike.

    Args:
        maps: For the name of each layer its number of heads and the (H, W) of its map.
        most: Bytes that they may take together.

    Returns:
        The side of each layer's blocks, 1 where every cell can be kept.
    """
    blocks = dict.fromkeys(maps, 1)
    while sum(stored_bytes(*maps[name], block) for name, block in blocks.items()) > most:
        cells = {name: _cells(maps[name][1], block) for name, block in blocks.items()}
        if (finest := max(cells.values())) == 1:
            break
        for name in maps:
            blocks[name] += cells[name] == finest
    return blocks


def _cells(size: tuple[int, int], block: int) -> int:
    return math.prod(math.ceil(side / block) for side in size)
