"""Time several things by turns, so that whatever else the machine does meets all of them alike."""
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Step = Callable[[], None]
Stopwatch = Callable[[Step, int], float]  # seconds of so many runs one after the other

MIN_TURN = 0.02  # seconds; a shorter turn would time the clock and the caches rather than the step


def wall_clock(step: Step, runs: int) -> float:
    """Seconds of `runs` runs on the CPU."""
    start = time.perf_counter()
    for _ in range(runs):
        step()
    return time.perf_counter() - start


def cuda_events(step: Step, runs: int) -> float:
    """Seconds of `runs` runs on the current CUDA device, which is idle before and after."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(runs):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def by_turns(steps: Mapping[str, Step], rounds: int, warmup: int, stopwatch: Stopwatch) -> dict[str, list[float]]:
    """Run A B C A B C …

    Args:
        steps: What to run, by name.
        rounds: Turns of each that count.
        warmup: Turns of each before those, of one run.
        stopwatch: `wall_clock` or `cuda_events`.

    Returns:
        For each name the seconds of one run, a figure per round. A turn is as many runs as fill `MIN_TURN`.
    """
    seconds = {}
    for _ in range(warmup):
        seconds = {name: stopwatch(step, 1) for name, step in steps.items()}
    runs = {name: max(1, math.ceil(MIN_TURN / max(s, 1e-6))) for name, s in seconds.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(stopwatch(step, runs[name]) / runs[name])
    return times


def median_ratio(times: Sequence[float], rival: Sequence[float]) -> float:
    """Median of the rounds' own ratios: what slows a whole round down does not show in it."""
    return statistics.median(a / b for a, b in zip(times, rival, strict=True))
