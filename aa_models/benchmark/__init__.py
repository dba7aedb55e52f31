"""Measure time and memory of layers and models against named rivals.

Contestants run by turns (A B C A B C …), forward alone and through a training step. A ratio is that of a contestant to
its rival in the same round, its median over all rounds: 1.25 is a quarter more. Memory is the extra peak of one step.

Examples:
  aa-models benchmark layer                            the augmented convolution and what it is compared with
  aa-models benchmark attention                        attention alone, against fused attention without positions
  aa-models benchmark growth -o growth.svg             time and memory against the size of the map
  aa-models benchmark model aa_resnet50:resnet50       a model and its plain counterpart
"""
import argparse
import contextlib
import inspect
from collections.abc import Sequence
from types import ModuleType

import torch

from aa_models.analysis.plotting import check_plot

from . import attention, growth, layer, model, options
from .case import Case
from .measure import Row, measure
from .plot import draw
from .report import ResultsFile, Table, head

__all__ = ['add_arguments', 'run']

# Each is a module with `add_arguments(parser)`, `groups(args)`, the cases that are measured together, and
# `title(args)`; its docstring is the help.
BENCHMARKS = {'layer': layer, 'attention': attention, 'growth': growth, 'model': model}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks and their options."""
    benchmarks = parser.add_subparsers(dest='benchmark', metavar='BENCHMARK', required=True)
    for name, module in BENCHMARKS.items():
        text = inspect.getdoc(module) or ''
        benchmark = benchmarks.add_parser(
            name, help=text.partition('\n')[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(benchmark)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, measure, print, and write the results where asked to.

    Raises:
        ValueError: An option, model or device that cannot be used.
    """
    options.check(args)
    benchmark, picture = BENCHMARKS[args.benchmark], getattr(args, 'output', None)
    if picture:
        check_plot(picture)
    groups = benchmark.groups(args)
    for case in {case.name: case for cases in groups for case in cases}.values():
        case.module('meta')  # what cannot be made shall not stop the others half-way
    if torch.device(args.device).type == 'cuda':
        torch.cuda.set_device(args.device)
        torch.backends.cudnn.benchmark = True  # sizes do not change
    title = head(args, benchmark.title(args))
    print(title, flush=True)
    rows = _measure_all(groups, args)
    if picture:
        draw(rows, picture, title)
    return 0


def _measure_all(groups: Sequence[Sequence[Case]], args: argparse.Namespace) -> list[Row]:
    """Measure group by group; what needed more than --max-memory is left out of the groups that follow."""
    modes, memory = options.BENCH[args.bench], not args.no_memory
    limit = getattr(args, 'max_memory', float('inf')) * 1000
    table = Table({case.name for cases in groups for case in cases}, modes, memory)
    print(table.head(), flush=True)
    rows, too_large = [], set()
    with contextlib.ExitStack() as stack:
        file = args.results_file and ResultsFile(
            stack.enter_context(open(args.results_file, 'w', newline='', encoding='utf-8')))
        for cases in groups:
            cases = [case for case in cases if case.name not in too_large]
            new = measure(cases, modes, args.rounds, args.warmup, memory)
            for row in new:
                print(table.line(row), flush=True)
            if file:
                file.add(new)
            rows += new
            too_large |= {row['model'] for row in new if any(row.get(f'{m}_memory', 0) > limit for m in modes)}
    return rows
