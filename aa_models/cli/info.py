"""Show where the parameters and the multiply-accumulates of a model are, layer by layer.

There is a line for each attention-augmented convolution, one for everything else and one for the whole model: its
figures are the sums of those above. `output` is the size of the layer's output map, `attends` that of the map its
attention works on, smaller where it is pooled. MACs are the multiply-accumulates of one image; attention is counted in
full, products of queries, keys and relative positions and the weighing of the values. A plain network has no augmented
convolution and gets the last two lines. For the name of a model nothing is downloaded, and its weights take no memory.

Examples:
  aa-models info aa_resnet50
  aa-models info aa_resnet18.cifar100 --img-size 640
  aa-models info aa_resnet50 --model-kwargs dk=0.5 dv=0.5 pos_embed=coord
  aa-models info resnet50 --all      every convolution and linear layer
"""
import argparse

from aa_models.errors import InputError

from .options import key_value, model_name
from .tables import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', type=model_name, metavar='NAME',
                        help='model of this package or of timm, with or without a tag')
    parser.add_argument('--model-kwargs', type=key_value, nargs='*', default=(), metavar='KEY=VALUE',
                        help='further arguments of the model: of augmented ones dk and dv, how many channels, or which '
                        'share of them, keys and values have; num_heads; pos_embed; … '
                        '(default: none)')
    parser.add_argument('--img-size', type=int, nargs='+', metavar=('H', 'W'),
                        help="size of the image, pixels, one number for both; this package's models get their relative "
                        "tables made for it, too (default: the model's input size)")
    parser.add_argument(
        '--all', action='store_true', help='a line for every convolution and linear layer, not only augmented ones')


def run(args: argparse.Namespace) -> int:
    size = args.img_size and (args.img_size[0], args.img_size[-1])
    if size and (len(args.img_size) > 2 or min(size) < 1):
        given = ' '.join(map(str, args.img_size))
        raise InputError(f'--img-size must be H W, or one number for both, each at least 1, got {given}')
    from timm.data import resolve_input_data_config

    from aa_models.analysis.layer_tables import Row, layer_table
    from aa_models.models.create import build_model, is_own

    kwargs = {'img_size': size} if size and is_own(args.name) else {}
    model = build_model(args.name, **{**kwargs, **dict(args.model_kwargs), 'device': 'meta'})
    size = size or resolve_input_data_config(model)['input_size'][1:]
    rows = layer_table(model, size, args.all)
    print(f'{args.name}, one image of {size[0]}x{size[1]} pixels')
    total = rows[-1].macs or 1
    print_table([(*Row._fields[:-2], 'params', 'MACs', 'of all'), *(
        (*row[:-2], f'{row.params:,}', f'{row.macs:,}', f'{row.macs / total:.1%}') for row in rows)])
    return 0
