"""Products of bfloat16 matrices inside an optimiser, in float32 where the CPU has no instructions for them.

Muon makes its updates orthogonal in bfloat16 on every device, whatever precision the network is in. On such a CPU a
step of it for a ResNet-18 took 79 seconds, and 3.7 so (half a core of AMD Zen 3, torch 2.14).
"""
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from aa_models.cpu import multiplies

_PRODUCTS = (
    torch.addmm, torch.baddbmm, torch.bmm, torch.matmul, torch.mm, torch.Tensor.bmm, torch.Tensor.matmul,
    torch.Tensor.mm, torch.Tensor.__matmul__)


def fast_products(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """What an optimiser's step on `device` is to be made in; results are rounded to bfloat16 as everywhere."""
    slow = device.type == 'cpu' and not multiplies(torch.bfloat16)
    return _InFloat32() if slow else contextlib.nullcontext()


class _InFloat32(TorchFunctionMode):
    def __torch_function__(
            self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _PRODUCTS or any(factor.dtype != torch.bfloat16 for factor in args):
            return func(*args, **kwargs)
        out = kwargs.pop('out', None)
        product = func(*(factor.float() for factor in args), **kwargs)
        return product.bfloat16() if out is None else out.copy_(product)
