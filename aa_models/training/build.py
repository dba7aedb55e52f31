"""The model, its data configuration and the device, for training and for validation."""
import argparse
import difflib
import os
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import split_model_name_tag
from torch import nn

DATA_KEYS = ('img_size', 'mean', 'std', 'interpolation', 'crop_pct')


def build_model(name: str, **options: Any) -> nn.Module:
    """`timm.create_model` with errors that say what is possible. Options that are None are left to the model.

    Raises:
        ValueError: No such model or tag, or arguments that it does not take.
    """
    if ':' not in name and not timm.is_model(name):
        names = timm.list_models()
        near = difflib.get_close_matches(name, names, n=3)
        hint = f'; near to it are {", ".join(near)}' if near else f'; timm knows {len(names)}, see aa-models list'
        raise ValueError(f'model = {name!r} is unknown{hint}')
    architecture, tag = ('', '') if ':' in name else split_model_name_tag(name)
    if tag and name not in (tags := timm.list_models(f'{architecture}.*', include_tags=True)):
        raise ValueError(f'model = {name!r} is unknown; the tags of {architecture} are {", ".join(tags) or "none"}')
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        given = ', '.join(f'{k}={v!r}' for k, v in options.items() if v is not None)
        raise ValueError(f'model {name!r} cannot be made with {given}: {error}') from error


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
