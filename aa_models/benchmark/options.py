"""Options that several benchmarks share, and what is checked before any of them starts."""
import argparse
from pathlib import Path
from typing import Any

from aa_models.device import start_device

BENCH = {'inference': ('infer',), 'train': ('train',), 'both': ('infer', 'train')}  # timm's words for our modes
DTYPES = ('float32', 'bfloat16', 'float16')
_AT_LEAST_1 = (
    'size', 'sizes', 'img_size', 'batch_size', 'channels', 'num_heads', 'dim_head', 'dv', 'rounds', 'warmup')


def add_common(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Declare where, how and how often something is measured, and where the results go."""
    parser.add_argument('--batch-size', type=int, default=batch_size, metavar='N',
                        help='inputs in a batch (default: %(default)s)')
    parser.add_argument('--bench', default='both', choices=BENCH,
                        help='forward passes, training steps (forward and backward) or both (default: both)')
    parser.add_argument('--dtype', default='float32', choices=DTYPES, help='(default: float32)')
    parser.add_argument('--channels-last', action='store_true', help='keep inputs and weights in channels_last order')
    parser.add_argument('--compile', action='store_true', help='run through torch.compile')
    parser.add_argument('--device', metavar='NAME', help='cpu, cuda or cuda:N (default: cuda where there is one)')
    parser.add_argument('--rounds', type=int, default=10, metavar='N',
                        help='turns of each contestant (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=2, metavar='N',
                        help='turns before those that count (default: %(default)s)')
    parser.add_argument('--no-memory', action='store_true',
                        help='do not measure memory, which on the CPU starts a process for each contestant')
    parser.add_argument('--results-file', metavar='CSV', help="write the results in timm's columns, and some of ours")


def add_size(parser: argparse.ArgumentParser) -> None:
    """Declare the size of the map."""
    parser.add_argument('--size', type=int, nargs='+', default=[32], metavar=('H', 'W'),
                        help='height and width of the map, one number for both (default: 32)')


def add_heads(parser: argparse.ArgumentParser, all_of: str) -> None:
    """Declare the heads of the attention; `all_of` says what dv is by default."""
    parser.add_argument('--num-heads', type=int, default=8, metavar='N', help='heads (default: %(default)s)')
    parser.add_argument('--dim-head', type=int, default=20, metavar='D',
                        help='depth of the queries and keys of a head (default: %(default)s)')
    parser.add_argument('--dv', type=int, metavar='D', help=f'depth of the values of all heads (default: {all_of})')


def size_of(args: argparse.Namespace) -> tuple[int, int]:
    """Height and width of the map."""
    return args.size[0], args.size[-1]


def how(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a `Case` that are the same for all."""
    return {name: getattr(args, name) for name in ('batch_size', 'device', 'dtype', 'channels_last', 'compile')}


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured, and settle `args.device`.

    Raises:
        ValueError: A number is too small, the device is not there, or a file cannot be written where it should be.
    """
    for name in _AT_LEAST_1:
        value = getattr(args, name, None)
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(v is not None and v < 1 for v in values):
            raise ValueError(f'{name} = {" ".join(map(str, values))} must be at least 1')
    if len(getattr(args, 'size', ())) > 2:
        raise ValueError(f'size must be H W, or one number for both, got {" ".join(map(str, args.size))}')
    if not getattr(args, 'max_memory', 1) > 0:
        raise ValueError(f'max_memory = {args.max_memory:g} must be more than 0 GB')
    for name in ('results_file', 'output'):
        path = getattr(args, name, None)
        if path and not Path(path).absolute().parent.is_dir():
            raise ValueError(f'{name} = {path!r} is in a folder that does not exist')
    device = start_device(args.device).device
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f'device = {args.device!r} cannot be timed; possible are cpu and cuda')
    args.device = str(device)
