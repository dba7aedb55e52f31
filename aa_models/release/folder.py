"""Make the folder for the Hub from a finished run: fp16 weights, config, model card, recipe and log.

The weights are those after the last epoch, averaged where the recipe keeps an average. No validation figure has a say
in the choice, so the accuracy on the validation images stays an honest one.
"""
import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from timm.models import load_checkpoint, save_for_hf
from torch import nn

from aa_models.data.known_datasets import known_dataset
from aa_models.data.labels import describe_synsets
from aa_models.models.create import build_model, cfg_of, num_classes_of
from aa_models.training import checkpoints
from aa_models.training.loaders import data_config_of
from aa_models.training.recipe import Recipe, load_recipe

from .card import CARD, make_card

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
FILES = {WEIGHTS, CONFIG, CARD, checkpoints.RECIPE, checkpoints.LOG}
# What a cfg says about weights other than these. Its licence stays: it binds what is made from such weights too.
FOREIGN = ('notes', 'description', 'origin_url', 'label_names', 'label_descriptions', 'label_offset')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('run', metavar='RUN_DIR', help='the output directory of a finished `aa-models train`')
    parser.add_argument('--tag', help="second half of the folder's name MODEL.TAG (default: the dataset's name, of a "
                        "folder RUN_DIR's)")
    parser.add_argument('--to', metavar='DIR', help='where the folder is made (default: in RUN_DIR)')
    parser.add_argument('--repo', metavar='OWNER/NAME', help='its repository on the Hub, for the card\'s snippet')
    parser.add_argument('--machine', metavar='TEXT', help='what the run was made on, where it did not note it itself')


def run(args: argparse.Namespace) -> int:
    """Export and print the folder."""
    print(export(Path(args.run), args.tag, args.to and Path(args.to), args.repo, args.machine))
    return 0


def export(
        directory: Path,
        tag: str | None = None,
        to: Path | None = None,
        repo: str | None = None,
        machine: str | None = None,
) -> Path:
    """Write the folder `<model>.<tag>/`, whole or not at all. One that an earlier export left is replaced.

    Args:
        directory: The output directory of a finished run.
        tag: By default as `checked_tag` derives it.
        to: Where the folder is made, by default in `directory`.
        repo: Repository on the Hub that the card tells how to load.
        machine: Hardware, for the card; by default what the run noted.

    Returns:
        The folder.

    Raises:
        ValueError: No run, or an unfinished one, or something else stands where the folder is to be.
        OverflowError: A weight is not finite in float16.
    """
    if not (directory / checkpoints.RECIPE).is_file():
        raise ValueError(f'run = {str(directory)!r} holds no {checkpoints.RECIPE}: it is no output directory of a run')
    recipe = load_recipe(directory / checkpoints.RECIPE)
    tag = checked_tag(tag, recipe, directory)
    model = _load(directory, recipe)
    folder = folder_of(to or directory, model, tag)
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - FILES):
        raise ValueError(f'{str(folder)!r} is there and holds more than an export: choose another --to or --tag')
    facts = checkpoints.facts_of(directory)
    dataset = known_dataset(recipe.dataset, facts.get('classes'))
    known = list(facts.get('classes') or dataset.labels)
    labels = known if len(known) == num_classes_of(model) else None
    config = data_config_of(model, vars(recipe))
    part = folder.with_name(f'.{folder.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        make_card(
            folder.name, model, config['input_size'], recipe, directory / checkpoints.LOG, dataset,
            labels, machine or facts.get('machine'), repo).save(part / CARD)
        _save(model, part, tag, config, labels)
        for name in (checkpoints.RECIPE, checkpoints.LOG):
            shutil.copyfile(directory / name, part / name)
        _put(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def checked_tag(tag: str | None, recipe: Recipe, directory: Path) -> str:
    """The tag asked for or, by default, the dataset's name; that of the run's directory where the data are a folder.

    Raises:
        ValueError: It cannot be a part of a model's name.
    """
    if tag is None:
        name = recipe.dataset.rpartition('/')[2] or directory.resolve().name
        return re.sub(r'[^a-z0-9_-]+', '_', name.lower()) or 'run'
    if not re.fullmatch(r'[\w-]+', tag, re.ASCII):
        raise ValueError(f'tag = {tag!r} must be made of letters, digits, _ and -')
    return tag


def folder_of(parent: Path, model: nn.Module, tag: str) -> Path:
    """Where the export of a model goes."""
    return parent / f'{cfg_of(model)["architecture"]}.{tag}'


def is_export_of(folder: Path, directory: Path) -> bool:
    """Whether a folder was made from this very run, whose log with its times no other run has."""
    logs = [path / checkpoints.LOG for path in (folder, directory)]
    return all(log.is_file() for log in logs) and logs[0].read_bytes() == logs[1].read_bytes()


def _load(directory: Path, recipe: Recipe) -> nn.Module:
    """The model after the last epoch, with its cfg cleared of what belongs to other weights."""
    checkpoint = checkpoints.newest_whole(directory)
    done = 0 if checkpoint is None else checkpoints.epoch_of(checkpoint) + 1
    if done < recipe.epochs:
        raise ValueError(f'run = {str(directory)!r} is at {done} of {recipe.epochs} epochs: finish it first')
    model = build_model(recipe.model, num_classes=recipe.num_classes, **recipe.model_kwargs)
    load_checkpoint(model, str(checkpoint), use_ema=recipe.ema)
    for key in FOREIGN:
        cfg_of(model).pop(key, None)
    return model.eval()


def _save(model: nn.Module, folder: Path, tag: str, config: dict[str, Any], labels: list[str] | None) -> None:
    """Weights and config. The model is in float16 afterwards."""
    largest = {name: tensor.abs().max().item() for name, tensor in model.state_dict().items() if tensor.numel()}
    model.half()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise OverflowError(f'{name} reaches {largest[name]:g}, and float16 ends at 65504: the weights do not fit')
    cfg_of(model)['tag'] = tag
    classes = dict(label_names=labels, label_descriptions=describe_synsets(labels or ()))
    save_for_hf(model, str(folder), model_config=classes, safe_serialization=True, data_config=config)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read its files


def _put(part: Path, folder: Path) -> None:
    """Give the whole folder its name. What stood there goes first: a kill in between leaves none, not half of one."""
    if folder.exists():
        old = folder.with_name(f'.{folder.name}.old')
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old)
    else:
        part.rename(folder)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
