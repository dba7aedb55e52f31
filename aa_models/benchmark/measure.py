"""Measure cases that are compared with one another: rows of the results table."""
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from .case import MODES, Case
from .memory import peak_memory
from .timing import by_turns, cuda_events, median_ratio, wall_clock

Row = dict[str, Any]

# timm's columns in timm's order, then ours
COLUMNS = (
    'model',
    *(f'infer_{name}' for name in ('samples_per_sec', 'step_time', 'batch_size', 'img_size', 'gmacs')),
    *(f'train_{name}' for name in ('samples_per_sec', 'step_time', 'batch_size', 'img_size')),
    'param_count',
    'size', 'rival',
    *(f'{mode}_{name}' for name in ('ratio', 'memory', 'memory_ratio') for mode in MODES),
)


def measure(cases: Sequence[Case], modes: Sequence[str], rounds: int, warmup: int, memory: bool) -> list[Row]:
    """Measure cases on the same device together.

    Args:
        cases: The first is what the others are compared with.
        modes: 'infer', 'train' or both.
        rounds: Turns of each case in each mode.
        warmup: Turns before those that count.
        memory: Measure the peak memory too.

    Returns:
        A row for each case, with those of `COLUMNS` that were measured: times in ms, memory in MB (10⁶ bytes),
        param_count in millions, ratios to `rival`, the first case.
    """
    rows = [_describe(case, cases[0], modes) for case in cases]
    for mode in modes:
        _add_times(rows, cases, mode, rounds, warmup)
    if memory:
        for case, row in zip(cases, rows):
            row |= {f'{mode}_memory': peak / 1e6 for mode, peak in peak_memory(case, modes).items()}
        for row in rows[1:]:
            # a contestant that needs none has no ratio
            row |= {f'{mode}_memory_ratio': row[f'{mode}_memory'] / rows[0][f'{mode}_memory']
                    for mode in modes if rows[0][f'{mode}_memory']}
    return rows


def _describe(case: Case, rival: Case, modes: Sequence[str]) -> Row:
    params, macs = case.counts()
    row: Row = dict(model=case.name, size='x'.join(map(str, case.size)))
    if case is not rival:
        row['rival'] = rival.name
    if params is not None:
        row['param_count'] = params / 1e6
    if macs is not None and 'infer' in modes:
        row['infer_gmacs'] = macs / 1e9
    for mode in modes:
        row |= {f'{mode}_batch_size': case.batch_size, f'{mode}_img_size': case.size[-1]}
    return row


def _add_times(rows: Sequence[Row], cases: Sequence[Case], mode: str, rounds: int, warmup: int) -> None:
    cuda = torch.device(cases[0].device).type == 'cuda'
    if cases[0].compile:
        torch.compiler.reset()  # it gives up on a function that has been compiled often
    steps = {case.name: case.step(mode) for case in cases}
    times = by_turns(steps, rounds, warmup, cuda_events if cuda else wall_clock)
    for case, row in zip(cases, rows):
        seconds = statistics.median(times[case.name])
        row |= {f'{mode}_samples_per_sec': case.batch_size / seconds, f'{mode}_step_time': 1000 * seconds}
        if case is not cases[0]:
            row[f'{mode}_ratio'] = median_ratio(times[case.name], times[cases[0].name])
