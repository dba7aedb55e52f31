"""Convolutions of small maps in bfloat16 on a CPU with matrix instructions (AMX), as products of matrices.

oneDNN, which computes them for PyTorch, has slow gradients of the weights where maps have few positions and many
channels, and slow convolutions where they have hardly any: a single product with the patches, copied out, takes a
third to an eighteenth of the time.
"""
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from aa_models.cpu import instruction_sets

from .own_gradients import Pair, is_plain, output_size, wanted_gradients, with_bias

# where products were the faster way by measurement
_CHANNELS = 256  # of the input, at least
_POSITIONS = 64  # of the output map, at most: of the weights' gradient
_FEW_POSITIONS = 16  # of the output
_FEWEST_POSITIONS = 9  # of the input's gradient


def is_slow(conv: nn.Module) -> bool:
    """Whether training of a layer is slow at some size of its map."""
    if type(conv) is not nn.Conv2d or 'amx_bf16' not in instruction_sets():
        return False
    return is_plain(conv) and conv.groups == 1 and conv.kernel_size != (1, 1) and conv.in_channels >= _CHANNELS


def convolve(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """What a layer that `is_slow` makes of x (B, C, H, W) under autocast; its gradients can be computed once."""
    stride, padding = cast(Pair, conv.stride), cast(Pair, conv.padding)
    height, width = output_size(x.shape[2:], conv.kernel_size, stride, padding)
    if min(height, width) < 1 or height * width > _POSITIONS:
        return nn.Conv2d.forward(conv, x)
    return with_bias(_SmallMap.apply(x.bfloat16(), conv.weight.bfloat16(), stride, padding), conv)


class _SmallMap(torch.autograd.Function):
    """A convolution of x (B, C, H, W) with a weight (O, C, k_h, k_w), both in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        height, width = output_size(x.shape[2:], weight.shape[2:], stride, padding)
        if height * width > _FEW_POSITIONS:
            return F.conv2d(x, weight, None, stride, padding)
        return _product(x, weight, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return wanted_gradients(ctx, grad, _input_gradient, _weight_gradient)


def _input_gradient(
        grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair,
) -> torch.Tensor:
    if stride != (1, 1) or grad.shape[2] * grad.shape[3] > _FEWEST_POSITIONS:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (True, False, False))[0]
    height, width = weight.shape[2:]
    turned = weight.flip(2, 3).transpose(0, 1)
    return _product(grad, turned, stride, (height - 1 - padding[0], width - 1 - padding[1]))


def _weight_gradient(
        grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair,
) -> torch.Tensor:
    outputs, inputs, height, width = weight.shape
    by_position = grad.permute(0, 2, 3, 1).reshape(-1, outputs)
    patches = _patches(x, (height, width), stride, padding).flatten(0, 2)
    return (by_position.t() @ patches).view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def _product(x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
    """The convolution."""
    height, width = weight.shape[2:]
    patches = _patches(x, (height, width), stride, padding)
    return (patches @ weight.permute(2, 3, 1, 0).flatten(0, 2)).permute(0, 3, 1, 2)


def _patches(x: torch.Tensor, kernel: Pair, stride: Pair, padding: Pair) -> torch.Tensor:
    """What each position of the output map sees of x, position by position: (B, H_out, W_out, k_h * k_w * C)."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    height, width = (size - k + 1 for size, k in zip(x.shape[1:3], kernel))
    return torch.cat([
        x[:, i:i + height:stride[0], j:j + width:stride[1]] for i in range(kernel[0]) for j in range(kernel[1])], -1)
