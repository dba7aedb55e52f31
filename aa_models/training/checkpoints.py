"""The output directory of a run: its files, which of its checkpoints are whole, and how to go on from one."""
import contextlib
import csv
import logging
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, load_checkpoint_metadata, trim_summary

from aa_models.data.labels import shown
from aa_models.durable import flush, written_whole
from aa_models.errors import InputError, WriteError
from aa_models.schema import checked

from .facts import facts_of, write_facts
from .loop import Trainer
from .recipe import RECIPE_FILE, Recipe, load_recipe

_logger = logging.getLogger(__name__)

TORCH_WRITER = 'inline_container.cc'  # named in every error of the C++ code by which torch.save writes
LOG, LAST, PART = 'log.csv', 'last.pth.tar', 'tmp.pth.tar'


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a run's log, one for each epoch, by column."""
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def prepare(directory: Path, recipe: Recipe, overwrite: bool, facts: dict[str, Any]) -> Path | None:
    """Check and prepare the directory for a run of this recipe and find the checkpoint to go on from.

    Args:
        directory, recipe: The output directory, which this process is alone in, and what is to be run in it.
        overwrite: Start again, whatever is there.
        facts: What else is known of the run, for the folder that is made of it: names of the classes, machine.

    Returns:
        The newest whole checkpoint, None for a run that starts.

    Raises:
        InputError: The directory or its checkpoint is of another or an unknown recipe or of other classes, or a folder
            is named like one.
        WriteError: The directory cannot be written to.
    """
    for path in directory.glob('*.pth.tar'):
        if not path.is_file():
            raise InputError(f'{str(path)!r} has the name of a checkpoint and is no file: move it away')
    if overwrite:
        for path in (directory / RECIPE_FILE, directory / LOG, *directory.glob('*.pth.tar')):
            path.unlink(missing_ok=True)
    if (directory / RECIPE_FILE).is_file():
        _same_recipe(load_recipe(directory / RECIPE_FILE), recipe, f'output = {str(directory)!r} holds a run')
    elif any(directory.glob('*.pth.tar')):
        raise InputError(
            f'output = {str(directory)!r} holds checkpoints but no {RECIPE_FILE}: choose another directory')
    checkpoint = newest_whole(directory)
    if checkpoint is not None:
        stored = vars(load_checkpoint_metadata(checkpoint)['args'])
        _same_recipe(checked(Recipe, stored, f'recipe in {checkpoint}'), recipe, f'{str(checkpoint)!r} is a checkpoint')
        _same_classes(facts_of(directory).get('classes'), facts.get('classes'), directory)
    with writing(directory):
        recipe.save(directory / RECIPE_FILE)
        write_facts(directory, facts)
    if checkpoint is not None and checkpoint.name == PART:  # whole, but the run ended before it got its name
        checkpoint = checkpoint.replace(directory / LAST)
    return checkpoint


def _same_recipe(stored: Recipe, recipe: Recipe, what: str) -> None:
    before, now = stored.plain(), recipe.plain()
    differing = [f'{key}: {before[key]!r} there, {now[key]!r} now' for key in now if before[key] != now[key]]
    if differing:
        raise InputError(
            f'{what} of another recipe ({"; ".join(differing)}): choose another directory, or --overwrite to lose it')


def _same_classes(before: list[str] | None, now: list[str] | None, directory: Path) -> None:
    if before and now and before != now:
        raise InputError(
            f'output = {str(directory)!r} holds a run of other classes ({shown(before)} there, {shown(now)} now): '
            'choose another directory, or --overwrite to lose it')


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Where the body cannot write to the directory, as on a full disk, say what to do, and remove half a checkpoint.

    Raises:
        WriteError: The body raised what a file system, `torch.save` or safetensors raise.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and TORCH_WRITER not in str(error):  # whose words are a position in a file
            raise
        free = shutil.disk_usage(directory).free / 2**20
        part = directory / PART
        if part.is_file() and _whole_epoch(part) is None:
            part.unlink()
        raise WriteError(
            f'cannot write to {str(directory)!r} ({free:.1f} MiB are free there): {error}. What was saved before is '
            'kept: the same command goes on from there as soon as there is room') from error


def newest_whole(directory: Path) -> Path | None:
    """The checkpoint of the latest epoch among those with every byte in place; None if there is none."""
    found: dict[int, tuple[int, bool, Path]] = {}  # by inode: the saver gives one file several names
    for path in sorted(directory.glob('*.pth.tar')):
        inode = path.stat().st_ino
        if inode not in found or path.name == LAST:
            if (epoch := _whole_epoch(path)) is None:
                _logger.warning(f'{path} is not a whole checkpoint of a run and is ignored')
            else:
                found[inode] = (epoch, path.name == LAST, path)
    return max(found.values())[2] if found else None


def epoch_of(path: Path) -> int:
    """The epoch, counted from 0, after which a checkpoint was saved."""
    return int(load_checkpoint_metadata(path)['epoch'])


def _whole_epoch(path: Path) -> int | None:
    """The epoch of a checkpoint; None if any byte of it is missing or wrong, or it is another kind of file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        stored = load_checkpoint_metadata(path)  # only data: a pickle that names code is refused unread
        return int(stored['epoch']) if {'epoch', 'args', 'state_dict', 'optimizer', 'saver'} <= stored.keys() else None
    except Exception:  # a broken file fails in many ways, and all of them mean the same
        return None


def resume(checkpoint: Path, trainer: Trainer, saver: CheckpointSaver | None) -> int:
    """Load all that a checkpoint holds, and save it again in case that was interrupted; the epoch to go on with."""
    # timm returns None for a checkpoint without an epoch, which `newest_whole` does not choose
    epoch = cast(int, resume_task_checkpoint(
        trainer.task, str(checkpoint), trainer.optimizer, trainer.scaler, log_info=False))
    if trainer.task.has_ema():
        load_task_ema_checkpoint(trainer.task, str(checkpoint))
    if saver is not None:
        stored = load_checkpoint_metadata(checkpoint)
        # without `pending` the saver has the state from before it saved this epoch
        saver.load_state_dict({k: v for k, v in stored['saver'].items() if k != 'pending'})
        with writing(checkpoint.parent):
            saver.save_checkpoint(epoch - 1, stored.get('metric'))
    _logger.info(f'resumed from {checkpoint} after {epoch} epochs')
    return epoch


class DurableSaver(CheckpointSaver):
    """timm's saver, but a checkpoint is on the disk before it takes the name of an older one."""

    def _replace(self, src: str, dst: str) -> None:
        flush(src)
        super()._replace(src, dst)
        flush(self.checkpoint_dir)


def trim_log(path: Path, epochs: int) -> None:
    """Drop the rows of epochs that will be run again. The file is replaced in one step: a kill here loses nothing."""
    if path.is_file():
        content = path.read_bytes()
        with written_whole(path) as part:
            part.write_bytes(content[:content.rfind(b'\n') + 1])  # a full disk may have cut the last line or the header
            trim_summary(part, epochs)
