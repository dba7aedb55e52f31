"""Learning from a teacher: timm's distillation tasks, with a teacher that gets pictures as it was trained on them.

Papers: `Distilling the Knowledge in a Neural Network` - https://arxiv.org/abs/1503.02531,
`FitNets: Hints for Thin Deep Nets` - https://arxiv.org/abs/1412.6550
"""
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data import resolve_input_data_config
from timm.task import (
    ClassificationTask,
    DistillationTeacher,
    FeatureDistillationTask,
    LogitDistillationTask,
    TrainingTask,
)
from torch import nn
from torch.nn import functional as F

from aa_models.data.labels import class_names_of, known_outputs, shown
from aa_models.errors import InputError
from aa_models.models.create import build_model, cfg_of, num_classes_of

from .loaders import Config
from .recipe import Recipe

_logger = logging.getLogger(__name__)
Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Teacher(DistillationTeacher):
    """A network that is learned from, on its device and in evaluation mode.

    It sees the student's pictures in its own size and with its own mean and standard deviation.

    Args:
        model: The network, made by timm.
        device: Where it works.
        outputs: Those of its logits that are learned from, by default all.
    """

    def __init__(self, model: nn.Module, device: torch.device, outputs: Sequence[int] | None = None) -> None:
        super().__init__(model.to(device).requires_grad_(False), device=device)
        self.num_classes = num_classes_of(model) if outputs is None else len(outputs)
        if outputs is not None:
            index = torch.tensor(outputs, device=device)
            model.register_forward_hook(lambda module, args, logits: logits[:, index])
        config = resolve_input_data_config(model)
        self.input_size: tuple[int, int, int] = config['input_size']
        self.size = self.input_size[1:]

    def normalize_input(
            self, input: torch.Tensor, student_mean: torch.Tensor | None = None,
            student_std: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pictures as the student has them (B, C, H, W) -> as the teacher has them (B, C, *size)."""
        x = super().normalize_input(input, student_mean, student_std)
        if x.shape[2:] == self.size:
            return x
        # both steps are linear and the weights of a resized pixel add up to 1: their order makes no difference
        return F.interpolate(x, self.size, mode='bicubic', antialias=True)


def make_teacher(recipe: Recipe, device: torch.device, classes: Sequence[str] | None = None) -> Teacher | None:
    """The recipe's teacher with its weights, None for a recipe without one.

    Args:
        recipe: Says which, and what is learned from it.
        device: Where it works.
        classes: The names of the dataset's classes, in whose order the logits are to be.

    Raises:
        InputError: No such network, or it cannot teach what the recipe asks for.
        WeightsError: It has no weights.
    """
    if recipe.teacher is None:
        return None
    model = build_model(recipe.teacher, pretrained=True)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if recipe.kd_distill_type == 'logit' and num_classes_of(model) < 2:
        raise InputError(f'teacher = {recipe.teacher!r} has no classes to learn, possible is kd_distill_type = feature')
    if not classes or recipe.kd_distill_type != 'logit' or recipe.unlabelled:
        return Teacher(model, device)
    return Teacher(model, device, _outputs_for(classes, model, recipe))


def _outputs_for(classes: Sequence[str], model: nn.Module, recipe: Recipe) -> list[int] | None:
    """The teacher's outputs for the classes of a dataset, None where they are all in order or have other names."""
    cfg, count = cfg_of(model), num_classes_of(model)
    known = known_outputs(classes, cfg, count)
    foreign = [name for label, name in enumerate(classes) if label not in known]
    if known and foreign:
        raise InputError(
            f'teacher = {recipe.teacher!r} has no class {shown(foreign)}, which the pictures have: logits are learned '
            'class by class. To take the features alone: kd_distill_type = feature')
    if foreign and len(classes) == count and cfg.get('label_names'):
        _logger.warning(f'the teacher has other names for its classes, {shown(class_names_of(cfg, count))}: they are '
                        'taken for those of the pictures, in their order')
    outputs = list(known.values())
    return outputs if known and outputs != list(range(count)) else None


def labels_of_teacher(teacher: Teacher) -> list[str] | None:
    """The names of the teacher's classes, where its cfg has them."""
    cfg, count = cfg_of(teacher.model), num_classes_of(teacher.model)
    return class_names_of(cfg, count) if len(cfg.get('label_names') or ()) == count else None


def make_task(
        model: nn.Module, teacher: Teacher | None, criterion: Criterion, recipe: Recipe, config: Config,
        device: torch.device,
) -> TrainingTask:
    """What is minimised: the loss of the labels, with a teacher also that of the distance to it.

    Args:
        model: The student.
        teacher: As `make_teacher` makes it.
        criterion: The loss of logits (B, num_classes) and labels.
        recipe: Says what is learned of the teacher, and the weights of both losses.
        config: The student's `mean`, `std` and `input_size`.
        device: Of the student.

    Raises:
        InputError: Student and teacher do not fit together.
    """
    common: dict[str, Any] = dict(criterion=criterion, device=device, verbose=False)
    if teacher is None:
        return ClassificationTask(model, **common)
    _check_pair(model, teacher, recipe, config)
    common.update(distill_loss_weight=recipe.distill_loss_weight, task_loss_weight=recipe.task_loss_weight)
    task: LogitDistillationTask | FeatureDistillationTask
    if recipe.kd_distill_type == 'logit':
        model.register_forward_hook(_in_float32)
        teacher.model.register_forward_hook(_in_float32)
        task = LogitDistillationTask(model, teacher, temperature=recipe.kd_temperature, **common)
    else:
        task = FeatureDistillationTask(model, teacher, **common)
    # timm reads them from the model's cfg; the pictures are as the recipe says
    for name in ('mean', 'std'):
        getattr(task, f'student_{name}').copy_(torch.tensor(config[name]).view(1, -1, 1, 1))
    return task


def guesses_of_teacher(task: Any, images: torch.Tensor) -> torch.Tensor:
    """The classes (B,) that the teacher of a distillation task sees in images as the student has them."""
    seen = task.teacher.normalize_input(images, task.student_mean, task.student_std)
    return task.teacher(seen).argmax(1)


def _in_float32(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    """For a hook on a network: autocast on a CPU would compute the divergence of its logits in bfloat16."""
    return output.float()


def _check_pair(model: nn.Module, teacher: Teacher, recipe: Recipe, config: Config) -> None:
    channels, theirs = config['input_size'][0], teacher.input_size[0]
    if recipe.kd_distill_type == 'feature':
        for who, network in ((recipe.model, model), (recipe.teacher, teacher.model)):
            if not (hasattr(network, 'forward_features') and hasattr(network, 'forward_head')):
                raise InputError(f'{who} has no features to compare: possible is kd_distill_type = logit')
    if channels != theirs:
        raise InputError(f'teacher = {recipe.teacher!r} takes images of {theirs} channels, the model {channels}')
    classes, theirs = num_classes_of(model), teacher.num_classes
    if recipe.kd_distill_type == 'logit' and classes != theirs:
        raise InputError(
            f'teacher = {recipe.teacher!r} has {theirs} classes, the model {classes}: logits are learned class by '
            'class. To take the features alone: kd_distill_type = feature; to learn on pictures without labels all '
            'classes of the teacher: task_loss_weight = 0')
