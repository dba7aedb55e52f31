"""One pass over a validation set."""
from collections.abc import Callable
from typing import Any

import torch
from timm.task import evaluation_sample_limit
from torch import nn

from .progress import Progress


@torch.inference_mode()
def evaluate(
        model: nn.Module, loader: Any, make_evaluator: Callable[..., Any], autocast: torch.autocast, progress: Progress,
        channels_last: bool = False, distributed: bool = False,
) -> tuple[dict[str, float], int]:
    """Measure a model.

    Args:
        model: Takes (B, 3, H, W), gives logits (B, num_classes).
        loader: Of several processes each has its own share; those images that a sampler repeats to make the shares
            equal are not counted.
        make_evaluator: Makes timm's evaluator; takes `max_samples`.
        distributed: Sum over all processes.

    Returns:
        The evaluator's figures `loss`, `top1` and `top5` (percent), and the number of images.
    """
    model.eval()
    evaluator = make_evaluator(max_samples=evaluation_sample_limit(loader))
    for images, labels in loader:
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast:
            logits = model(images)
        evaluator.update(logits, labels)
        progress.step(len(images))
    count = evaluator.counts[0].clone()
    if distributed:
        torch.distributed.all_reduce(count)
    figures = evaluator.compute(distributed=distributed)
    progress.close()
    return figures, int(count)
