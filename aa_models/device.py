"""Which device a command works on, and which of the processes that torchrun started this one is.

One policy for all commands: CUDA where there is one, else the CPU. Any other device (`mps`, `xpu`) has to be named with
`--device`, because none of this package's figures were measured on one.
"""
import os
from dataclasses import dataclass

import torch
from timm.utils.distributed import init_distributed_device_so, is_distributed_env, world_info_from_env

from .errors import InputError


@dataclass(frozen=True)
class Process:
    """This process among those that work together: its device and its number."""
    device: torch.device
    rank: int = 0
    local_rank: int = 0  # among the processes of this machine
    world_size: int = 1

    @property
    def distributed(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1


def find_device(name: str | None) -> torch.device:
    """Turn `--device` into a device that is here.

    Args:
        name: Device in torch's notation; by default CUDA where there is one, else the CPU.

    Raises:
        InputError: It is unknown to torch, or not on this machine.
    """
    here = [torch.device('cpu')]
    if accelerator := torch.accelerator.current_accelerator(check_available=True):
        here += [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
    try:
        wanted = torch.device(name or _default())
    except RuntimeError:  # unknown to torch
        wanted = None
    for device in here:
        if wanted and device.type == wanted.type and wanted.index in (None, device.index):
            return device
    raise InputError(f'--device {name!r} is not on this machine; possible are {", ".join(map(str, here))}')


def start_device(name: str | None) -> Process:
    """Find the device and join the other processes where torchrun started several, each with a device of its own.

    Raises:
        InputError: The device is unknown to torch, or not on this machine.
    """
    kind = (name or _default()).partition(':')[0]
    several = is_distributed_env() and kind != 'cpu'
    device = find_device(f'{kind}:{world_info_from_env()[0]}' if several else name)
    world = init_distributed_device_so(device.type if several else str(device))
    return Process(device, world['global_rank'], world['local_rank'], world['world_size'])


def machine_name(process: Process) -> str:
    """The hardware that `start_device` found, in words."""
    if process.device.type == 'cuda':
        return f'{process.world_size} × {torch.cuda.get_device_name(process.device)}'
    return f'{os.cpu_count()} CPU cores'


def autocast(device: torch.device, enabled: bool, dtype: str) -> torch.autocast:
    """Mixed precision as the recipe names it. The context can be entered again and again."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=enabled)


def _default() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'
