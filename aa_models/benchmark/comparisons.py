"""The four benchmarks. Each checks what it was asked for at once and measures while its rows are read."""
import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from timm.data import resolve_input_data_config
from torch import nn

from aa_models.errors import InputError
from aa_models.models.create import build_model, check_image_size, is_own, num_classes_of

from .case import Case, Settings, check_positive
from .measure import Row, measure_groups
from .rivals import LAYERS, make_attention, make_layer

OURS, *RIVALS = LAYERS
MODELS = ('aa_resnet18', 'laa_resnet18', 'aa_resnet50', 'laa_resnet50', 'aa_wrn28_10', 'laa_wrn28_10')
# (H * W)² tensors of all heads that a training step of these layers holds at the same time
_FULL_LOGITS = {'bottleneck': 5, 'naive': 4}


def benchmark_layer(
        size: Sequence[int] = (32,), *, channels: int = 160, num_heads: int = 8, dim_head: int = 20,
        dv: int | None = None, rivals: Sequence[str] = RIVALS, settings: Settings | None = None,
) -> Iterator[Row]:
    """Compare the augmented convolution with other layers of the same channels on one map.

    Args:
        size: Height and width of the map, one number for both.
        channels: Channels of input and output.
        num_heads: Heads of the attention.
        dim_head: Depth of a head's queries and keys.
        dv: Depth of the values, all heads together, by default `channels`; a 3×3 convolution makes the other channels.
        rivals: Layers to compare with, of `RIVALS`.
        settings: How to measure.

    Returns:
        A row of `COLUMNS` for 'aa' and one for each rival, with its ratio to 'aa'.

    Raises:
        InputError: An argument is impossible.
    """
    return _compare_layers(
        [_height_width(size)], math.inf, rivals, settings or Settings(), channels, num_heads, dim_head, dv)


def benchmark_growth(
        sizes: Sequence[int] = (4, 8, 16, 32, 64, 96, 128), *, channels: int = 64, num_heads: int = 8,
        dim_head: int = 20, dv: int | None = None, rivals: Sequence[str] = RIVALS, max_memory: float = 4.,
        settings: Settings | None = None,
) -> Iterator[Row]:
    """Do what `benchmark_layer` does on one square map after the other, by default with one input in a batch.

    Args:
        sizes: Heights and widths of the maps.
        max_memory: GB (10⁹ bytes); a layer is left out from the size on where a step needs more.

    See `benchmark_layer` for the other arguments, the rows and the errors.
    """
    if not max_memory > 0:
        raise InputError(f'max_memory = {max_memory:g} must be more than 0 GB')
    maps = [(size, size) for size in sorted(set(sizes))]
    settings = settings or Settings(batch_size=1)
    return _compare_layers(maps, max_memory, rivals, settings, channels, num_heads, dim_head, dv)


def benchmark_attention(
        size: Sequence[int] = (32,), *, num_heads: int = 8, dim_head: int = 20, dv: int | None = None,
        settings: Settings | None = None,
) -> Iterator[Row]:
    """Compare attention with relative positions with fused attention without any, from q, k and v on.

    See `benchmark_layer` for the arguments and the errors; `dv` is by default the depth of the keys of all heads.

    Returns:
        A row of `COLUMNS` for 'sdpa' and one for 'aa', with its ratio to 'sdpa'.
    """
    check_positive(num_heads=num_heads, dim_head=dim_head, dv=dv)
    dk, size, settings = num_heads * dim_head, _height_width(size), settings or Settings()
    dv = dv or dk
    if dv % num_heads:
        raise InputError(f'dv = {dv} must be a multiple of num_heads = {num_heads}')
    depths = dim_head, dim_head, dv // num_heads
    cases = [Case(name, partial(make_attention, name, 1, dk, dv, num_heads), size, num_heads, settings, depths)
             for name in ('sdpa', 'aa')]
    for case in cases:
        case.check_memory()
    return measure_groups([cases])


def benchmark_model(
        models: Sequence[str] = MODELS, *, img_size: int | None = None, settings: Settings | None = None,
) -> Iterator[Row]:
    """Compare models with their plain counterparts.

    Args:
        models: NAME:RIVAL, two models of timm, or NAME, an augmented network whose rival is the plain network.
        img_size: Side of the input, by default the rival's.
        settings: How to measure.

    Returns:
        For each rival its row of `COLUMNS` and one for each of its models, with the ratio to it.

    Raises:
        InputError: A model is unknown, or its rival is not named.
    """
    check_positive(img_size=img_size)
    groups: dict[str, list[str]] = {}
    for name, rival in map(_pair, models):
        groups.setdefault(rival, [rival]).append(name)
    return measure_groups([_models(names, img_size, settings or Settings()) for names in groups.values()])


def _height_width(size: Sequence[int]) -> tuple[int, int]:
    if not 1 <= len(size) <= 2:
        raise InputError(f'size must be H W, or one number for both, got {" ".join(map(str, size))}')
    return size[0], size[-1]


def _compare_layers(
        maps: Sequence[tuple[int, int]], max_memory: float, rivals: Sequence[str], settings: Settings,
        channels: int, num_heads: int, dim_head: int, dv: int | None,
) -> Iterator[Row]:
    check_positive(size=min(map(min, maps)), channels=channels, num_heads=num_heads, dim_head=dim_head, dv=dv)
    if unknown := set(rivals) - set(RIVALS):
        raise InputError(f'rivals = {", ".join(sorted(unknown))}: possible are {", ".join(RIVALS)}')
    depths = channels, num_heads * dim_head, dv or channels, num_heads
    groups = []
    for size in maps:
        logits = settings.batch_size * num_heads * math.prod(size) ** 2 * getattr(torch, settings.dtype).itemsize
        names = [name for name in dict.fromkeys([OURS, *rivals])
                 if _FULL_LOGITS.get(name, 0) * logits <= 1e9 * max_memory]
        groups.append([Case(name, partial(make_layer, name, *depths), size, channels, settings) for name in names])
        for case in groups[-1]:
            if max_memory == math.inf or case.name == OURS:  # others are left out where they need too much
                case.check_memory()
    return measure_groups(groups, max_memory)


def _pair(text: str) -> tuple[str, str]:
    """Split NAME[:RIVAL]; the rival of an augmented network is the one without its prefix.

    The Lites are augmented with TensorFlow's padding, in the form that timm calls `tf_…`.
    """
    name, _, rival = text.partition(':')
    if not rival and name == (rival := re.sub('^l?aa_', '', re.sub('^l?aa_efficientnet', 'aa_tf_efficientnet', name))):
        raise InputError(f'models: {text!r} needs a rival to be compared with: {name}:RIVAL')
    return name, rival


def _models(names: Sequence[str], img_size: int | None, settings: Settings) -> list[Case]:
    """The rival, which is named first, and its models."""
    rival = build_model(names[0], device='meta')
    size = img_size or resolve_input_data_config(rival)['input_size'][-1]
    cases = [Case(name, partial(_make_model, name, num_classes_of(rival)), (size, size), 3, settings, network=True)
             for name in dict.fromkeys(names)]
    for case in cases:
        case.check_memory()
        check_image_size(case.module('meta'), (3, size, size))
    return cases


def _make_model(name: str, num_classes: int, size: tuple[int, int], **dd: Any) -> nn.Module:
    tables = size if is_own(name) else None  # ours have relative tables, made for a size
    return build_model(name, num_classes=num_classes, img_size=tables, **dd)
