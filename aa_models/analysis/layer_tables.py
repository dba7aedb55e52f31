"""Where the parameters and the multiply-accumulates of a model are, layer by layer."""
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from aa_models.augmentation.conversion import input_channels, trace_map_sizes
from aa_models.layers import AugmentedConv2d
from aa_models.models.create import check_image_size

from .macs import count_macs_by_module

NONE = '-'
Layer = AugmentedConv2d | nn.Conv2d | nn.Linear


class Row(NamedTuple):
    """A line of the table; what a layer does not have is `'-'`."""
    layer: str
    kernel: str = NONE
    stride: str = NONE
    channels: str = NONE
    dk: str = NONE
    dv: str = NONE
    heads: str = NONE
    attention: str = NONE
    positions: str = NONE
    output: str = NONE
    attends: str = NONE
    params: int = 0
    macs: int = 0


def layer_table(model: nn.Module, size: tuple[int, int], plain: bool = False) -> list[Row]:
    """List the layers of a model with what they cost.

    Args:
        model: A convnet, best on the meta device, where nothing is computed.
        size: Height and width of the image, pixels.
        plain: List every convolution and linear layer, not only augmented convolutions.

    Returns:
        A row for each of these layers, then one called `'everything else'`; they add up to the last, called `'total'`.

    Raises:
        InputError: The model takes no images of that size.
    """
    layers = dict(_layers(model, plain))
    in_chans = input_channels(model)
    check_image_size(model, (in_chans, *size))
    macs = count_macs_by_module(model, (in_chans, *size))
    maps = trace_map_sizes(model, [name for name, m in layers.items() if not isinstance(m, nn.Linear)], in_chans, size)
    rows = [_row(name, layer, maps.get(name), macs.get(name, 0)) for name, layer in layers.items()]
    total = Row('total', params=_count(model), macs=macs[''])
    rest = Row('everything else', params=total.params - sum(row.params for row in rows),
               macs=total.macs - sum(row.macs for row in rows))
    return [*rows, rest, total]


def _layers(module: nn.Module, plain: bool, prefix: str = '') -> Iterator[tuple[str, Layer]]:
    """The layers that get a row; a layer inside another one that has a row gets none."""
    for name, child in module.named_children():
        if isinstance(child, AugmentedConv2d) or (plain and isinstance(child, (nn.Conv2d, nn.Linear))):
            yield prefix + name, child
        else:
            yield from _layers(child, plain, f'{prefix}{name}.')


def _row(name: str, layer: Layer, output: tuple[int, int] | None, macs: int) -> Row:
    costs: dict[str, Any] = dict(params=_count(layer), macs=macs)
    if isinstance(layer, nn.Linear):
        return Row(name, channels=f'{layer.in_features} > {layer.out_features}', **costs)
    shape: dict[str, Any] = dict(
        kernel=_by(layer.kernel_size), stride=_by(layer.stride), channels=f'{layer.in_channels} > {layer.out_channels}',
        output=_by(output) if output else NONE)
    attn = getattr(layer, 'attn', None)
    if attn is None:
        return Row(name, **shape, **costs)
    return Row(name, **shape, **costs, dk=str(attn.dk), dv=str(attn.dv), heads=str(attn.num_heads),
               attention=type(attn).__name__.removesuffix('Attention').lower(), positions=attn.pos_embed or 'none',
               attends=_by([-(-n // attn.attn_pool) for n in output]) if output else NONE)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _by(pair: Sequence[int]) -> str:
    return 'x'.join(map(str, pair))
