"""What a run is about to do, in a line for each part of it."""
from collections.abc import Sequence
from pathlib import Path

from aa_models.device import machine_name
from aa_models.layers import GridAttention

from .distillation import Teacher
from .loaders import data_config_of, size_text, training_size_text
from .loop import Trainer
from .precision import precision_of

_SHOWN = 5  # names of classes


def plan_of(trainer: Trainer, teacher: Teacher | None, classes: Sequence[str] | None, output: Path) -> list[str]:
    """The plan of a run: model and teacher, data, classes, updates, device and directory.

    Args:
        trainer: Ready to start.
        teacher: Of the model, if it has one.
        classes: Their names, where dataset or teacher have them.
        output: Where the run saves.
    """
    recipe, model = trainer.recipe, trainer.model
    start = 'from its pretrained weights' if recipe.pretrained else 'from random weights'
    if recipe.initial_checkpoint is not None:
        resized = 'widened ' if recipe.widen else 'narrowed ' if recipe.narrow else ''
        start = f'{resized}from the weights in {recipe.initial_checkpoint}'
    augmented = sum(isinstance(module, GridAttention) for module in model.modules())
    attention = f', attention in {augmented} layers' if augmented else ''
    plan = [f'model: {recipe.model}, {sum(p.numel() for p in model.parameters()):,} parameters{attention}, {start}']
    if teacher is not None:
        labels = ', which alone says what a picture shows' if recipe.unlabelled else ''
        plan.append(f'teacher: {recipe.teacher}, {sum(p.numel() for p in teacher.parameters()):,} parameters, at '
                    f'{size_text(teacher.input_size)} px{labels}')
    input_size = data_config_of(model, recipe)['input_size']
    growth = f'; in training at {training_size_text(recipe, input_size)} px' if recipe.train_img_size else ''
    train, held_out = (len(loader.dataset) for loader in (trainer.train_loader, trainer.eval_loader))
    shown = ', '.join(classes[:_SHOWN]) + (', …' if len(classes) > _SHOWN else '') if classes else 'without names'
    updates = trainer.updates_per_epoch
    return plan + [
        f'data: {train} images to train, {held_out} to validate, at '
        f'{size_text(input_size)} px{growth}',
        f'classes: {model.num_classes} ({shown})',
        f'updates: {updates} an epoch of {recipe.epochs}, {updates * recipe.epochs} in all, {recipe.opt} with '
        f'learning rates up to {recipe.lr:g}',
        f'on {machine_name(trainer.process)} in {precision_of(recipe)}, saved in {str(output)!r}']
