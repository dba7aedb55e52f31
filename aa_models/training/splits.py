"""Which pictures of a dataset a run learns from, and which it is measured on."""
import copy
import dataclasses
import hashlib
import itertools
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset

from aa_models.errors import InputError

from .datasets import AnyDataset, Part, class_names, labels_of, leave_out, open_dataset, samples_of, say_overlooked
from .recipe import Recipe

_logger = logging.getLogger(__name__)

SHARE_HELD_OUT = 0.1


def with_holdout(recipe: Recipe, root: str | None) -> Recipe:
    """A recipe that validates on a tenth of the pictures where a folder of class folders has no splits of its own."""
    if recipe.dataset or recipe.holdout or recipe.train_split == recipe.val_split:
        return recipe
    train, evaluation = (open_dataset('', root, split) for split in (recipe.train_split, recipe.val_split))
    if samples_of(train) != samples_of(evaluation):
        return recipe
    count = max(len(class_names(train) or ()), round(SHARE_HELD_OUT * len(train)))
    _logger.info(
        f'{root} has no folders {recipe.train_split}/ and {recipe.val_split}/: {count} of its {len(train)} pictures '
        'are held out to validate on (--holdout N chooses how many)')
    return dataclasses.replace(recipe, holdout=count)


def open_datasets(recipe: Recipe, root: str | None, download: bool) -> tuple[AnyDataset, AnyDataset]:
    """Open the images to train on and those to validate on."""
    options = dict(download=download, batch_size=recipe.batch_size, seed=recipe.seed)
    train = open_dataset(recipe.dataset, root, recipe.train_split, is_training=True, **options)
    if isinstance(train, IterableDataset) and not recipe.workers:
        raise InputError('workers = 0, but must be at least 1: without worker processes the order of '
                         f'{recipe.dataset!r} cannot be repeated')
    say_overlooked(train)
    names = class_names(train)
    if names and len(names) == 1 and not recipe.unlabelled:
        raise InputError(f'data_dir = {root!r} has one class only, {names[0]!r}: a folder {recipe.train_split}/CLASS/… '
                         'with the pictures directly in it is needed for each class')
    if recipe.skip_broken:
        leave_out(train, recipe.train_split)
    indices: list[int] | None = None  # of the training images; all of them
    if recipe.holdout:
        held = _choose(train, None, recipe.holdout, 'holdout', recipe)
        indices = sorted(set(range(len(train))).difference(held))
        evaluation = Part(copy.copy(train), held)  # a copy, because each has its own transform
    else:
        evaluation = open_dataset(recipe.dataset, root, recipe.val_split, **options)
        say_overlooked(evaluation)
        _check_pair(train, evaluation, recipe, root)
        if recipe.skip_broken:
            leave_out(evaluation, recipe.val_split)
    if recipe.train_images:
        indices = _choose(train, indices, recipe.train_images, 'train_images', recipe)
    return train if indices is None else Part(train, indices), evaluation


def with_fingerprint(recipe: Recipe, train: AnyDataset, root: str | None) -> Recipe:
    """A recipe that notes which folder's pictures it holds some out of."""
    samples = samples_of(train.dataset) if recipe.holdout and isinstance(train, Part) else None
    return dataclasses.replace(recipe, holdout_of=_fingerprint(samples, root) if samples else None)


def _fingerprint(samples: list[tuple[str, int]], root: str | None) -> str:
    """A few letters that differ for other names of pictures in a folder, wherever that lies."""
    names = sorted(os.path.relpath(path, root) for path, _ in samples)
    return hashlib.sha256('\0'.join(names).encode(errors='surrogateescape')).hexdigest()[:16]


def held_out(dataset: AnyDataset, recipe: Recipe, root: str | None) -> AnyDataset:
    """Of a folder without splits, which serves training and validation, the pictures that a run holds out.

    Args:
        dataset: The recipe's `val_split`, without its broken pictures.
        recipe: Of the run. Any other dataset, and a folder of other pictures than it noted, stay whole.
        root: The folder.
    """
    samples = samples_of(dataset)
    if samples is None or not recipe.holdout or recipe.train_split == recipe.val_split:
        return dataset
    trained = samples_of(open_dataset(recipe.dataset, root, recipe.train_split))
    if trained is None or not set(samples) <= set(trained):
        return dataset
    no_splits = f'{root} has no folders {recipe.train_split}/ and {recipe.val_split}/'
    if recipe.holdout >= len(dataset) or recipe.holdout_of not in (None, _fingerprint(samples, root)):
        _logger.warning(f'{no_splits}, and its pictures are not those that training held {recipe.holdout} out of: all '
                        f'{len(dataset)} are measured, with those among them that it was trained on')
        return dataset
    part = Part(dataset, _choose(dataset, None, recipe.holdout, 'holdout', recipe))
    _logger.warning(
        f'{no_splits}: measured are the {len(part)} of its {len(dataset)} pictures that training by this recipe holds '
        f'out (--split {recipe.train_split}: all)')
    return part


def at_most(count: int, dataset: AnyDataset, option: str, recipe: Recipe) -> AnyDataset:
    """A part of a dataset with a transform of its own: at most that many of its pictures, evenly of all classes."""
    whole, indices = dataset, list(range(len(dataset)))
    if isinstance(dataset, Part):
        whole, indices = dataset.dataset, list(dataset.indices)
    if len(indices) > count:
        indices = _choose(whole, indices, count, option, recipe)
    return Part(copy.copy(whole), indices)


def _choose(dataset: AnyDataset, indices: list[int] | None, count: int, option: str, recipe: Recipe) -> list[int]:
    """`count` of the indices, of all by default, with errors that name the option."""
    if isinstance(dataset, IterableDataset):
        raise InputError(f'{option} = {count} needs a dataset with random access, not {recipe.dataset!r}')
    indices = list(range(len(dataset))) if indices is None else indices
    if count >= len(indices):
        raise InputError(f'{option} = {count} must be below the {len(indices)} training images')
    labels = labels_of(dataset)
    own = labels and [labels[i] for i in indices]
    return choose_evenly(indices, own, count, recipe.seed, last_stays=option == 'holdout')


def choose_evenly(
        indices: list[int], labels: list[int] | None, count: int, seed: int, last_stays: bool = False) -> list[int]:
    """`count` of the indices in rising order, as evenly from all classes as can be where their labels are known.

    With `last_stays` the last image of a class is chosen when there are no others, so that a rare class keeps one.
    """
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        counters: dict[int, Iterator[int]] = defaultdict(itertools.count)
        turn = [next(counters[labels[i]]) for i in order.tolist()]  # images of its class that come before each image
        if last_stays:
            sizes = Counter(labels)
            turn = [t if t + 1 < sizes[labels[i]] else len(labels) for t, i in zip(turn, order.tolist())]
        order = order[torch.tensor(turn).argsort(stable=True)]
    return sorted(indices[i] for i in order[:count].tolist())


def _check_pair(train: AnyDataset, evaluation: AnyDataset, recipe: Recipe, root: str | None) -> None:
    """Refuse two mistakes that timm's search for the folder of a split accepts: one folder for both splits, which would
    validate on the training images, and folders of different classes, whose labels would not match.
    """
    samples = samples_of(train)
    if samples and samples == samples_of(evaluation) and recipe.train_split != recipe.val_split:
        raise InputError(
            f'data_dir = {root!r} has no folders {recipe.train_split}/ and {recipe.val_split}/: it would be validated '
            'on the training images. Make them, or hold images out with --holdout N')
    parts = [getattr(dataset, 'train', None) for dataset in (train, evaluation)]  # of torchvision's datasets
    if isinstance(parts[0], bool) and parts[0] == parts[1] and recipe.train_split != recipe.val_split:
        raise InputError(f'{recipe.train_split} and {recipe.val_split} are the same part of {recipe.dataset}: it would '
                         'be validated on the training images')
    names, others = class_names(train), class_names(evaluation)
    if names and others and names != others and not recipe.unlabelled:
        differing = ', '.join(sorted(set(names) ^ set(others))) or 'their order'
        raise InputError(
            f'{recipe.train_split} and {recipe.val_split} of data_dir = {root!r} differ in their classes: {differing}')
