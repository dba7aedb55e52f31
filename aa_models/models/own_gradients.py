"""What convolutions with gradients of their own share."""
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

Pair = tuple[int, int]
_Gradient = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Pair, Pair], torch.Tensor]


def wanted_gradients(
        ctx: Any, grad: torch.Tensor, of_input: _Gradient, of_weight: _Gradient) -> tuple[torch.Tensor | None, ...]:
    """Those of x, weight, stride and padding, what a convolution was called with, as far as autograd asks for them.

    Args:
        ctx: Of its `torch.autograd.Function`: x and weight are saved in it, `stride` and `padding` its attributes.
        grad: Of the output.
        of_input, of_weight: Compute a gradient from `grad`, x, weight, stride and padding.
    """
    x, weight = ctx.saved_tensors
    args = grad, x, weight, ctx.stride, ctx.padding
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    return of_input(*args) if needs_x else None, of_weight(*args) if needs_weight else None, None, None


def is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution has neither dilation nor padding by anything but a number of zeros."""
    return conv.dilation == (1, 1) and conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)


def with_bias(y: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """The output (B, C, H, W) of a convolution, in bfloat16, with its bias if it has one."""
    return y if conv.bias is None else y + conv.bias.bfloat16().view(-1, 1, 1)


def output_size(size: Iterable[int], kernel: Iterable[int], stride: Pair, padding: Pair) -> Pair:
    """Height and width of the output for those of the input."""
    height, width = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride))
    return height, width
