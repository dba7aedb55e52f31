"""The training loop: a model with its optimiser and schedule, one epoch at a time."""
import contextlib
import math
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask, create_classification_loss
from timm.utils import AverageMeter, NativeScaler, dispatch_clip_grad, distribute_bn, random_seed, reduce_tensor
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aa_models.device import Process, autocast
from aa_models.errors import DivergenceError, InputError
from aa_models.models.cpu_training import speed_up_training

from .distillation import Criterion, guesses_of_teacher
from .products import fast_products
from .progress import Progress
from .recipe import Recipe
from .validation import evaluate

DIVERGED = 'training stops, the last checkpoint is kept (a smaller lr, a longer warm-up or clip_grad may help)'
CHECK_EVERY = 16  # batches whose losses are read together, because each reading waits for the device


class LossMeter(AverageMeter):
    """Mean loss of an epoch; an infinite loss, or one that is not a number, is an error."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch, self.batches = epoch, 0
        self.latest: dict[str, float] = {}  # nothing to show before the first reading
        self.waiting: list[tuple[torch.Tensor, int]] = []

    def add(self, loss: torch.Tensor, images: int) -> None:
        self.waiting.append((loss.detach(), images))
        if len(self.waiting) >= CHECK_EVERY:
            self.settle()

    def settle(self) -> None:
        """Read the waiting losses, with a `DivergenceError` where one is infinite or not a number."""
        if not self.waiting:
            return
        for loss, (_, images) in zip(torch.stack([loss for loss, _ in self.waiting]).tolist(), self.waiting):
            self.batches += 1
            if not math.isfinite(loss):
                raise DivergenceError(f'the loss is {loss} at epoch {self.epoch + 1}, batch {self.batches}: {DIVERGED}')
            self.update(loss, images)
            self.latest = dict(loss=loss)
        self.waiting.clear()


def make_criterion(recipe: Recipe) -> Criterion:
    """The loss of logits and labels."""
    criterion = create_classification_loss(smoothing=recipe.smoothing, soft_targets=recipe.mixing)
    # in float32: autocast on a CPU would compute softmax and logarithm of the loss in bfloat16
    return lambda output, target: criterion(output.float(), target)


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(
            model, recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum,
            layer_decay=recipe.layer_decay, **recipe.opt_kwargs)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:  # of an optimiser's own kind
        given = f'opt_kwargs = {recipe.opt_kwargs}'
        raise InputError(f'opt = {recipe.opt!r} cannot be made with {given}: {error}') from error


class Trainer:
    """A training task with its optimiser, schedule and loaders.

    Args:
        recipe: How to train, its `amp` decided.
        model: On its device and in its memory format.
        task: What is minimised, of this model.
        process: What `start_device` found.
        train_loader, eval_loader: Batches (B, 3, H, W) and labels (B,), to train and to validate.
        log_seconds: Time between two lines of the log.
    """

    def __init__(
            self, recipe: Recipe, model: nn.Module, task: TrainingTask, process: Process, train_loader: Any,
            eval_loader: Any, log_seconds: float = 30.0,
    ) -> None:
        self.recipe, self.model, self.task, self.process, self.log_seconds = recipe, model, task, process, log_seconds
        self.train_loader, self.eval_loader = train_loader, eval_loader
        self.updates_per_epoch = math.ceil(len(train_loader) / recipe.grad_accum_steps)
        self.autocast = autocast(process.device, recipe.amp is True, recipe.amp_dtype)
        half = recipe.amp and recipe.amp_dtype == 'float16'
        self.scaler = NativeScaler(device=process.device.type) if half else None  # bfloat16 has float32's range
        self.optimizer = _make_optimizer(cast(nn.Module, task.get_trainable_module()), recipe)
        warmup = cast(int, recipe.warmup_epochs)  # timm's annotation; it computes with fractions of an epoch, too
        decay = recipe.decay_epochs
        if recipe.sched == 'wsd' and decay is not None and decay < 1:
            decay /= recipe.epochs - warmup  # to timm a number below 1 is a share of the schedule
        try:
            self.scheduler, _ = create_scheduler_v2(
                self.optimizer, recipe.sched, num_epochs=recipe.epochs - warmup, warmup_epochs=warmup,
                warmup_prefix=True, warmup_lr=recipe.warmup_lr, min_lr=recipe.min_lr, decay_epochs=decay,
                decay_rate=recipe.decay_rate, step_on_epochs=not recipe.sched_on_updates,
                updates_per_epoch=self.updates_per_epoch)
        except ValueError as error:
            raise InputError(f'sched = {recipe.sched!r}, decay_epochs = {recipe.decay_epochs}: {error}') from error
        self.mixup = Mixup(mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, prob=recipe.mixup_prob,
                           label_smoothing=recipe.smoothing, num_classes=model.num_classes) if recipe.mixing else None
        self.start_average()

    def start_average(self) -> None:
        """Let the moving average of the weights, if the recipe keeps one, begin with those that they have now."""
        if self.recipe.ema:
            self.task.setup_ema(decay=self.recipe.ema_decay, use_warmup=self.recipe.ema_warmup)

    def start(self) -> None:
        """Prepare for training: compilation, wrapping for several devices, what makes a CPU faster."""
        if self.recipe.compile:
            self.task.compile(mode=self.recipe.compile_mode)
        elif self.recipe.amp:
            speed_up_training(self.model, self.process.device, self.recipe.amp_dtype)
        if self.process.distributed:
            ids = [self.process.device] if self.process.device.type == 'cuda' else None
            self.task.prepare_distributed(device_ids=ids)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch.

        Returns:
            `loss`, `seconds` and `img_per_s` (of all devices together).

        Raises:
            DivergenceError: The loss or, after the last update, a weight is infinite or not a number.
        """
        recipe, batches = self.recipe, len(self.train_loader)
        updates = self._begin(epoch)
        meter, lr = LossMeter(epoch), self.lr
        progress = Progress(f'epoch {epoch + 1}/{recipe.epochs}', batches, after=(recipe.epochs - epoch - 1) * batches,
                            every=self.log_seconds, show=self.process.rank == 0)
        for step, (images, labels) in enumerate(self.train_loader):
            in_group = step % recipe.grad_accum_steps
            group = min(recipe.grad_accum_steps, batches - step + in_group)  # the last group may be smaller
            update = in_group == group - 1
            lr = self.lr
            meter.add(self._step(images, labels, group, update), len(images))
            if update:
                updates += 1
                self.task.update_ema(step=updates)
                self.scheduler.step_update(updates)
            progress.step(len(images) * self.process.world_size, **meter.latest, lr=lr)
        meter.settle()
        self._check_weights(epoch)
        progress.bar.close()
        self.scheduler.step(epoch + 1)
        loss = float(meter.avg)
        if self.process.distributed:
            for ema in (False, True) if self.recipe.ema else (False,):
                distribute_bn(self.task.get_trainable_module(ema), self.process.world_size, reduce=True)
            loss = reduce_tensor(torch.tensor(loss, device=self.process.device), self.process.world_size).item()
        return dict(loss=loss, lr=lr, seconds=progress.seconds, img_per_s=progress.speed)

    def _begin(self, epoch: int) -> int:
        """Bring everything into the state that an epoch starts in, and return the number of updates before it."""
        # all random numbers of an epoch are a function of these three, whatever was drawn before it
        seeds = np.random.SeedSequence([self.recipe.seed, epoch, self.process.rank])
        random_seed(int(seeds.generate_state(1)[0]))
        if isinstance(generator := getattr(self.optimizer, 'generator', None), torch.Generator):
            generator.manual_seed(self.recipe.seed + epoch)  # of its own, the same in all processes (adahessian)
        loader = self.train_loader
        parts: tuple[Any, ...] = (
            loader, loader.dataset, loader.sampler, getattr(loader.dataset, 'transform', None))
        for part in parts:
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)
        if self.mixup is not None:
            self.mixup.mixup_enabled = not self.recipe.mixup_off_epoch or epoch < self.recipe.mixup_off_epoch
        trained = cast(nn.Module, self.task.get_trainable_module()).train()
        for norm in trained.modules() if self.recipe.freeze_bn else ():
            if isinstance(norm, _BatchNorm):
                norm.eval()
        # An iterable loader may have ended earlier than its length says: with fewer updates, and with gradients of
        # batches that still waited for one.
        updates = epoch * self.updates_per_epoch
        self.scheduler.step_update(updates)
        self.scheduler.step(epoch)
        self.optimizer.zero_grad()
        return updates

    def _check_weights(self, epoch: int) -> None:
        """Before they are saved, because no loss was computed after the last update."""
        for name, weight in cast(nn.Module, self.task.get_trainable_module()).named_parameters():
            if not torch.isfinite(weight).all():
                raise DivergenceError(f'{name} is infinite or not a number after epoch {epoch + 1}: {DIVERGED}')

    @property
    def lr(self) -> float:
        """The learning rate, of the head where layers differ."""
        return max(group['lr'] for group in self.optimizer.param_groups)

    def _step(self, images: torch.Tensor, labels: torch.Tensor, group: int, update: bool) -> torch.Tensor:
        """Forward and backward pass of one of the `group` batches of an update, which the last of them completes."""
        if self.recipe.unlabelled:
            labels = torch.zeros_like(labels)  # of weight 0, but the model may not have that many classes
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        clip, parameters = self.recipe.clip_grad, self.task.get_clip_parameters()
        with contextlib.nullcontext() if update else self.task.no_sync():
            with self.autocast:
                loss = self.task(images, labels)['loss']
            twice = getattr(self.optimizer, 'is_second_order', False)  # timm's word of those that see curvature
            if self.scaler is not None:
                self.scaler(loss / group, self.optimizer, clip_grad=clip, parameters=parameters, create_graph=twice,
                            need_update=update)
            else:
                (loss / group).backward(create_graph=twice)
        if update and self.scaler is None:
            if clip is not None:
                dispatch_clip_grad(parameters, clip)
            with fast_products(self.process.device):
                self.optimizer.step()
        if update:
            self.optimizer.zero_grad()
        return loss

    def validate(self) -> dict[str, float]:
        """Measure the model, or its moving average where the recipe keeps one."""
        model = cast(nn.Module, self.task.get_eval_model(ema=self.recipe.ema))
        teacher = partial(guesses_of_teacher, self.task) if self.recipe.unlabelled else None
        return evaluate(
            model, self.eval_loader, self.recipe, self.process, every=self.log_seconds, labels_of=teacher)[0]
