"""The multiply-accumulates of a model and of each of its modules."""
import copy

import torch
from timm.data import resolve_input_data_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aa_models.augmentation.conversion import input_channels


@torch.no_grad()
def count_macs_by_module(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> dict[str, int]:
    """Count the multiply-accumulates of each module of a model in the forward pass of one image.

    Counted are convolutions, linear layers and all products of attention in full: queries with keys, queries with
    relative positions, weights with values. For this, attention is computed explicitly, by its definition: torch's
    counter does not know fused attention kernels on every device, and they may pad their operands.

    Args:
        model: Made by timm, on any device; the meta device is fast. The model itself is not changed.
        input_size: (C, H, W); by default what the model's cfg says.

    Returns:
        For the name of each module that multiplies (`''` is the model) its count, which includes its submodules'.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False  # type: ignore[assignment]  # torch types every attribute of a module as a tensor
    parameter = next(model.parameters())
    size = input_size or (input_channels(model), *resolve_input_data_config(model)['input_size'][1:])
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *size, dtype=parameter.dtype, device=parameter.device))
    root = type(model).__name__  # the counter names every module with the model's class in front
    counts = {name.removeprefix(root).removeprefix('.'): operations for name, operations in
              counter.get_flop_counts().items() if name != 'Global'}
    # the counter counts a multiplication and an addition as two operations
    return {'': 0} | {name: sum(operations.values()) // 2 for name, operations in counts.items()}


def count_macs(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> int:
    """Count the multiply-accumulates of a model for one image; arguments as in `count_macs_by_module`."""
    return count_macs_by_module(model, input_size)['']


def in_giga(macs: int) -> str:
    """Write a count as the tables do: in 10⁹, with two decimals."""
    return f'{macs / 1e9:.2f}'
