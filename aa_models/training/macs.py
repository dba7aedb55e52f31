"""How much a model computes."""
import copy

import torch
from timm.data import resolve_data_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_macs(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> int:
    """Count the multiply-accumulates of one image's way through a model.

    Counted are convolutions, linear layers and all products of attention, q·k, its relative positions and the weighing
    of the values, in full. The counter does not see inside fused attention kernels on every device, so the explicit way
    is taken: it is the definition, where the fused one may pad its operands.

    Args:
        model: Made by timm, on any device; a meta device does, and is fast. It is left as it is.
        input_size: (C, H, W); by default what the model's cfg says.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False
    parameter = next(model.parameters())
    size = input_size or resolve_data_config(model=model)['input_size']
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *size, dtype=parameter.dtype, device=parameter.device))
    return counter.get_total_flops() // 2  # the counter takes a multiplication and an addition for two


def in_giga(macs: int) -> str:
    """Write a count the way tables have it: in 10⁹, with two decimals."""
    return f'{macs / 1e9:.2f}'
