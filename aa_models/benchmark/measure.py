"""Time and peak memory of cases that are compared with one another.

Peak memory is what one step needs beyond its module and its inputs: on CUDA what PyTorch's allocator handed out, on the
CPU the growth of the process's resident memory, so everything counts that a library below PyTorch touched too. There it
is measured in a fresh process for each case, after a tiny one of the same kind has loaded the libraries. Linux can
reset a process's high-water mark; elsewhere the mark only rises, and memory that start-up had left free is not seen.
"""
import contextlib
import ctypes
import dataclasses
import gc
import math
import multiprocessing
import re
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from aa_models.analysis.macs import count_macs
from aa_models.errors import WorkError

from .case import Case
from .machine import describe_machine

Row = dict[str, Any]
MIN_TURN = 0.02  # seconds; a shorter turn would time the clock and the caches rather than the step
# timm's columns in timm's order, then ours
COLUMNS = (
    'model', *(f'infer_{name}' for name in ('samples_per_sec', 'step_time', 'batch_size', 'img_size', 'gmacs')),
    *(f'train_{name}' for name in ('samples_per_sec', 'step_time', 'batch_size', 'img_size')),
    'param_count', 'size', 'rival',
    *(f'{mode}_{name}' for name in ('ratio', 'memory', 'memory_ratio') for mode in ('infer', 'train')), 'machine')


def measure_groups(groups: Sequence[Sequence[Case]], max_memory: float = math.inf) -> Iterator[Row]:
    """Check at once that every case can be made; measure group by group while the rows are read.

    Args:
        groups: Cases with the same settings that are timed together; the others are compared with the first.
        max_memory: GB; a case that needed more is left out of the groups that follow.

    Returns:
        A row for each case, with those of `COLUMNS` that were measured: times in ms, memory in MB (10⁶ bytes),
        param_count in millions, ratios to `rival`, the first case.
    """
    for case in {case.name: case for cases in groups for case in cases}.values():
        case.module('meta')

    def rows() -> Iterator[Row]:
        too_large: set[str] = set()
        for group in groups:
            cases = [case for case in group if case.name not in too_large]
            for row in _measure(cases) if cases else ():
                if max(row.get('infer_memory', 0), row.get('train_memory', 0)) > 1000 * max_memory:
                    too_large.add(row['model'])
                yield row

    return rows()


def _measure(cases: Sequence[Case]) -> Iterator[Row]:
    settings, times = cases[0].settings, {}
    if settings.where.type == 'cuda':
        torch.cuda.set_device(settings.where)
        torch.backends.cudnn.benchmark = True  # sizes do not change
    for mode in settings.modes:
        if settings.compile:
            torch.compiler.reset()  # it gives up on a function that has been compiled often
        times[mode] = time_by_turns({case.name: case.step(mode) for case in cases}, settings.rounds, settings.warmup)
    peaks = {case.name: peak_memory(case) if settings.memory else {} for case in cases}
    for case in cases:
        yield _row(case, cases[0].name, times, peaks)


def _row(case: Case, rival: str, times: dict[str, list[dict[str, float]]], peaks: dict[str, dict[str, int]]) -> Row:
    name, batch_size = case.name, case.settings.batch_size
    row: Row = dict(
        model=name, size='x'.join(map(str, case.size)), machine=describe_machine(case.settings.where))
    if name != rival:
        row['rival'] = rival
    for mode, rounds in times.items():
        seconds = statistics.median(one[name] for one in rounds)
        row |= {f'{mode}_samples_per_sec': batch_size / seconds, f'{mode}_step_time': 1000 * seconds,
                f'{mode}_batch_size': batch_size, f'{mode}_img_size': case.size[-1]}
        if name != rival:
            row[f'{mode}_ratio'] = statistics.median(one[name] / one[rival] for one in rounds)
    for mode, peak in peaks[name].items():
        row[f'{mode}_memory'] = peak / 1e6
        if name != rival and peaks[rival][mode]:  # there is no ratio to nothing
            row[f'{mode}_memory_ratio'] = peak / peaks[rival][mode]
    if not case.depths:  # attention of q, k and v is a part of a layer, without counts of its own
        module = case.module('meta')
        row['param_count'] = sum(p.numel() for p in module.parameters()) / 1e6
        if 'infer' in times:
            row['infer_gmacs'] = count_macs(module, (case.channels, *case.size)) / 1e9
    return row


def time_by_turns(steps: Mapping[str, Callable[[], None]], rounds: int, warmup: int) -> list[dict[str, float]]:
    """For each round after the warmup the seconds of one run by name, from as many runs as fill `MIN_TURN`.

    They run A B C A B C …, so that whatever slows the machine down meets all contestants alike.
    """
    timers = {name: timeit.Timer(step, timer=_clock) for name, step in steps.items()}
    for _ in range(warmup):
        once = {name: one.timeit(1) for name, one in timers.items()}
    runs = {name: math.ceil(MIN_TURN / max(seconds, 1e-6)) for name, seconds in once.items()}
    return [{name: one.timeit(runs[name]) / runs[name] for name, one in timers.items()} for _ in range(rounds)]


def _clock() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()  # what was started shall be done
    return time.perf_counter()


def peak_memory(case: Case) -> dict[str, int]:
    """Bytes that one step needs, by mode."""
    if case.settings.where.type == 'cuda':
        return {mode: _cuda_peak(case, mode) for mode in case.settings.modes}
    spawn = multiprocessing.get_context('spawn')  # a forked process would inherit memory to reuse
    try:
        with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (torch.get_num_threads(),)) as process:
            return process.submit(_resident_peaks, case).result()
    except BrokenProcessPool as error:
        raise WorkError(f'{case.name}: the process that measures memory was killed, maybe for want of it; '
                        '--no-memory (memory=False) does without') from error


def _cuda_peak(case: Case, mode: str) -> int:
    step = case.step(mode)
    step()  # what is made once, as by compilation, is no part of a step
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def _resident_peaks(case: Case) -> dict[str, int]:
    library = ctypes.CDLL(None)
    if glibc := hasattr(library, 'mallopt'):
        # M_MMAP_THRESHOLD, else a growing one: a freed tensor goes back to the system, whatever was freed before
        library.mallopt(-3, 2 ** 17)
    _load_libraries(case)
    peaks, before = {}, 0
    for mode in case.settings.modes:
        step = case.step(mode)
        if case.settings.compile:
            step()  # the compiler needs far more than the step
        gc.collect()
        if glibc:
            library.malloc_trim(0)  # a step that reused free memory would seem to need less than it does
        with contextlib.suppress(OSError):
            Path('/proc/self/clear_refs').write_text('5')  # lowers the mark to what is resident now
            before = 0
        before = before or _high_water()
        step()
        peaks[mode] = _high_water() - before
        del step
    return peaks


def _load_libraries(case: Case) -> None:
    """Run a small step, so that no library is loaded while memory is measured."""
    settings = dataclasses.replace(case.settings, batch_size=2)  # batch norm cannot be trained on a single value
    small = dataclasses.replace(case, settings=settings, size=(32, 32) if case.network else (4, 4))
    try:
        for mode in settings.modes:
            small.step(mode)()
    except Exception:  # not every network takes small pictures
        for mode in settings.modes:
            dataclasses.replace(small, size=case.size).step(mode)()


def _high_water() -> int:
    """Most bytes that were resident at a time."""
    if (status := Path('/proc/self/status')).exists():
        return 1024 * int(re.findall(r'VmHWM:\s*(\d+) kB', status.read_text())[0])
    import resource  # not on every system
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
