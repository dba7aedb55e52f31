"""Tensors that have a shape and hold nothing: those on the meta device, and all that torch makes in FakeTensorMode."""
import torch
from torch._subclasses import FakeTensor  # where torch documents it


def is_dataless(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds nothing, so that a network of such tensors has learned nothing."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def building_device(device: torch.device | str | None) -> torch.device | str | None:
    """Where to build a network that gets its memory at the end: the meta device.

    In FakeTensorMode nothing has memory, and a batch norm on the meta device is refused: there it is the device itself.

    Args:
        device: Where the network is to live, None for torch's default device.
    """
    return device if isinstance(torch.empty(0), FakeTensor) else 'meta'
