"""A trained network with attention put into it, as a folder that timm loads: weights, config, card."""
import copy
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard
from timm.data import resolve_input_data_config
from torch import nn
from tqdm import tqdm

from aa_models.analysis.prediction import make_transform
from aa_models.augmentation.calibration import LEAST, Calibrated
from aa_models.augmentation.conversion import augment
from aa_models.augmentation.selection import Where, select
from aa_models.data.pictures import find_pictures, picture_mode, read_picture
from aa_models.errors import InputError
from aa_models.layers import AttentionArgs, AugmentedConv2d
from aa_models.models.create import build_model, check_name, num_classes_of
from aa_models.models.memory import check_memory

from .card import CARD, card_of
from .folder import check_place, replacing
from .saving import save_folder

_BATCH = 32  # pictures


class Conversion(NamedTuple):
    """What came of a conversion."""
    layers: dict[str, tuple[int, int]]  # channels of attention, and all, by the name of the layer
    fits: list[Calibrated]
    calibrated: int  # pictures
    compared: int  # pictures, others
    agreement: float | None  # share of the compared ones that both networks give the same class
    seconds: float  # of the conversion, without reading pictures and comparing


def convert(
        base: str, where: Where, output: Path, attn_args: Mapping[str, Any] | None = None, *,
        images: Path | None = None, num_images: int = 300, img_size: Sequence[int] | None = None,
        device: torch.device | str = 'cpu', report: Callable[[Calibrated], object] | None = None,
) -> Conversion:
    """Convert a network with its weights and write the folder, whole or not at all.

    Args:
        base: Name of a network with weights, `local-dir:…` or `hf-hub:…`.
        where: As `aa_models.augment` takes it.
        output: The folder to be; nothing may be there.
        attn_args: The attention's arguments.
        images: Folder of pictures, with or without folders in it. Which are for what is drawn, always the same; a fifth
            of them at least is kept for the comparison.
        num_images: Pictures to calibrate with, and to compare with, at most.
        img_size: Height and width to make the relative tables for, by default the network's own.
        device: Where to compute.
        report: Told of each fit as soon as it is made.

    Raises:
        InputError: Something is in the way at `output`, there are too few pictures, or as `augment` has it.
        WeightsError: The base has no weights.
    """
    if output.exists():
        raise InputError(f'output = {str(output)!r} exists: choose another, or remove it')
    check_place(output)
    if num_images < LEAST:
        raise InputError(f'num_images must be at least {LEAST}, got {num_images}')
    AttentionArgs().replace(**attn_args or {})
    check_name(base)
    some, others = ([], []) if images is None else _divide(images, num_images)
    model = build_model(base, pretrained=True).to(device).eval()
    names = list(select(model, where))
    size = resolve_input_data_config(model)['input_size']
    check_memory(4 * math.prod(size) * (len(some) + len(others)), f'{len(some) + len(others)} pictures of {size}')
    batches, unseen = _read(model, some), _read(model, others)
    plain = copy.deepcopy(model) if others else None
    fits: list[Calibrated] = []
    start = time.perf_counter()
    with tqdm(total=len(names), unit='layer', leave=False, disable=not sys.stderr.isatty()) as bar:
        def tell(row: Calibrated) -> None:
            fits.append(row)
            bar.update(len({fit.layer for fit in fits}) - bar.n)
            if report:
                report(row)

        augment(model, where=where, img_size=None if img_size is None else (img_size[0], img_size[-1]),
                calibrate=batches or None, report=tell, **attn_args or {})
    seconds = time.perf_counter() - start
    modules = {name: model.get_submodule(name) for name in names}  # some may not be run, and stay as they are
    layers = {name: layer for name, layer in modules.items() if isinstance(layer, AugmentedConv2d)}
    result = Conversion(
        {name: (layer.dv, layer.out_channels) for name, layer in layers.items()}, fits, len(some), len(others),
        None if plain is None else _agreement(plain, model, unseen), seconds)
    with replacing(output, new=True) as part:
        save_folder(model, part)
        _card(output.resolve().name, base, model, result).save(part / CARD)
    return result


def _divide(images: Path, num_images: int) -> tuple[list[Path], list[Path]]:
    """The pictures to calibrate with, and those to compare with."""
    paths = find_pictures([images])
    random.Random(0).shuffle(paths)
    count = min(num_images, len(paths) - max(LEAST, len(paths) // 5))
    if count < LEAST:
        raise InputError(
            f'images = {str(images)!r} holds {len(paths)} pictures, at least {2 * LEAST} are needed and some hundreds '
            'do well')
    return paths[:count], paths[count:count + num_images]


def _read(model: nn.Module, paths: Sequence[Path]) -> list[torch.Tensor]:
    """Batches (B, C, H, W) of pictures as the model was evaluated with them."""
    mode, transform = picture_mode(resolve_input_data_config(model)['input_size'][0]), make_transform(model)
    pictures = [transform(read_picture(path, mode)) for path in paths]
    return [torch.stack(pictures[i:i + _BATCH]) for i in range(0, len(pictures), _BATCH)]


@torch.inference_mode()
def _agreement(plain: nn.Module, model: nn.Module, batches: Sequence[torch.Tensor]) -> float | None:
    """The share of pictures that two networks give the same class; None where they have no classes."""
    if not num_classes_of(model):
        return None
    parameter = next(model.parameters())
    same = []
    for batch in batches:
        batch = batch.to(parameter.device, parameter.dtype)
        same.append(plain(batch).argmax(1) == model(batch).argmax(1))
    return float(torch.cat(same).float().mean())


def _card(name: str, base: str, model: nn.Module, result: Conversion) -> ModelCard:
    """What the network is, what the conversion kept, how to load it."""
    rows = [f'| `{fit.layer}` | `{fit.fitted}` | {fit.before:.3f} | {fit.after:.3f} |' for fit in result.fits]
    layers = [f'| `{layer}` | {dv} of {channels} |' for layer, (dv, channels) in result.layers.items()]
    kept = ''
    if result.agreement is not None:
        kept = (f'It gives the class of the plain network on {result.agreement:.1%} of {result.compared} pictures that '
                'it was not calibrated with.')
    text = Template(Path(__file__).with_name('converted_template.md').read_text(encoding='utf-8')).substitute(
        name=name, base=base, layers='\n'.join(layers), kept=kept, fits='' if not rows else (
            f'Calibrated with {result.calibrated} pictures; how far an output is from the plain one, in parts of its '
            'spread, before and after:\n\n| layer | fitted | before | after |\n|---|---|---|---|\n' + '\n'.join(rows)))
    return card_of(text, model)
