"""Show where the parameters and the multiply-accumulates of a model are, layer by layer.

There is a line for each attention-augmented convolution, one for everything else and one for the whole model: its
figures are the sums of those above. `output` is the size of the layer's output map, `attends` that of the map its
attention works on, smaller where it is pooled. MACs are the multiply-accumulates of one image; attention is counted in
full, products of queries, keys and relative positions and the weighing of the values. A plain network has no augmented
convolution and gets the last two lines. Nothing is downloaded for a model's name, and no weights are made.

Examples:
  aa-models info aa_resnet50
  aa-models info aa_resnet18.cifar100 --img-size 640
  aa-models info aa_resnet50 --model-kwargs dk=0.5 dv=0.5 pos_embed=coord
  aa-models info resnet50 --all      every convolution and linear layer
"""
import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from timm.data import resolve_data_config
from torch import nn

from aa_models.augmentation.conversion import trace_map_sizes
from aa_models.layers import AugmentedConv2d
from aa_models.models.create import ParseKeyValues, build_model

from .macs import count_macs_by_module

__all__ = ['Row', 'add_arguments', 'layer_table', 'run']

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument('name', metavar='NAME', help="model of this package or of timm, with or without a tag")
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKeyValues, metavar='KEY=VALUE',
                        help='further arguments of the model')
    parser.add_argument('--img-size', type=int, nargs='+', metavar=('H', 'W'),
                        help="size of the image, pixels, one number for both; this package's models get their relative "
                        "tables made for it, too (default: the model's input size)")
    parser.add_argument('--all', action='store_true',
                        help='a line for every convolution and linear layer, not for augmented ones alone')


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        ValueError: No such model, or an option that it does not take.
    """
    size = args.img_size and (args.img_size[0], args.img_size[-1])
    if size and (len(args.img_size) > 2 or min(size) < 1):
        given = ' '.join(map(str, args.img_size))
        raise ValueError(f'--img-size must be H W, or one number for both, each at least 1, got {given}')
    model = build_model(args.name, device='meta', **args.model_kwargs)
    if size and type(model).__module__.startswith('aa_models.'):
        model = build_model(args.name, device='meta', **{'img_size': size, **args.model_kwargs})
    size = size or resolve_data_config(model=model)['input_size'][1:]
    try:
        rows = layer_table(model, size, args.all)
    except (AssertionError, RuntimeError) as error:  # what a model of timm says of an input that does not suit it
        raise ValueError(f'{args.name} takes no images of {size[0]}x{size[1]} pixels: {error}') from error
    print(f'{args.name}, one image of {size[0]}x{size[1]} pixels')
    _print(rows)
    return 0


def layer_table(model: nn.Module, size: tuple[int, int], plain: bool = False) -> list[Row]:
    """List the layers of a model with what they cost.

    Args:
        model: A convnet, best on the meta device, where nothing is computed.
        size: Height and width of the image, pixels.
        plain: List every convolution and linear layer, not augmented convolutions alone.

    Returns:
        A row for each of these layers, then one called `'everything else'`; they add up to the last, called `'total'`.
    """
    layers = dict(_layers(model, plain))
    in_chans = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    macs = count_macs_by_module(model, (in_chans, *size))
    maps = trace_map_sizes(model, [name for name, m in layers.items() if not isinstance(m, nn.Linear)], in_chans, size)
    rows = [_row(name, layer, maps.get(name), macs.get(name, 0)) for name, layer in layers.items()]
    total = Row('total', params=_count(model), macs=macs[''])
    rest = Row(
        'everything else', params=total.params - sum(row.params for row in rows),
        macs=total.macs - sum(row.macs for row in rows))
    return [*rows, rest, total]


def _layers(module: nn.Module, plain: bool, prefix: str = '') -> Iterator[tuple[str, Layer]]:
    """The layers that get a row, without those inside of another one of them."""
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
    return Row(
        name, **shape, **costs, dk=str(attn.dk), dv=str(attn.dv), heads=str(attn.num_heads),
        attention=type(attn).__name__.removesuffix('Attention').lower(), positions=attn.pos_embed or 'none',
        attends=_by([-(-n // attn.attn_pool) for n in output]) if output else NONE)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _by(pair: Sequence[int]) -> str:
    return 'x'.join(map(str, pair))


def _print(rows: list[Row]) -> None:
    """Write the rows in columns, names to the left and figures to the right, with each row's share of all MACs."""
    total = rows[-1].macs or 1
    header = [*Row._fields[:-2], 'params', 'MACs', 'of all']
    table = [header, *([*row[:-2], f'{row.params:,}', f'{row.macs:,}', f'{row.macs / total:.1%}'] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    for name, *cells in table:
        print('  '.join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:]))]))
