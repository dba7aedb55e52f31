"""The folder of a finished run, ready for `local-dir:…` and for the Hub: fp16 weights, config, model card, recipe, log.

The weights are those after the last epoch, averaged where the recipe keeps an average. Accuracy on the validation
images has no part in choosing them, so it stays an honest estimate.
"""
import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from timm.models import load_checkpoint
from torch import nn

from aa_models.data.known_datasets import known_dataset
from aa_models.data.labels import describe_synsets
from aa_models.durable import flush, flush_tree, is_unicode
from aa_models.errors import DivergenceError, InputError, WriteError
from aa_models.lock import alone_at
from aa_models.models.create import build_model, cfg_of, num_classes_of
from aa_models.training import checkpoints
from aa_models.training.facts import facts_of
from aa_models.training.loaders import data_config_of
from aa_models.training.recipe import RECIPE_FILE, Recipe, load_recipe
from aa_models.zoo import CONFIG, WEIGHTS_FILE

from .card import CARD, make_card
from .half_range import shrink_variances
from .saving import save_folder

FILES = {WEIGHTS_FILE, CONFIG, CARD, RECIPE_FILE, checkpoints.LOG}
# Entries of a cfg that describe other weights than these. The licence stays: it binds whatever is made from them.
FOREIGN = ('notes', 'description', 'origin_url', 'label_names', 'label_descriptions', 'label_offset')


def pack_run(
        directory: Path, tag: str | None = None, *, to: Path | None = None, repo: str | None = None,
        machine: str | None = None, reuse: bool = False,
) -> Path:
    """Write the folder `<model>.<tag>/` of a finished run, whole or not at all, and return it. An earlier one goes.

    Args:
        directory: The output directory of the run.
        tag: By default as `checked_tag` derives it.
        to: Where the folder is made, by default in `directory`.
        repo: Repository on the Hub that the card tells how to load.
        machine: Hardware, for the card; by default what the run noted.
        reuse: Leave a folder that was made from this very run as it is, with what its card has been given since.

    Raises:
        InputError: No run, or an unfinished one, or something else is in the way.
        DivergenceError: A weight is not finite in float16.
    """
    if not (directory / RECIPE_FILE).is_file():
        raise InputError(f'run = {str(directory)!r} holds no {RECIPE_FILE}: it is no output directory of a run')
    recipe = load_recipe(directory / RECIPE_FILE)
    tag = checked_tag(tag, recipe, directory)
    checkpoint = checkpoints.newest_whole(directory)
    done = 0 if checkpoint is None else checkpoints.epoch_of(checkpoint) + 1
    if done < recipe.epochs:
        raise InputError(f'run = {str(directory)!r} is at {done} of {recipe.epochs} epochs: finish it first')
    name, arguments = recipe.network
    model = build_model(name, num_classes=recipe.num_classes, **arguments)
    folder = (to or directory) / f'{cfg_of(model)["architecture"]}.{tag}'
    logs = [path / checkpoints.LOG for path in (folder, directory)]  # no other run has one with the same times in it
    if reuse and all(log.is_file() for log in logs) and logs[0].read_bytes() == logs[1].read_bytes():
        return folder
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - FILES):
        raise InputError(f'{str(folder)!r} exists and holds more than a packed run: choose another --to or --tag')
    check_place(folder)
    load_checkpoint(model, str(checkpoint), use_ema=recipe.ema)
    with replacing(folder) as part:
        _fill(part, folder.name, model.eval(), recipe, directory, repo, machine)
    return folder


def checked_tag(tag: str | None, recipe: Recipe, directory: Path) -> str:
    """The tag asked for or, by default, the dataset's name; that of the run's directory where the data are a folder.

    Raises:
        InputError: It cannot be a part of a model's name.
    """
    if tag is None:
        name = recipe.dataset.rpartition('/')[2] or directory.resolve().name
        tag = re.sub(r'[^\w-]+', '_', name, flags=re.ASCII)
    if not re.fullmatch(r'[\w-]+', tag, flags=re.ASCII):
        raise InputError(f'tag = {tag!r} must be made of letters, digits, _ and -')
    return tag


def check_place(folder: Path) -> None:
    """Refuse a folder that cannot be made, before any work is done.

    Raises:
        InputError: A file is in its way, or a link to nothing, nobody may write there, or its name is no Unicode.
    """
    above = next(path for path in folder.absolute().parents if path.exists())
    if not above.is_dir():
        raise InputError(f'{str(folder)!r} cannot be made: {str(above)!r} is no folder')
    if not os.access(above, os.W_OK):
        raise InputError(f'{str(folder)!r} cannot be made: {str(above)!r} may not be written to')
    if folder.is_symlink() and not folder.exists():
        raise InputError(f'{str(folder)!r} is a link to a place that does not exist')
    if not is_unicode(folder.name):
        raise InputError(f'{str(folder)!r} has a name that is no Unicode, and its card could not tell it')


@contextlib.contextmanager
def replacing(folder: Path, new: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which takes the name of `folder` where the body succeeds.

    An earlier folder of that name is removed first: a kill in between leaves none, never half of one. Of processes that
    do this at once each waits for the other.

    Args:
        folder: The folder to be.
        new: There may be none of this name.

    Raises:
        InputError: There is one that may not be there, or another process does not come to its end.
        WriteError: It cannot be written, as on a full disk. An earlier one is there.
    """
    what = f'output = {str(folder)!r}'
    with alone_at(folder, what):
        if new and folder.exists():
            raise InputError(f'{what} exists: choose another, or remove it')
        with _replacing(folder) as part:
            yield part


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    part, old = (folder.with_name(f'.{folder.name}.{kind}') for kind in ('part', 'old'))
    for path in (part, old):
        shutil.rmtree(path, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        flush_tree(part)
        if folder.exists():
            folder.rename(old)
        try:
            part.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        flush(folder.absolute().parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise WriteError(f'{str(folder)!r} cannot be written: {error}') from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(
        part: Path, name: str, model: nn.Module, recipe: Recipe, directory: Path, repo: str | None, machine: str | None,
) -> None:
    """Write all files of a folder that is to be called `name`. The model is in float16 afterwards."""
    facts = facts_of(directory)
    # without labels the classes are the teacher's, and say nothing of the pictures
    dataset = known_dataset(recipe.dataset, None if recipe.unlabelled else facts.get('classes'))
    known = list(facts.get('classes') or dataset.labels)
    labels = known if len(known) == num_classes_of(model) else None
    config = data_config_of(model, recipe)
    for key in FOREIGN:
        cfg_of(model).pop(key, None)
    make_card(name, model, config['input_size'], recipe, directory / checkpoints.LOG, dataset, labels,
              machine or facts.get('machine'), repo).save(part / CARD)
    cfg_of(model)['tag'] = name.partition('.')[2]
    shrink_variances(model)
    largest = {name: tensor.abs().max().item() for name, tensor in model.state_dict().items() if tensor.numel()}
    model.half()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise DivergenceError(f'{name} reaches {largest[name]:g}, more than the 65504 that float16 can hold')
    classes = dict(label_names=labels, label_descriptions=describe_synsets(labels or ()))
    save_folder(model, part, model_config=classes, data_config=config)
    for file in (RECIPE_FILE, checkpoints.LOG):
        shutil.copyfile(directory / file, part / file)
