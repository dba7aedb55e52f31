"""How much a model computes, and which of its modules does."""
import copy

import torch
from timm.data import resolve_data_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_macs_by_module(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> dict[str, int]:
    """Count the multiply-accumulates of one image's way through each module of a model.

    Counted are convolutions, linear layers and all products of attention, q·k, its relative positions and the weighing
    of the values, in full. The counter does not see inside fused attention kernels on every device, so the explicit way
    is taken: it is the definition, where the fused one may pad its operands.

    Args:
        model: Made by timm, on any device; a meta device does, and is fast. It is left as it is.
        input_size: (C, H, W); by default what the model's cfg says.

    Returns:
        For the name of each module that multiplies (`''` is the model) the count, with those of the modules in it.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False  # type: ignore[assignment]  # torch types every attribute of a module as a tensor
    parameter = next(model.parameters())
    size = input_size or resolve_data_config(model=model)['input_size']
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *size, dtype=parameter.dtype, device=parameter.device))
    root = type(model).__name__  # the counter calls the model by its class and names the rest from there
    counts = {name.removeprefix(root).removeprefix('.'): operations for name, operations in
              counter.get_flop_counts().items() if name != 'Global'}
    # the counter takes a multiplication and an addition for two
    return {'': 0} | {name: sum(operations.values()) // 2 for name, operations in counts.items()}


def count_macs(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> int:
    """Count the multiply-accumulates of one image's way through a model; arguments as in `count_macs_by_module`."""
    return count_macs_by_module(model, input_size)['']


def in_giga(macs: int) -> str:
    """Write a count the way tables have it: in 10⁹, with two decimals."""
    return f'{macs / 1e9:.2f}'
