"""Tensors that have a shape and hold nothing: those on the meta device, and all that torch makes in FakeTensorMode."""
import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch._subclasses import FakeTensor  # where torch documents it

_AT_ONCE = ContextVar('_AT_ONCE', default=False)


def is_dataless(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds nothing, so that a network of such tensors has learned nothing."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def building_device(device: torch.device | str | None) -> torch.device | str | None:
    """Where to build a network that gets its memory at the end: the meta device.

    In FakeTensorMode nothing has memory, and a batch norm on the meta device is refused: there it is the device itself,
    and so it is within `memory_at_once`.

    Args:
        device: Where the network is to live, None for torch's default device.
    """
    return device if _AT_ONCE.get() or isinstance(torch.empty(0), FakeTensor) else 'meta'


@contextlib.contextmanager
def memory_at_once() -> Iterator[None]:
    """Networks built within have memory from the start, for layers whose first values nobody can set later."""
    token = _AT_ONCE.set(True)
    try:
        yield
    finally:
        _AT_ONCE.reset(token)
