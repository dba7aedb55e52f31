"""A training run, from its recipe to the last epoch. An interrupted one goes on and ends as an unbroken one does."""
import argparse
import contextlib
import dataclasses
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import CheckpointSaver, random_seed, update_summary

from aa_models.device import Process, machine_name, process_on
from aa_models.durable import flush
from aa_models.lock import alone_in
from aa_models.models.create import build_model, num_classes_of

from . import checkpoints
from .datasets import check_labels, class_names
from .distillation import Teacher, labels_of_teacher, make_task, make_teacher
from .freed_memory import keep_freed_memory
from .image_sizes import check_sizes, training_sizes
from .initial import narrow_from, start_from, widen_from
from .known_classes import keep_known_classes
from .linear_probe import check_probe, start_from_probe
from .loaders import check_batch, data_config_of, make_eval_loader, make_train_loader
from .loop import Trainer, make_criterion
from .plan import plan_of
from .precision import with_precision
from .recipe import RECIPE_FILE, Recipe
from .splits import open_datasets, with_fingerprint, with_holdout
from .stopping import Stopped, StopSignals

_logger = logging.getLogger(__name__)


def train(
        recipe: Recipe, output: Path, *, data_dir: str | None = None, download: bool = False, overwrite: bool = False,
        device: str | None = None, log_seconds: float = 30.0, finish: Callable[[], object] = lambda: None,
) -> None:
    """Train to the last epoch.

    Args:
        recipe: What is computed.
        output: Where checkpoints, log and recipe go.
        data_dir: Where the dataset is.
        download: Fetch the dataset if it is not there.
        overwrite: Start again, losing the run that is in `output`.
        device: By default CUDA where there is one, else the CPU.
        log_seconds: Time between lines of the log where there is no terminal.
        finish: Called by the first process after the last epoch, to make of `output` what else the run should leave
            there. It is a part of the run: stopped like it, and called again when a stopped run goes on.

    Raises:
        InputError: A recipe, model, dataset or directory that cannot be used, or that another run is using.
        DivergenceError: The loss or a weight became infinite or not a number.
        WriteError: `output` cannot be written to. Its last checkpoint is kept.
        Stopped: By SIGTERM or SIGINT. The message says what is saved.
    """
    with StopSignals() as stop, process_on(device) as process:
        try:
            with deterministic(recipe.deterministic, process.device):
                begun = None if overwrite else output / RECIPE_FILE
                recipe = with_precision(recipe, process, begun)
                recipe = with_holdout(recipe, data_dir)
                with process.one_first(download):
                    datasets = open_datasets(recipe, data_dir, download)
                recipe = with_fingerprint(recipe, datasets[0], data_dir)
                classes = class_names(datasets[0])
                teacher = make_teacher(recipe, process.device, classes)
                if teacher is not None and recipe.unlabelled:
                    classes = labels_of_teacher(teacher)
                    recipe = dataclasses.replace(
                        recipe, num_classes=recipe.num_classes or num_classes_of(teacher.model))
                if recipe.num_classes is None and classes:
                    recipe = dataclasses.replace(recipe, num_classes=len(classes))
                trainer = make_trainer(recipe, process, *datasets, classes, log_seconds, teacher)
                facts = dict(classes=classes, machine=machine_name(process))
                for line in plan_of(trainer, teacher, classes, output):
                    _logger.info(line)
                with alone_in(output) if process.rank == 0 else contextlib.nullcontext():
                    # the first process prepares the directory and tells the others which checkpoint to go on from
                    found = [checkpoints.prepare(output, recipe, overwrite, facts) if process.rank == 0 else None]
                    if process.distributed:
                        torch.distributed.broadcast_object_list(found, src=0)
                    _run(trainer, output, found[0], stop, finish)
        except (Stopped, Exception) as error:
            stop.only_note(for_good=process.distributed)
            if stop.raised is None:
                raise
            # any other exception follows from it: the loader's workers and the other processes were stopped as well
            saved = f': {_what_is_saved(output, recipe)}' if process.rank == 0 else ''
            raise Stopped(f'{stop.raised}{saved}', stop.raised.number) from error


def _what_is_saved(output: Path, recipe: Recipe) -> str:
    checkpoint = checkpoints.newest_whole(output)
    done = 0 if checkpoint is None else checkpoints.epoch_of(checkpoint) + 1
    rest = f'epoch {done + 1}' if done < recipe.epochs else 'the export'
    return f'{done} of {recipe.epochs} epochs are saved in {str(output)!r}, the same command goes on with {rest}'


@contextlib.contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Have torch use deterministic algorithms on CUDA for the time of the body, and warn where it has none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted and device.type == 'cuda':
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # without it cuBLAS is not deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def make_trainer(
        recipe: Recipe, process: Process, train_set: Any, eval_set: Any, classes: Sequence[str] | None,
        log_seconds: float, teacher: Teacher | None,
) -> Trainer:
    """Everything that can fail because of what the user gave, before anything is written."""
    random_seed(recipe.seed)
    name, arguments = recipe.network
    model = build_model(
        name, pretrained=recipe.pretrained, num_classes=recipe.num_classes, drop_rate=recipe.drop or None,
        drop_path_rate=recipe.drop_path or None, **arguments)
    for dataset in () if recipe.unlabelled else (train_set, eval_set):
        check_labels(dataset, num_classes_of(model))
    if recipe.linear_probe:
        check_probe(model, train_set)
    elif recipe.pretrained and recipe.known_classes and classes:
        keep_known_classes(model, classes, partial(build_model, name, **arguments))
    if recipe.initial_checkpoint is not None:
        if recipe.widen:
            widen_from(model, recipe.initial_checkpoint, recipe.seed)
        elif recipe.narrow:
            narrow_from(model, recipe.initial_checkpoint)
        else:
            start_from(model, recipe.initial_checkpoint)
    model.to(process.device).to(memory_format=torch.channels_last if recipe.channels_last else torch.preserve_format)
    config = data_config_of(model, recipe)
    sizes = training_sizes(recipe, config['input_size'])
    check_batch(model, max(config['input_size'], *sizes.values()), recipe)
    check_sizes(model, sizes.values())
    if teacher is not None:
        check_batch(teacher.model, teacher.input_size, recipe)
    train_loader = make_train_loader(train_set, recipe, config, process.device, process.distributed)
    eval_loader = make_eval_loader(eval_set, recipe, config, process.device, process.distributed)
    task = make_task(model, teacher, make_criterion(recipe), recipe, config, process.device)
    return Trainer(recipe, model, task, process, train_loader, eval_loader, log_seconds)


def _run(trainer: Trainer, output: Path, newest: Path | None, stop: StopSignals, finish: Callable[[], object]) -> None:
    """The epochs after those of the newest checkpoint."""
    recipe, saver, epoch = trainer.recipe, None, 0
    if trainer.process.rank == 0:
        # a namespace of plain values, which timm's loaders read without running code of this package
        saver = checkpoints.DurableSaver(
            trainer.model, trainer.optimizer, task=trainer.task, amp_scaler=trainer.scaler, checkpoint_dir=str(output),
            max_history=recipe.checkpoint_hist, args=argparse.Namespace(**dataclasses.asdict(recipe)))
    if trainer.process.device.type == 'cpu':
        keep_freed_memory()
    if newest is not None:
        with stop.held():
            epoch = checkpoints.resume(newest, trainer, saver)
    elif recipe.linear_probe:
        start_from_probe(trainer)
    if saver is not None:
        with checkpoints.writing(output):
            checkpoints.trim_log(output / checkpoints.LOG, epoch)
    if epoch < recipe.epochs:
        trainer.start()
    for epoch in range(epoch, recipe.epochs):  # noqa: B020, goes on from there
        _epoch(trainer, epoch, output, saver, stop)
    if saver is not None:
        if saver.best_metric is not None and saver.best_epoch is not None:
            _logger.info(f'best top-1 {saver.best_metric:.3f} after {saver.best_epoch + 1} epochs, in {output}')
        with checkpoints.writing(output):
            finish()


def _epoch(trainer: Trainer, epoch: int, output: Path, saver: CheckpointSaver | None, stop: StopSignals) -> None:
    """Train, validate, write the log, then the checkpoint: a row without its checkpoint is dropped on resuming."""
    recipe, figures = trainer.recipe, trainer.train_epoch(epoch)
    lr = figures.pop('lr')
    measured = (epoch + 1) % recipe.val_interval == 0 or epoch + 1 == recipe.epochs
    score = trainer.validate() if measured else dict(loss='', top1='', top5='')  # empty cells keep the columns
    if saver is None:
        return
    with stop.held(), checkpoints.writing(output):
        update_summary(epoch, OrderedDict(figures), OrderedDict(score), output / checkpoints.LOG, lr=lr)
        flush(output / checkpoints.LOG)
        saver.save_checkpoint(epoch, metric=score['top1'] if measured else None)
    text = f'top-1 {score["top1"]:.3f} top-5 {score["top5"]:.3f}' if measured else 'not validated'
    _logger.info(f'epoch {epoch + 1}/{recipe.epochs}: loss {figures["loss"]:.4f} {text} '
                 f'in {figures["seconds"]:.0f} s, {figures["img_per_s"]:.1f} img/s')
