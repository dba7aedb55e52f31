"""Draw the accuracy of runs over their epochs.

Runs of one model that differ in nothing but the seed (`NAME-seedN.csv`, or a folder `NAME` or `NAME.TAG` with its
`log.csv`) make one line, their mean, in a band from the lowest to the highest.

Example:
  python -m aa_models.training.curves weights/*.cifar100 weights/logs-cifar100/*.csv -o curves.svg
"""
import argparse
import csv
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from aa_models.analysis.plotting import check_plot

from .checkpoints import LOG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('runs', nargs='+', metavar='RUN', help='a log, or a folder that holds log.csv')
    parser.add_argument('-o', '--output', required=True, metavar='FILE', help='the picture (.png, .svg, .pdf)')
    parser.add_argument('--title', default='', help='printed above')


def run(args: argparse.Namespace) -> int:
    """Read the logs and draw them.

    Raises:
        ValueError: A run without a log or without accuracies, or a picture that cannot be drawn.
    """
    check_plot(args.output)
    groups: dict[str, list[dict[int, float]]] = {}
    for path in map(Path, args.runs):
        name, curve = read_curve(path)
        groups.setdefault(name, []).append(curve)
    draw(groups, args.output, args.title)
    return 0


def read_curve(path: Path) -> tuple[str, dict[int, float]]:
    """The model's name and its top-1 in percent after so many epochs, wherever it was measured.

    Raises:
        ValueError: There is no log, or no accuracy in it.
    """
    log = path / LOG if path.is_dir() else path
    if not log.is_file():
        raise ValueError(f'run = {str(path)!r} is neither a log nor a folder with {LOG}')
    with log.open(newline='', encoding='utf-8') as file:
        curve = {int(row['epoch']) + 1: float(row['eval_top1']) for row in csv.DictReader(file) if row.get('eval_top1')}
    if not curve:
        raise ValueError(f'run = {str(path)!r} has no accuracy (column eval_top1)')
    name = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r'-seed\d+$', '', name).partition('.')[0], curve


def draw(groups: Mapping[str, Sequence[dict[int, float]]], path: str, title: str) -> None:
    """Draw one line for each model.

    Args:
        groups: For each model its runs, top-1 in percent by epoch.
        path: The picture.
        title: Printed above.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for i, (name, curves) in enumerate(sorted(groups.items())):
        epochs = sorted(set.intersection(*map(set, curves)))
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        seeds = f', {len(curves)} seeds' if len(curves) > 1 else ''
        axes.plot(epochs, [sum(v) / len(v) for v in values], f'C{i}.-', label=name + seeds)
        axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=f'C{i}', alpha=0.25, lw=0)
    axes.set(xlabel='epochs', ylabel='top-1, %', title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    figure.savefig(path, dpi=150)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
