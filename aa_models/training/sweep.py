"""A sweep: one recipe with several settings, each a run, each run a row of a table."""
import contextlib
import csv
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from aa_models.csv_text import csv_text
from aa_models.device import check_alone
from aa_models.durable import check_file
from aa_models.errors import DivergenceError, InputError, WriteError
from aa_models.lock import HeldError, alone_at, alone_in
from aa_models.models.create import build_model
from aa_models.schema import checked, parsed_yaml

from .checkpoints import LOG, read_log
from .facts import facts_of
from .recipe import RECIPE_FILE, Recipe, load_recipe
from .run import train

_logger = logging.getLogger(__name__)

COLUMNS = (
    'model', 'settings', 'seed', 'params', 'epochs', 'top1', 'top5', 'loss', 'train_loss', 'curve', 'train_seconds',
    'machine')
LOCK = '.sweep'  # for longer than the run in the folder has its own
EACH = 'each'  # key of a run: for these keys every combination of the values listed


@dataclass(frozen=True, config=ConfigDict(extra='forbid'))
class Sweep:
    """What the YAML file of a sweep holds.

    Args:
        recipe: Name or path of the recipe.
        values: Of recipe keys, the same for all runs.
        runs: Values of recipe keys, a mapping for each run. Under the key `each`, lists of values: a run for every
            combination of them.
    """
    recipe: str
    runs: list[dict[str, Any]]
    values: dict[str, Any]

    def settings(self) -> Iterator[dict[str, Any]]:
        """What differs from the recipe, for one run after the other."""
        for run in self.runs:
            fixed = {key: value for key, value in run.items() if key != EACH}
            each = run.get(EACH, {})
            if not isinstance(each, dict) or not all(isinstance(values, list) for values in each.values()):
                raise InputError(f'runs: {EACH} = {each!r} must be a mapping of lists')
            for values in product(*each.values()):
                yield {**self.values, **fixed, **dict(zip(each, values))}


def read_sweep(path: Path) -> list[tuple[dict[str, Any], Recipe]]:
    """Read a sweep and check all its runs.

    Returns:
        For each run what differs from the recipe, and the recipe with that.

    Raises:
        InputError: No such file, a key that is unknown, a value that is impossible, or the same run twice.
    """
    sweep = checked(Sweep, {'values': {}, **parsed_yaml(path)}, f'sweep {path}')
    runs = [(settings, load_recipe(sweep.recipe, **settings)) for settings in sweep.settings()]
    if not runs:
        raise InputError(f'sweep {path} has no run: `runs` is a list of them')
    names = [_name(settings) for settings, _ in runs]
    for settings, _ in runs:
        if names.count(_name(settings)) > 1:
            raise InputError(f'sweep {path}: {_text(settings)} is there more than once')
    return runs


def run_sweep(
        path: Path, output: Path, results: Path, *, data_dir: str | None = None, download: bool = False,
        device: str | None = None, log_seconds: float = 30.0,
) -> None:
    """Make the runs that have no row in the table yet.

    Several of these processes may share a sweep: each takes runs that no other is at. An interrupted run goes on. One
    that diverges has a row without figures, and the others are made.

    Args:
        path: The sweep's YAML file.
        output: Where runs have their folders while they last.
        results: The table, a CSV file that rows are added to.
        data_dir, download, device, log_seconds: As `train` takes them.

    Raises:
        InputError: A sweep, a table or a recipe that cannot be used.
        WriteError, Stopped: As `train` does.
    """
    check_alone('a sweep (which several of these commands may share)')
    runs = read_sweep(path)
    check_file(results, 'results')  # refused before the work
    _done(results)
    for settings, recipe in runs:
        folder = output / _name(settings)
        with contextlib.suppress(HeldError), alone_in(folder, LOCK):
            if (_text(settings), str(recipe.seed)) in _done(results):
                _logger.info(f'{_text(settings)}, seed {recipe.seed}: {results} has a row of it')
            else:
                try:
                    train(recipe, folder, data_dir=data_dir, download=download, device=device, log_seconds=log_seconds)
                    figures = _figures(folder)
                except DivergenceError:
                    _logger.warning(f'{_text(settings)}, seed {recipe.seed}: diverged, its row has no figures')
                    figures = {}
                _add_row(results, {**_identity(folder, settings), **figures})
            shutil.rmtree(folder)


def _text(settings: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in settings.items() if key != 'seed'}, sort_keys=True)


def _name(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    name = re.sub(r'[^\w.-]+', '_', str(settings.get('model', 'run')))  # hf-hub:owner/net is to be one folder, too
    return f'{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def _done(results: Path) -> set[tuple[str, str]]:
    """Settings and seeds of the rows that are there."""
    if not results.exists() or not results.stat().st_size:
        return set()
    with results.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f'results = {str(results)!r} is no table of a sweep: its columns are {reader.fieldnames}')
        return {(row['settings'], row['seed']) for row in reader}


def _identity(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a run is, for its row."""
    recipe = load_recipe(folder / RECIPE_FILE)  # as it was run: with the dataset's number of classes
    with torch.device('meta'):
        name, arguments = recipe.network
        model = build_model(name, num_classes=recipe.num_classes, **arguments)
    return dict(
        model=recipe.model, settings=_text(settings), seed=recipe.seed,
        params=sum(p.numel() for p in model.parameters()), epochs=recipe.epochs, machine=facts_of(folder)['machine'])


def _figures(folder: Path) -> dict[str, str]:
    """What came of a run, for its row."""
    log = read_log(folder / LOG)
    curve = [(row['epoch'], row['eval_top1']) for row in log if row['eval_top1']]
    return dict(
        top1=f'{float(log[-1]["eval_top1"]):.2f}', top5=f'{float(log[-1]["eval_top5"]):.2f}',
        loss=f'{float(log[-1]["eval_loss"]):.4f}', train_loss=f'{float(log[-1]["train_loss"]):.4f}',
        curve=' '.join(f'{int(epoch) + 1}:{float(top1):.2f}' for epoch, top1 in curve),
        train_seconds=f'{sum(float(row["train_seconds"]) for row in log):.0f}')


def _add_row(results: Path, row: dict[str, Any]) -> None:
    """Append a row, with the columns' names above the first one; processes that share the table wait for each other."""
    what = f'results = {str(results)!r}'
    try:
        with alone_at(results, what), results.open('ab', buffering=0) as file:
            before = file.tell()
            content = csv_text(COLUMNS, [row], header=not before).encode()
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)  # half a row would spoil the table
                raise
    except OSError as error:
        raise WriteError(f'{what} cannot be written: {error.strerror}') from error
