"""The data configuration and the device, for training and for validation."""
import argparse
import os
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

DATA_KEYS = ('img_size', 'mean', 'std', 'interpolation', 'crop_pct')


def data_config_of(model: nn.Module, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Size, mean, std, filter and crop of the pictures: those wanted, else (None) those of the model's cfg."""
    return timm.data.resolve_data_config({key: wanted[key] for key in DATA_KEYS}, model=model)


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
    place.device = timm.utils.init_distributed_device(place)
    return place


def machine_name(place: argparse.Namespace) -> str:
    """The hardware that `start_device` found, in words."""
    if place.device.type == 'cuda':
        return f'{place.world_size} × {torch.cuda.get_device_name(place.device)}'
    return f'{os.cpu_count()} CPU cores'


def autocast(device: torch.device, enabled: bool, dtype: str) -> torch.autocast:
    """Mixed precision as the recipe names it. The context can be entered again and again."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=enabled)
