"""Draw the accuracy of training runs over their epochs.

Runs of one model that differ in nothing but the seed (`NAME-seedN.csv`, or a folder `NAME` or `NAME.TAG` with its
`log.csv`) make one line, their mean, in a band from the lowest to the highest. Several tags of a model are lines of
their own.

Example:
  aa-models curves weights/*.cifar100 weights/logs-cifar100/*.csv -o curves.svg
"""
import argparse

from .options import path, path_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', nargs='+', type=path, metavar='RUN', help='a log, or a folder that holds log.csv')
    parser.add_argument('-o', '--output', type=path_text, required=True, metavar='FILE',
                        help='the picture (.png, .svg, .pdf)')
    parser.add_argument('--title', default='', help='printed above (default: none)')


def run(args: argparse.Namespace) -> int:
    from aa_models.training.curves import draw_curves
    draw_curves(args.runs, args.output, args.title)
    return 0
