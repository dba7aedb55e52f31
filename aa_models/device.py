"""Which device a command works on, and which of the processes that torchrun started this one is.

One policy for all commands: CUDA where there is one, else the CPU. Any other device (`mps`, `xpu`) has to be named with
`--device`, because none of this package's figures were measured on one.
"""
import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.utils.distributed import init_distributed_device_so, is_distributed_env, world_info_from_env

from .cpu import multiplies
from .errors import InputError, UserError


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

    @contextlib.contextmanager
    def one_first(self, needed: bool = True) -> Iterator[None]:
        """Let one process of each machine run the body before the others, which then find what it fetched."""
        waits = self.distributed and needed
        if waits and self.local_rank != 0:
            torch.distributed.barrier()
        yield
        if waits and self.local_rank == 0:
            torch.distributed.barrier()


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


def check_alone(what: str) -> None:
    """Refuse what several processes started by torchrun cannot share.

    Raises:
        InputError: There are several.
    """
    if is_distributed_env():
        raise InputError(f'{what} takes one process, and torchrun started {world_info_from_env()[2]}')


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


@contextlib.contextmanager
def process_on(name: str | None) -> Iterator[Process]:
    """`start_device` for the time of the body.

    Of several processes, one that fails ends as soon as the interpreter begins to exit, with status 1 or the error's
    own `status`. Where a collective operation is pending, torch 2.11 would wait for it as the interpreter exits, the
    other processes would wait for this one, and torchrun stops them only when a process has ended.
    """
    process = start_device(name)
    try:
        yield process
    except BaseException as error:
        if process.distributed and not isinstance(error, UserError):
            atexit.register(_end_at_once, getattr(error, 'status', 1))
        raise
    if process.distributed:
        torch.distributed.destroy_process_group()


def machine_name(process: Process) -> str:
    """The hardware that `start_device` found, in words."""
    if process.device.type == 'cuda':
        return f'{process.world_size} × {torch.cuda.get_device_name(process.device)}'
    cores = min(torch.get_num_threads() * process.world_size, os.cpu_count() or 1)
    return f'{cores} CPU {"core" if cores == 1 else "cores"}'


def is_fast(device: torch.device, dtype: str) -> bool:
    """Whether mixed precision in that dtype is known to be faster than float32 on a device."""
    return device.type == 'cuda' or (device.type == 'cpu' and multiplies(getattr(torch, dtype)))


def autocast(device: torch.device, enabled: bool, dtype: str) -> torch.autocast:
    """Mixed precision as the recipe names it. The context can be entered again and again."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=enabled)


def _default() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def _end_at_once(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
