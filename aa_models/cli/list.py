"""List the models: name and tag, parameters, input size, classes, whether there are weights.

A tag, after the dot of a name, says what the weights have learned: `in1k` (ImageNet), `cifar100`, `tiny_in`
(Tiny-ImageNet: 200 classes of ImageNet at 64 px); with `muon_` before it, by the optimiser of that name. Those of
`from_a1_in1k` are timm's ImageNet weights of the plain network (recipe A1), converted on loading: they are to be
fine-tuned, and their accuracy before was not measured. Without weights a network starts from random ones.

Examples:
  aa-models list                     every model
  aa-models list wrn                 those with `wrn` in their names
  aa-models list 'aa_resnet1*'       those that match a pattern
  aa-models list --pretrained        those with weights
"""
import argparse
import fnmatch

from aa_models.errors import InputError
from aa_models.zoo import read_zoo

from .tables import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'filter', nargs='?', default='', metavar='FILTER',
        help='part of a name, or a pattern with * ? [ ] (default: all)')
    parser.add_argument('--pretrained', action='store_true', help='only models with weights')


def run(args: argparse.Namespace) -> int:
    pattern = args.filter if set(args.filter) & set('*?[') else f'*{args.filter}*'
    rows = [row for row in read_zoo() if (row.weights != '-' or not args.pretrained)
            and any(fnmatch.fnmatch(name, pattern) for name in (row.name, row.name.partition('.')[0]))]
    if not rows:
        with_weights = ' with weights' if args.pretrained else ''
        raise InputError(f'no model{with_weights} matches FILTER {args.filter!r}; `aa-models list` shows all')
    print_table([('model', 'params', 'input', 'classes', 'weights'), *(
        (row.name, f'{row.params / 1e6:.2f} M', row.input_size, str(row.num_classes), row.weights) for row in rows)])
    return 0
