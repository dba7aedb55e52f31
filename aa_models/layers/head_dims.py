"""How deep the keys and the values are: counts, or shares of the output channels by the paper's rule.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 4.
"""
import math
import warnings
from numbers import Integral, Real

from aa_models.errors import InputError, InputTypeError

_MIN_DIM_HEAD = 20  # of the keys, where dk is a share


def is_int(value: object) -> bool:
    """Whether a value is an int of Python or any other library; bools are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a real number of Python or any other library; bools are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _resolve_depth(name: str, depth: int | float, out_channels: int, num_heads: int, min_dim_head: int) -> int:
    """Turn dk or dv into a number of channels, a multiple of `num_heads`.

    An int is that many channels. A float is the share of `out_channels`, rounded down to such a multiple, but at least
    `min_dim_head` channels a head.
    """
    if not is_number(depth):
        raise InputTypeError(f'{name} must be an int (channels) or a float (share of out_channels), got {depth!r}')
    if is_int(depth):
        if depth < num_heads or depth % num_heads:
            raise InputError(f'{name}={depth} must be a positive multiple of num_heads={num_heads}')
        return int(depth)
    if not 0. < depth <= 2.:
        raise InputError(f'{name}={depth} as a share of out_channels must lie in (0, 2]; use an int for channels')
    # a share like 0.29 of 100 is 28.999… in binary: the small summand keeps the floor on the intended side
    return max(min_dim_head, math.floor(depth * out_channels / num_heads + 1e-9)) * num_heads


def resolve_depths(out_channels: int, dk: int | float, dv: int | float, num_heads: int) -> tuple[int, int]:
    """Channels of the keys and of the values by the paper's rule (section 4).

    `dk = max(20 · Nh, ⌊κ · F / Nh⌋ · Nh)` and `dv = ⌊υ · F / Nh⌋ · Nh` for the shares κ and υ of F output channels.

    Returns:
        dk and dv, all heads together; both 0 where `dv` is 0, or with a warning where the share rounds to that.
    """
    if not is_int(num_heads):
        raise InputTypeError(f'num_heads must be an int, got {num_heads!r}')
    if num_heads < 1:
        raise InputError(f'num_heads={num_heads} must be at least 1')
    if not isinstance(dv, bool) and dv == 0:
        return 0, 0
    keys = _resolve_depth('dk', dk, out_channels, num_heads, _MIN_DIM_HEAD)
    values = _resolve_depth('dv', dv, out_channels, num_heads, 0)
    if values > out_channels:
        raise InputError(
            f'dv={dv} gives {values} channels of attention; possible are at most all out_channels={out_channels}')
    if values == 0:
        warnings.warn(
            f'dv={dv} of {out_channels} channels is less than one for each of num_heads={num_heads} heads: '
            'this is a plain convolution', stacklevel=3)
        return 0, 0
    return keys, values
