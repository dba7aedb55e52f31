"""The device, for training, validation and benchmarks."""
import argparse
import os

import torch
from timm.utils import init_distributed_device


def start_device(name: str | None) -> argparse.Namespace:
    """Choose the device and join the other processes where torchrun started several.

    Returns:
        A namespace with `device` (a `torch.device`), `distributed`, `rank`, `local_rank` and `world_size`.
    """
    available = 'cuda' if torch.cuda.is_available() else 'cpu'
    place = argparse.Namespace(device=name or available)
    try:
        kind = torch.device(place.device).type
    except RuntimeError as error:
        raise ValueError(f'device = {name!r} is unknown to torch; here are {available} and cpu') from error
    if kind == 'cuda':
        if not torch.cuda.is_available():
            raise ValueError(f'device = {name!r} is not here; cpu is')
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS repeats its sums only with this
    place.device = init_distributed_device(place)
    return place


def machine_name(place: argparse.Namespace) -> str:
    """The hardware that `start_device` found, in words."""
    if place.device.type == 'cuda':
        return f'{place.world_size} × {torch.cuda.get_device_name(place.device)}'
    return f'{os.cpu_count()} CPU cores'


def autocast(device: torch.device, enabled: bool, dtype: str) -> torch.autocast:
    """Mixed precision as the recipe names it. The context can be entered again and again."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=enabled)
