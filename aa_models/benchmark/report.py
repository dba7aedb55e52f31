"""Say what was measured: the head, the table, the CSV file."""
import argparse
import csv
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import timm
import torch

from .measure import COLUMNS, Row

_MODE_NAMES = {'infer': 'forward', 'train': 'training'}
_DIGITS = {'param_count': 2, 'samples_per_sec': 2, 'gmacs': 2, 'step_time': 3, 'memory': 2, 'ratio': 3}


def head(args: argparse.Namespace, title: str) -> str:
    """The machine, the versions and the settings, in two lines."""
    if torch.device(args.device).type == 'cuda':
        machine = torch.cuda.get_device_name(args.device)
    else:
        threads = torch.get_num_threads()
        machine = f'{_cpu_name()}, {threads} thread{"s" if threads > 1 else ""}'
    flags = [name for name in ('channels_last', 'compile') if getattr(args, name)]
    return (
        f'{machine}, torch {torch.__version__}, timm {timm.__version__}\n'
        f'{", ".join([title, f"batch {args.batch_size}", args.dtype, *flags])}; median of {args.rounds} rounds')


def _cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


class Table:
    """A table that is printed row by row, as the results come.

    Args:
        names: All names that can occur, which make the widths.
        modes: 'infer', 'train' or both.
        memory: Show the memory too.
    """

    def __init__(self, names: Iterable[str], modes: Sequence[str], memory: bool) -> None:
        self.width = max(len(name) for name in (*names, 'model', 'rival'))
        figures = [('step_time', 'ms', 'ratio')] + [('memory', 'MB', 'memory_ratio')] * memory
        self.columns = [
            (f'{mode}_{column}', head)
            for figure, unit, ratio in figures for mode in modes
            for column, head in ((figure, f'{_MODE_NAMES[mode]} {unit}'), (ratio, 'ratio'))
        ]

    def _line(self, model: str, size: str, rival: str, cells: Iterable[str]) -> str:
        cells = [cell.rjust(max(len(head), 8)) for cell, (_, head) in zip(cells, self.columns)]
        return '  '.join([model.ljust(self.width), size.rjust(7), rival.ljust(self.width), *cells]).rstrip()

    def head(self) -> str:
        return self._line('model', 'size', 'rival', [head for _, head in self.columns])

    def line(self, row: Row) -> str:
        cells = [f'{row[name]:.2f}' if name in row else '' for name, _ in self.columns]
        return self._line(row['model'], row['size'], row.get('rival', ''), cells)


class ResultsFile:
    """A CSV file that is written row by row, so that an interrupted run keeps what it has."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.writer = csv.DictWriter(file, COLUMNS)
        self.writer.writeheader()

    def add(self, rows: Iterable[Row]) -> None:
        """Write rows; cells of what was not measured stay empty."""
        for row in rows:
            self.writer.writerow({name: _rounded(name, value) for name, value in row.items()})
        self.file.flush()


def _rounded(name: str, value: str | int | float) -> str | int | float:
    digits = [n for end, n in _DIGITS.items() if name.endswith(end)]
    return round(value, *digits) if isinstance(value, float) else value
