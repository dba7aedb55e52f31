"""What a convolution reads and writes at some of its output pixels."""
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

_SAMPLES = 10  # pixels for each weight of an output channel, at most


def can_read_patches(conv: nn.Module) -> bool:
    """Whether `input_patches` knows what a convolution reads: it pads with as many zeros on either side, or not."""
    return not isinstance(conv.padding, str) and getattr(conv, 'padding_mode', 'zeros') == 'zeros'


def output_pixels(y: torch.Tensor, conv: nn.Conv2d, images: int) -> torch.Tensor:
    """The outputs (B, pixels, C) of a convolution, of its map (B, C, H, W), at the pixels that are looked at.

    Args:
        y: What it gave.
        conv: The convolution.
        images: How many there are in all batches: the more, the fewer pixels of each.
    """
    return y.flatten(2)[:, :, _places(y.shape[2] * y.shape[3], conv, images).to(y.device)].movedim(1, -1)


def input_patches(x: torch.Tensor, conv: nn.Conv2d, images: int) -> torch.Tensor:
    """The inputs (B, pixels, I) of the same pixels, in the order of a filter's weights.

    Args:
        x: What the convolution gets, (B, C, H, W).
        conv: One of those that `can_read_patches` allows.
        images: As above.
    """
    padding = cast(tuple[int, int], conv.padding)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = (
        (size - d * (k - 1) - 1) // s + 1
        for size, d, k, s in zip(x.shape[2:], conv.dilation, conv.kernel_size, conv.stride))
    places = _places(height * width, conv, images)
    corners = places // width * conv.stride[0], places % width * conv.stride[1]
    rows, columns = (
        (corner[:, None] + d * torch.arange(k)).to(x.device)
        for corner, d, k in zip(corners, conv.dilation, conv.kernel_size))
    return x[:, :, rows[:, :, None], columns[:, None, :]].movedim(2, 1).flatten(2)


def _places(pixels: int, conv: Any, images: int) -> torch.Tensor:
    """Which of the pixels of a convolution's output map are looked at, the same of every map."""
    most = -(-_SAMPLES * conv.in_channels * math.prod(conv.kernel_size) // images)
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(0), device='cpu')[:most]
