"""Convolutions whose training in bfloat16 on a CPU is slow in PyTorch, computed in other ways."""
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import depthwise, small_maps


def speed_up_training(model: nn.Module, device: torch.device, dtype: str) -> None:
    """Let a network that trains under bfloat16 autocast on a CPU compute convolutions in faster ways.

    Args:
        model: Its layers keep their parameters and results; where gradients are computed, those of some convolutions
            are computed here, once (no second derivatives).
        device: Of the network; other than a CPU, nothing is done.
        dtype: Of autocast; other than 'bfloat16', nothing is done.
    """
    if device.type != 'cpu' or dtype != 'bfloat16':
        return
    for conv in model.modules():
        for kind in (depthwise, small_maps):
            if kind.is_slow(conv):
                # before the method of its class
                vars(conv)['forward'] = functools.partial(_forward, conv, kind.convolve)


def _forward(conv: nn.Module, convolve: Callable[[Any, torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() and torch.is_autocast_enabled('cpu'):
        return convolve(conv, x)
    return type(conv).forward(conv, x)
