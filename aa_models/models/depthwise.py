"""Depthwise convolutions whose training in bfloat16 on a CPU is slow, with a backward pass of their own.

oneDNN, which computes them for PyTorch, has no fast code for two gradients in bfloat16: that of the input where the
stride is not 1, and that of kernels larger than 3 × 3.
"""
from typing import Any

import torch
from timm.layers import Conv2dSame, pad_same
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from aa_models.cpu import multiplies

from .own_gradients import Pair, is_plain, wanted_gradients, with_bias


def is_slow(conv: nn.Module) -> bool:
    """Whether training of a layer is slow."""
    if type(conv) is not nn.Conv2d and not isinstance(conv, Conv2dSame):
        return False
    depthwise = conv.groups == conv.in_channels > 1
    return is_plain(conv) and depthwise and (conv.stride != (1, 1) or max(conv.kernel_size) > 3)


def convolve(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """What a layer that `is_slow` makes of x (B, C, H, W) under autocast; its gradients can be computed once."""
    padding = conv.padding
    if isinstance(conv, Conv2dSame):
        x, padding = pad_same(x, list(conv.kernel_size), list(conv.stride)), (0, 0)
    return with_bias(_Depthwise.apply(x.bfloat16(), conv.weight.bfloat16(), conv.stride, padding), conv)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of x (B, C, H, W) with a weight (m·C, 1, k_h, k_w), both in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        dtype = _dtype()
        return F.conv2d(x.to(dtype), weight.to(dtype), None, stride, padding, 1, x.shape[1]).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return wanted_gradients(ctx, grad, _input_gradient, _weight_gradient)


def _dtype() -> torch.dtype:
    """What to compute in: a CPU without instructions for bfloat16 is slower in it, and rounds every sum to it."""
    return torch.bfloat16 if multiplies(torch.bfloat16) else torch.float32


def _input_gradient(
        grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair,
) -> torch.Tensor:
    dtype = _dtype() if stride == (1, 1) else torch.float32
    like_x = torch.empty_like(x, dtype=dtype)  # the values make no difference
    return _gradients(grad.to(dtype), like_x, weight.to(dtype), stride, padding, (True, False))[0].to(x.dtype)


def _weight_gradient(
        grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair,
) -> torch.Tensor:
    """Piece by piece: a part of the kernel, of 3 × 3 at most, sees a part of the padded input."""
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    gradient = torch.empty_like(weight)
    rows, columns = ([slice(i, i + min(k, 3)) for i in sorted({*range(0, k - 3, 3), max(k - 3, 0)})]
                     for k in weight.shape[2:])
    height, width = ((n - 1) * s for n, s in zip(grad.shape[2:], stride))
    for row in rows:
        for column in columns:
            part = x[:, :, row.start:row.stop + height, column.start:column.stop + width]
            part = part.contiguous(memory_format=torch.channels_last)
            like_part = torch.empty_like(weight[:, :, row, column])
            gradient[:, :, row, column] = _gradients(grad, part, like_part, stride, (0, 0), (False, True))[1]
    return gradient


def _gradients(
        grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair,
        wanted: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and weight, as far as they are wanted."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), x.shape[1], (*wanted, False))[:2]
