"""Depthwise convolutions that are trained in float32, where all else is in bfloat16."""
from typing import Any

import torch
from torch import nn


def keep_depthwise_in_float32(model: nn.Module, device: torch.device, dtype: str) -> None:
    """Let a network under autocast train in float32 what is slower in bfloat16 on a CPU.

    The backward pass of a depthwise convolution takes three to five times as long in bfloat16 as in float32, but for
    those of 3 × 3 with stride 1. Their input and result stay in bfloat16.

    Args:
        model: It gets hooks that act where gradients are computed; autocast is then expected.
        device: Of the network; other than a CPU, nothing is done.
        dtype: Of autocast; other than 'bfloat16', nothing is done.
    """
    if device.type != 'cpu' or dtype != 'bfloat16':
        return
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1 and not _is_fast(conv):
            conv.register_forward_pre_hook(_enter)
            conv.register_forward_hook(_leave, always_call=True)


def _is_fast(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (3, 3) and conv.stride == (1, 1)


def _enter(conv: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    if not torch.is_grad_enabled():
        return args
    torch.set_autocast_enabled('cpu', False)
    return tuple(tensor.float() for tensor in args)


def _leave(conv: nn.Module, args: Any, output: torch.Tensor | None) -> torch.Tensor | None:
    if not torch.is_grad_enabled():
        return output
    torch.set_autocast_enabled('cpu', True)
    return None if output is None else output.bfloat16()  # none: the convolution has failed
