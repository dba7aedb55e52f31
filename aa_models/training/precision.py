"""In which precision a recipe is computed here: `amp: auto` is decided once for a run, by its first process."""
import dataclasses
import logging
from pathlib import Path

import torch

from aa_models.cpu import cpu_name, instruction_sets, multiplies, slowdown
from aa_models.device import Process, is_fast

from .recipe import Recipe, load_recipe

_logger = logging.getLogger(__name__)


def precision_of(recipe: Recipe) -> str:
    """The precision of a recipe whose `amp` is decided, in words."""
    return f'{recipe.amp_dtype} autocast' if recipe.amp else 'float32'


def with_precision(recipe: Recipe, process: Process, begun: Path | None = None) -> Recipe:
    """Decide `amp: auto`, the same in all processes, and say why; warn where mixed precision was asked for and is slow.

    Args:
        recipe: What is computed.
        process: One of those that compute it.
        begun: The recipe of the run that goes on, if there is such a file: it keeps its precision.

    Returns:
        The recipe with `amp` true or false.

    Raises:
        InputError: `begun` is no recipe.
    """
    if recipe.amp == 'auto':
        decision = [_decide(recipe, process, begun) if process.rank == 0 else False]
        if process.distributed:
            torch.distributed.broadcast_object_list(decision, src=0)
        return dataclasses.replace(recipe, amp=decision[0])
    dtype = getattr(torch, recipe.amp_dtype)
    if recipe.amp and process.rank == 0 and process.device.type == 'cpu' and not multiplies(dtype):
        _logger.warning(
            f'amp = true: {cpu_name()} has no instructions for {recipe.amp_dtype}, a convolution takes '
            f'{slowdown(dtype):.1f} times as long as in float32; --amp auto chooses what is faster')
    return recipe


def _decide(recipe: Recipe, process: Process, begun: Path | None) -> bool:
    if begun is not None and begun.is_file() and isinstance(amp := load_recipe(begun).amp, bool):
        why = 'as the run began'
    else:
        amp = is_fast(process.device, recipe.amp_dtype)
        where = process.device.type
        if where == 'cpu':
            where = f'{cpu_name()} ({", ".join(instruction_sets()) or "instruction sets unknown"})'
        why = f'{where} has {"" if amp else "no "}instructions for {recipe.amp_dtype}'
    _logger.info(f'amp = auto: {precision_of(dataclasses.replace(recipe, amp=amp))}; {why}')
    return amp
