"""Show how time and memory grow with the map.

The layers of `aa-models benchmark layer`, on one map after the other; each goes on until it would exceed --max-memory.

Examples:
  aa-models benchmark growth -o growth.svg --results-file growth.csv
  aa-models benchmark growth --sizes 14 28 56 --rivals conv laa --bench train
"""
import argparse
from collections.abc import Sequence

import torch

from . import options
from .case import Case
from .layer import LayerCase, add_layer_arguments, layers, title

__all__ = ['add_arguments', 'groups', 'title']

SIZES = (4, 8, 16, 32, 64, 96, 128)
# (H * W)² tensors of all heads that a training step of these layers holds at the same time
_FULL_LOGITS = {'bottleneck': 5, 'naive': 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES, metavar='N',
                        help=f'heights and widths of the maps (default: {" ".join(map(str, SIZES))})')
    options.add_common(parser, batch_size=1)
    add_layer_arguments(parser, channels=64)
    parser.add_argument('--max-memory', type=float, default=4., metavar='GB',
                        help='leave a layer out from the size on where a step would need more (default: %(default)g)')
    parser.add_argument('-o', '--output', metavar='PICTURE',
                        help='draw time and memory into this file (.png, .svg, .pdf; needs matplotlib)')


def groups(args: argparse.Namespace) -> Sequence[Sequence[Case]]:
    """For each size the cases that are timed together, each compared with the first of them."""
    maps = [layers(args, (size, size)) for size in sorted(set(args.sizes))]
    return [[case for case in cases if full_logits(case) <= args.max_memory * 1e9] for cases in maps]


def full_logits(case: LayerCase) -> int:
    """Bytes of all logits that a layer holds in full at the same time."""
    logits = case.batch_size * case.num_heads * (case.size[0] * case.size[1]) ** 2
    return _FULL_LOGITS.get(case.name, 0) * logits * getattr(torch, case.dtype).itemsize
