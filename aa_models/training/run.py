"""Train a model by a recipe, and go on where an interrupted run stopped.

RECIPE is a YAML file or the name of one that comes with the package; options replace its values. Checkpoints, log.csv
and the recipe go to the output directory. The same command with the same directory goes on with an interrupted run and
ends with the very figures of an unbroken one. SIGTERM and Ctrl-C complete the checkpoint that is being written, if
any, and leave; the epoch they cut short is made again. Then MODEL.TAG in that directory is a folder ready for
`--model local-dir:…` and for the Hub: the weights after the last epoch, config, model card, recipe and log.

Examples:
  aa-models train cifar100_resnet --data-dir data --dataset-download --output runs/cifar100
  aa-models train finetune --model aa_resnet18 --data-dir my_pictures --output runs/mine
  aa-models train my_recipe.yaml --lr 0.05 --ema --data-dir data --output runs/ema
  torchrun --nproc-per-node 4 -m aa_models train my_recipe.yaml --data-dir data --output runs/four
"""
import argparse
import dataclasses
import logging
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from timm.utils import CheckpointSaver, random_seed, setup_default_logging, update_summary
from torch import nn

from aa_models.device import Process, machine_name, start_device
from aa_models.models.create import build_model, num_classes_of
from aa_models.release.folder import checked_tag, pack_run

from . import checkpoints
from .loaders import (
    Images,
    check_labels,
    class_names,
    data_config_of,
    make_eval_loader,
    make_train_loader,
    open_datasets,
)
from .loop import Trainer
from .recipe import Recipe, add_recipe_arguments, load_recipe, recipe_names, recipe_overrides
from .stopping import Stopped, StopSignals, leave_within

_logger = logging.getLogger(__name__)
LEAVE_SECONDS = 20  # of a process that failed, one of several
USAGE = '%(prog)s RECIPE --output DIR [options]'  # argparse would print every value of a recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    names = ', '.join(recipe_names())
    parser.add_argument('recipe', help=f'a YAML file or the name of a packaged recipe: {names}')
    parser.add_argument('--output', required=True, metavar='DIR', help='where checkpoints, log and recipe go; '
                        'the same command with the same directory goes on with an interrupted run')
    parser.add_argument('--data-dir', metavar='DIR', help='where the dataset is')
    parser.add_argument('--dataset-download', action='store_true', help='fetch the dataset if it is not there')
    parser.add_argument('--overwrite', action='store_true', help='start again, losing the run that is in the directory')
    parser.add_argument('--device', help='cuda, cpu, … (default: cuda where there is one)')
    parser.add_argument('--log-seconds', type=float, default=30.0, metavar='S',
                        help='time between lines of the log where there is no terminal (default: 30)')
    parser.add_argument('--tag', help='second half of the name MODEL.TAG of the exported folder (default: the '
                        "dataset's name, of a folder the output directory's)")
    add_recipe_arguments(parser.add_argument_group('recipe', 'values that replace those of the recipe'))


def run(args: argparse.Namespace) -> int:
    """Train to the last epoch.

    Returns:
        Exit status: 0, or 128 and the number of the signal that ended the run.

    Raises:
        ValueError: A recipe, model, dataset or directory that cannot be used.
        FloatingPointError: The loss or a weight became infinite or not a number.
        OSError: The output directory cannot be written to. Its last checkpoint is kept.
    """
    recipe = load_recipe(args.recipe, **recipe_overrides(args))
    process = start_device(args.device)
    if not logging.root.handlers:
        setup_default_logging(logging.INFO if process.rank == 0 else logging.ERROR)
    logging.getLogger('timm.utils.checkpoint_saver').setLevel(logging.WARNING)  # lists its files at every epoch
    with StopSignals() as stop:
        try:
            _train(recipe, args, process, stop)
        except (Stopped, Exception) as error:
            stop.only_note()  # a launcher that lost one process stops the others, which are failing by themselves
            if process.distributed:
                leave_within(LEAVE_SECONDS)
            if not stop.raised:
                raise
            # any other exception follows from it: loader's workers and other processes were told to stop as well
            _logger.debug('stopped here', exc_info=error)
            if process.rank == 0:
                _logger.warning(f'stopped by {stop.received[-1].name}: {_what_is_saved(Path(args.output), recipe)}')
            return stop.status
        finally:
            if process.distributed:
                torch.distributed.destroy_process_group()
    return 0


def _what_is_saved(output: Path, recipe: Recipe) -> str:
    checkpoint = checkpoints.newest_whole(output)
    done = 0 if checkpoint is None else checkpoints.epoch_of(checkpoint) + 1
    rest = f'epoch {done + 1}' if done < recipe.epochs else 'the export'
    return f'{done} of {recipe.epochs} epochs are saved in {str(output)!r}, the same command goes on with {rest}'


def _train(recipe: Recipe, args: argparse.Namespace, process: Process, stop: StopSignals) -> None:
    output = Path(args.output)
    tag = checked_tag(args.tag, recipe, output)
    train_set, eval_set = _open_datasets(recipe, args, process)
    classes = class_names(train_set)
    if recipe.num_classes is None and classes:
        recipe = dataclasses.replace(recipe, num_classes=len(classes))
    trainer, model = _make_trainer(recipe, args, process, train_set, eval_set)
    checkpoint = _prepare(output, recipe, args.overwrite, process, classes)
    saver = None
    if process.rank == 0:
        settings = argparse.Namespace(**dataclasses.asdict(recipe))
        saver = CheckpointSaver(
            model, trainer.optimizer, args=settings, amp_scaler=trainer.scaler, checkpoint_dir=str(output),
            task=trainer.task, max_history=recipe.checkpoint_hist)
    epoch = 0
    if checkpoint is not None:
        with stop.held():
            epoch = checkpoints.resume(checkpoint, trainer.task, trainer.optimizer, trainer.scaler, saver)
    if saver is not None:
        with checkpoints.writing(output):
            checkpoints.trim_log(output / checkpoints.LOG, epoch)
    if epoch < recipe.epochs:
        trainer.start(epoch)
    for epoch in range(epoch, recipe.epochs):  # noqa: B020, goes on from there
        _epoch(trainer, epoch, output, saver, stop)
    if saver is not None:
        with checkpoints.writing(output):
            _finish(output, tag, saver)


def _open_datasets(recipe: Recipe, args: argparse.Namespace, process: Process) -> tuple[Images, Images]:
    """Open both parts; where they are to be fetched, one process of a machine does it and the others wait."""
    waits = process.distributed and args.dataset_download
    if waits and process.local_rank != 0:
        torch.distributed.barrier()
    datasets = open_datasets(recipe, args.data_dir, args.dataset_download)
    if waits and process.local_rank == 0:
        torch.distributed.barrier()
    return datasets


def _make_trainer(
        recipe: Recipe,
        args: argparse.Namespace,
        process: Process,
        train_set: Images,
        eval_set: Images,
) -> tuple[Trainer, nn.Module]:
    """Everything that can fail because of what the user gave, before anything is written."""
    if process.device.type == 'cuda':
        torch.use_deterministic_algorithms(True, warn_only=True)
    random_seed(recipe.seed)
    model = build_model(
        recipe.model, pretrained=recipe.pretrained, num_classes=recipe.num_classes, drop_rate=recipe.drop or None,
        drop_path_rate=recipe.drop_path or None, **recipe.model_kwargs)
    model.to(device=process.device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    for dataset in (train_set, eval_set):
        check_labels(dataset, num_classes_of(model))
    config = data_config_of(model, vars(recipe))
    train_loader = make_train_loader(train_set, recipe, config, process.device, process.distributed)
    eval_loader = make_eval_loader(
        eval_set, config, recipe.batch_size, recipe.workers, process.device, process.distributed)
    _logger.info(
        f'{recipe.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(train_set)} images to train, '
        f'{len(eval_set)} to validate, {config}')
    return Trainer(recipe, model, process, train_loader, eval_loader, args.log_seconds), model


def _prepare(
        output: Path,
        recipe: Recipe,
        overwrite: bool,
        process: Process,
        classes: list[str] | None,
) -> Path | None:
    """The first process tidies the directory and tells the others where to go on."""
    facts = dict(classes=classes, machine=machine_name(process))
    answer = [checkpoints.prepare(output, recipe, overwrite, facts) if process.rank == 0 else None]
    if process.distributed:
        torch.distributed.broadcast_object_list(answer, src=0)
    return answer[0]


def _epoch(trainer: Trainer, epoch: int, output: Path, saver: CheckpointSaver | None, stop: StopSignals) -> None:
    """Train, validate, write the log, then the checkpoint: a row without its checkpoint is dropped on resuming."""
    recipe = trainer.recipe
    figures = trainer.train_epoch(epoch)
    lr = figures.pop('lr')
    measured = (epoch + 1) % recipe.val_interval == 0 or epoch + 1 == recipe.epochs
    score = trainer.validate() if measured else dict(loss='', top1='', top5='')  # empty cells keep the columns
    if saver is None:
        return
    with stop.held(), checkpoints.writing(output):
        update_summary(epoch, OrderedDict(figures), OrderedDict(score), output / checkpoints.LOG, lr=lr)
        saver.save_checkpoint(epoch, metric=score['top1'] if measured else None)
    text = f'top-1 {score["top1"]:.3f} top-5 {score["top5"]:.3f}' if measured else 'not validated'
    _logger.info(
        f'epoch {epoch + 1}/{recipe.epochs}: loss {figures["loss"]:.4f} {text} '
        f'in {figures["seconds"]:.0f} s, {figures["img_per_s"]:.1f} img/s')


def _finish(output: Path, tag: str, saver: CheckpointSaver) -> None:
    """Say how it went, and pack the run unless this was done before."""
    if saver.best_metric is not None and saver.best_epoch is not None:
        _logger.info(f'best top-1 {saver.best_metric:.3f} after {saver.best_epoch + 1} epochs, in {output}')
    _logger.info(f'the weights after the last epoch are in {pack_run(output, tag, reuse=True)}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
