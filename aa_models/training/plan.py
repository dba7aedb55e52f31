"""What a run is about to do, in five lines for who started it."""
from collections.abc import Sequence
from pathlib import Path

from aa_models.device import machine_name

from .loaders import size_text
from .loop import Trainer

_SHOWN = 5  # names of classes


def plan_of(trainer: Trainer, classes: Sequence[str] | None, input_size: Sequence[int], output: Path) -> list[str]:
    """The plan of a run: model, data, classes, updates, device and directory.

    Args:
        trainer: Ready to start.
        classes: Their names, where the dataset has them.
        input_size: Channels, height and width of the network's input.
        output: Where the run saves.
    """
    recipe, model = trainer.recipe, trainer.model
    shown = ', '.join(classes[:_SHOWN]) + (', …' if len(classes) > _SHOWN else '') if classes else 'without names'
    start = 'from its pretrained weights' if recipe.pretrained else 'from random weights'
    train, held_out = (len(loader.dataset) for loader in (trainer.train_loader, trainer.eval_loader))
    updates = trainer.updates_per_epoch
    return [
        f'model: {recipe.model}, {sum(p.numel() for p in model.parameters()):,} parameters, {start}',
        f'data: {train} images to train, {held_out} to validate, at {size_text(input_size)} px',
        f'classes: {model.num_classes} ({shown})',
        f'updates: {updates} an epoch of {recipe.epochs}, {updates * recipe.epochs} in all, {recipe.opt} with '
        f'learning rates up to {recipe.lr:g}',
        f'on {machine_name(trainer.process)}, saved in {str(output)!r}']
