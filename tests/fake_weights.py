"""A small checkpoint under a tag of its own, so that every way to weights is tested whichever real ones exist."""
import contextlib
import hashlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import timm
import torch
from timm.models import generate_default_cfgs, register_model

from aa_models.zoo import weights_cfg

NAME, TAG, NUM_CLASSES, INPUT_SIZE = 'aa_simplecnn', 'test', 7, (3, 24, 32)
NAME_TAG = f'{NAME}.{TAG}'
LABELS = tuple(f'thing_{i}' for i in range(NUM_CLASSES))


def save_checkpoint(folder: Path) -> str:
    """Writes a seeded model with fp16 tensors as `folder/{config.json, model.safetensors}`; returns its SHA-256."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=NUM_CLASSES, img_size=INPUT_SIZE[1:])
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised ones too: each must matter for the logits
            parameter.add_(0.02 * torch.randn_like(parameter))
    timm.models.save_for_hf(
        model.half(), folder, safe_serialization=True,
        data_config=dict(input_size=INPUT_SIZE), model_config=dict(label_names=LABELS))
    return hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()


@contextlib.contextmanager
def registered(sha256: str) -> Iterator[None]:
    """Gives the model the tag, as the only one, while the `with` block lasts."""
    entrypoint = timm.model_entrypoint(NAME)
    cfg = replace(
        timm.get_pretrained_cfg(NAME), num_classes=NUM_CLASSES, input_size=INPUT_SIZE, label_names=LABELS,
        **weights_cfg(NAME_TAG, sha256))
    with mock.patch.dict(sys.modules[entrypoint.__module__].default_cfgs, generate_default_cfgs({NAME_TAG: cfg})):
        _register_again(entrypoint)
        yield
    _register_again(entrypoint)


def _register_again(entrypoint: Callable[..., torch.nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Overwriting')
        register_model(entrypoint)


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits for two fixed random pictures."""
    x = torch.randn(2, *INPUT_SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval()(x)


def put(checkpoint: Path, folder: Path) -> Path:
    """Copy the folder of a checkpoint into another; returns the file of its weights there."""
    shutil.copytree(checkpoint, folder / NAME_TAG)
    return folder / NAME_TAG / 'model.safetensors'
