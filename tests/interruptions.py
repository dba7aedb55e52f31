"""How tests interrupt a training run, and what it is then left with."""
import io
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import torch

from training_runs import checkpoint_of

torch_save = torch.save  # tests put another in its place


def lose_epochs(output: Path, first: int = 1) -> None:
    """Remove the checkpoints of that epoch and of later ones, as if the run had been killed before."""
    for path in output.glob('*.pth.tar'):
        if checkpoint_of(output, path.name.removesuffix('.pth.tar'))['epoch'] >= first:
            path.unlink()


def save_half(then: Callable[[], object]) -> Callable[[object, str | Path], None]:
    """What to put in place of `torch.save`, so that it writes the first half of a checkpoint and does `then`."""
    def save(content: object, path: str | Path) -> None:
        buffer = io.BytesIO()
        torch_save(content, buffer)
        Path(path).write_bytes(buffer.getvalue()[:len(buffer.getvalue()) // 2])
        then()
    return save


def after(count: int, function: Callable[..., object], last: Callable[..., object]) -> Callable[..., object]:
    """`function`, but the calls after `count` others are of `last` instead."""
    calls: list[object] = []

    def wrapped(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return (last if len(calls) > count else function)(*args, **kwargs)
    return wrapped


def start_process(function: Callable[..., object], *args: object) -> BaseProcess:
    """Call a function in a process of its own, forked from one that has imported the function's module and torch."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([function.__module__])
    process = context.Process(target=_call, args=(function, *args))
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process.start()
    return process


def _call(function: Callable[..., object], *args: object) -> None:
    multiprocessing.set_start_method('fork', force=True)  # of the loader's workers: children that see their parent die
    function(*args)
