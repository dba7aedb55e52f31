"""How tests interrupt a training run, and what it is then left with."""
import io
from collections.abc import Callable
from pathlib import Path

import torch

from training_runs import checkpoint_of

torch_save = torch.save  # tests put another in its place


def lose_epochs(output: Path, first: int = 1) -> None:
    """Remove the checkpoints of that epoch and of later ones, as if the run had been killed before."""
    for path in output.glob('*.pth.tar'):
        if checkpoint_of(output, path.name.removesuffix('.pth.tar'))['epoch'] >= first:
            path.unlink()


def save_half(content: object, path: str | Path) -> None:
    """In place of `torch.save`: write the first half of a checkpoint."""
    buffer = io.BytesIO()
    torch_save(content, buffer)
    Path(path).write_bytes(buffer.getvalue()[:len(buffer.getvalue()) // 2])


def after(count: int, function: Callable[..., object], last: Callable[..., object]) -> Callable[..., object]:
    """`function`, but the calls after `count` others are of `last` instead."""
    calls: list[object] = []

    def wrapped(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return (last if len(calls) > count else function)(*args, **kwargs)
    return wrapped
