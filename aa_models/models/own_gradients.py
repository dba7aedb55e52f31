"""What convolutions with gradients of their own share."""
from collections.abc import Callable
from typing import Any

import torch

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
