"""Peak memory of a step beyond what its module and its input already hold.

On CUDA that is `torch.cuda.max_memory_allocated` less what was allocated before the step: what PyTorch's allocator
handed out, without the context and without its cache.

On the CPU it is the growth of the process's resident memory, so everything counts that was touched during the step, by
PyTorch or by a library below it, rounded up to pages. It is measured in a fresh process for each case, after a tiny
one of the same kind has loaded the libraries. Linux can reset a process's high-water mark; elsewhere the mark only
rises, and memory that merely fills up what start-up had left free below it is not seen.
"""
import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from .case import Case

_PROC = Path('/proc/self')


def peak_memory(case: Case, modes: Sequence[str]) -> dict[str, int]:
    """Measure one step in each mode.

    Returns:
        Bytes by mode.
    """
    if torch.device(case.device).type == 'cuda':
        return {mode: _cuda_peak(case, mode) for mode in modes}
    spawn = multiprocessing.get_context('spawn')  # a forked process would inherit memory to reuse
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (torch.get_num_threads(),)) as process:
        return process.submit(_resident_peaks, case, modes).result()


def _cuda_peak(case: Case, mode: str) -> int:
    step = case.step(mode)
    step()  # what is made once, as by compilation, is no part of a step
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _resident_peaks(case: Case, modes: Sequence[str]) -> dict[str, int]:
    for mode in modes:
        case.tiny().step(mode)()
    peaks, before = {}, None
    for mode in modes:
        step = case.step(mode)
        if case.compile:
            step()  # the compiler needs far more than the step
        _release_free_memory()
        if _reset_high_water() or before is None:
            before = _high_water()
        step()
        peaks[mode] = _high_water() - before
        del step
    return peaks


def _release_free_memory() -> None:
    """Give back what the C library keeps for later: a step that reused it would seem to need less than it does."""
    gc.collect()
    if hasattr(library := ctypes.CDLL(None), 'malloc_trim'):
        library.malloc_trim(0)


def _reset_high_water() -> bool:
    """Lower the high-water mark to what is resident now, where the system can."""
    try:
        (_PROC / 'clear_refs').write_text('5')
    except OSError:
        return False
    return True


def _high_water() -> int:
    """Most bytes that were resident at a time."""
    if (status := _PROC / 'status').exists():
        line, = [line for line in status.read_text().splitlines() if line.startswith('VmHWM:')]
        return int(line.split()[1]) * 1024
    import resource  # not on every system
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
