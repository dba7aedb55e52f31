"""From a dataset's name to the loaders of training and validation, all of them timm's."""
import copy
import dataclasses
import itertools
import logging
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch import nn
from torch.utils.data import IterableDataset, Subset
from torchvision import transforms

from aa_models.data.folders import folder_options, overlooked
from aa_models.data.labels import KnownLabel
from aa_models.data.strict_datasets import leave_out_broken, strict
from aa_models.durable import is_unicode
from aa_models.errors import InputError

from .device_cache import CachedLoader
from .image_sizes import ByEpoch, training_sizes
from .recipe import Recipe

_logger = logging.getLogger(__name__)

# The datasets that timm opens have no common type: torch's datasets with a `transform`, most of them with a length.
Images = Any
Config = dict[str, Any]
SHARE_HELD_OUT = 0.1
DATA_KEYS = ('img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')


def data_config_of(model: nn.Module, recipe: Recipe) -> Config:
    """Size, mean, std, filter and crop of the pictures: the recipe's, or those of the model's cfg where it has None."""
    return resolve_data_config({key: getattr(recipe, key) for key in DATA_KEYS}, model=model)


def size_text(input_size: Sequence[int]) -> str:
    """(C, H, W) for a reader: `'128'` where it is square, else `'96 × 160'`."""
    height, width = input_size[1:]
    return f'{height}' if height == width else f'{height} × {width}'


class RandomShift:
    """Shift a picture by up to `most` pixels in each direction, reflecting it at the border.

    The result is that of reflective padding and a random crop to the original size, without the padded copy.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, picture: Image.Image) -> Image.Image:
        pixels = np.asarray(picture)  # (H, W) or (H, W, channels)
        if min(pixels.shape[:2]) <= self.most:
            raise InputError(f'crop_padding = {self.most} needs pictures larger than that, not {picture.size}')
        rows, columns = map(self._source, pixels.shape[:2])
        return Image.fromarray(pixels[rows][:, columns])

    def _source(self, size: int) -> np.ndarray:
        """Along one axis of `size` pixels, the pixel of the source that each pixel of the result shows."""
        index = np.abs(np.arange(size) + random.randint(-self.most, self.most))
        return size - 1 - np.abs(size - 1 - index)


class _Part(Subset[Any]):
    """A subset with the attribute `transform` of a whole dataset, which timm's loader sets."""
    dataset: Images

    transform = property(
        lambda self: self.dataset.transform, lambda self, transform: setattr(self.dataset, 'transform', transform))


def open_dataset(name: str, root: str | None, split: str, **options: Any) -> Images:
    """`timm.data.create_dataset`, whose many kinds of errors become one.

    Raises:
        InputError: There is no such dataset or split, or it is not at `root`.
    """
    if root is not None and not os.path.isdir(root) and not options.get('download') and '://' not in root:
        raise InputError(f'data_dir = {root!r} is no directory (--dataset-download fetches what torchvision can)')
    try:
        dataset = create_dataset(name, root=root, split=split, **options, **folder_options(name, root))
        if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
            raise ValueError('no images')
    except Exception as error:  # each kind of dataset raises its own, bare assertions among them
        raise InputError(f'dataset {name or "folder"!r}, split {split!r}, data_dir {root!r} cannot be read: '
                         f'{error or type(error).__name__}') from error
    return strict(dataset)


def with_holdout(recipe: Recipe, root: str | None) -> Recipe:
    """A recipe that validates on a tenth of the pictures where a folder of class folders has no splits of its own."""
    if recipe.dataset or recipe.holdout or recipe.train_split == recipe.val_split:
        return recipe
    train, evaluation = (open_dataset('', root, split) for split in (recipe.train_split, recipe.val_split))
    if _samples(train) != _samples(evaluation):
        return recipe
    count = max(len(class_names(train) or ()), round(SHARE_HELD_OUT * len(train)))
    _logger.info(
        f'{root} has no folders {recipe.train_split}/ and {recipe.val_split}/: {count} of its {len(train)} pictures '
        'are held out to validate on (--holdout N chooses how many)')
    return dataclasses.replace(recipe, holdout=count)


def open_datasets(recipe: Recipe, root: str | None, download: bool) -> tuple[Images, Images]:
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
        _leave_out(train, recipe.train_split)
    indices: list[int] | None = None  # of the training images; all of them
    if recipe.holdout:
        held = _choose(train, None, recipe.holdout, 'holdout', recipe)
        indices = sorted(set(range(len(train))).difference(held))
        evaluation = _Part(copy.copy(train), held)  # a copy, because each has its own transform
    else:
        evaluation = open_dataset(recipe.dataset, root, recipe.val_split, **options)
        say_overlooked(evaluation)
        _check_pair(train, evaluation, recipe, root)
        if recipe.skip_broken:
            _leave_out(evaluation, recipe.val_split)
    if recipe.train_images:
        indices = _choose(train, indices, recipe.train_images, 'train_images', recipe)
    return train if indices is None else _Part(train, indices), evaluation


def held_out(dataset: Images, recipe: Recipe, root: str | None) -> Images:
    """Of a folder without splits, which serves training and validation, the pictures that a run holds out.

    Args:
        dataset: The recipe's `val_split`, without its broken pictures.
        recipe: Of the run. Any other dataset, and a folder of fewer pictures than it holds out, stay whole.
        root: The folder.
    """
    if recipe.dataset or not recipe.holdout or recipe.train_split == recipe.val_split:
        return dataset
    if recipe.holdout >= len(dataset) or _samples(open_dataset('', root, recipe.train_split)) != _samples(dataset):
        return dataset
    part = _Part(dataset, _choose(dataset, None, recipe.holdout, 'holdout', recipe))
    _logger.warning(
        f'{root} has no folders {recipe.train_split}/ and {recipe.val_split}/: measured are the {len(part)} of its '
        f'{len(dataset)} pictures that training held out (--split {recipe.train_split}: all)')
    return part


def say_overlooked(dataset: Images) -> None:
    """Name what a folder holds beside pictures, so that nobody takes it for counted."""
    for message in overlooked(dataset):
        _logger.warning(message)


def _leave_out(dataset: Images, split: str) -> None:
    """Take the pictures that cannot be read out of a dataset, and name them."""
    for fault in (faults := leave_out_broken(dataset)):
        _logger.warning(fault)
    if faults:
        _logger.warning(f'{split}: {len(faults)} broken pictures are left out, {len(dataset)} are left')


def _choose(dataset: Images, indices: list[int] | None, count: int, option: str, recipe: Recipe) -> list[int]:
    """`count` of the indices, of all by default, with errors that name the option."""
    if isinstance(dataset, IterableDataset):
        raise InputError(f'{option} = {count} needs a dataset with random access, not {recipe.dataset!r}')
    indices = list(range(len(dataset))) if indices is None else indices
    if count >= len(indices):
        raise InputError(f'{option} = {count} must be below the {len(indices)} training images')
    labels = labels_of(dataset)
    return choose_evenly(indices, labels and [labels[i] for i in indices], count, recipe.seed)


def _check_pair(train: Images, evaluation: Images, recipe: Recipe, root: str | None) -> None:
    """Refuse two mistakes that timm's search for the folder of a split accepts: one folder for both splits, which would
    validate on the training images, and folders of different classes, whose labels would not match.
    """
    samples = _samples(train)
    if samples and samples == _samples(evaluation) and recipe.train_split != recipe.val_split:
        raise InputError(
            f'data_dir = {root!r} has no folders {recipe.train_split}/ and {recipe.val_split}/: it would be validated '
            'on the training images. Make them, or hold images out with --holdout N')
    names, others = class_names(train), class_names(evaluation)
    if names and others and names != others and not recipe.unlabelled:
        differing = ', '.join(sorted(set(names) ^ set(others))) or 'their order'
        raise InputError(
            f'{recipe.train_split} and {recipe.val_split} of data_dir = {root!r} differ in their classes: {differing}')


def _samples(dataset: Images) -> list[tuple[str, int]] | None:
    """Path and label of each picture, where the dataset is a folder."""
    return getattr(getattr(dataset, 'reader', dataset), 'samples', None)


def class_names(dataset: Images) -> list[str] | None:
    """The names of the classes in the order of their labels, where the dataset knows them.

    Raises:
        InputError: A name is no Unicode, as in archives of old systems, and could be written nowhere.
    """
    dataset = dataset.dataset if isinstance(dataset, _Part) else dataset
    index = getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None)
    if not isinstance(index, dict) or sorted(index.values()) != list(range(len(index))):
        return None
    for name in index:
        if not is_unicode(str(name)):
            raise InputError(f'the class {name!r} has a name that is no Unicode: rename its folder')
    return sorted(index, key=index.__getitem__) or None


def labels_of(dataset: Images) -> list[int] | None:
    """The labels, where the dataset has them without reading its images."""
    if isinstance(dataset, _Part):
        labels = labels_of(dataset.dataset)
        return labels and [labels[i] for i in dataset.indices]
    if hasattr(dataset, 'targets'):
        return [int(label) for label in dataset.targets]
    samples = _samples(dataset)
    return [int(label) for _, label in samples] if samples else None


def check_labels(dataset: Images, num_classes: int) -> None:
    """Compare the labels with the model's classes; those that are not known yet, when they are read.

    Raises:
        InputError: There are labels that the model has no output for.
    """
    dataset = dataset.dataset if isinstance(dataset, _Part) else dataset
    labels = labels_of(dataset)
    if labels is None and getattr(dataset, 'target_transform', 0) is None:
        dataset.target_transform = KnownLabel(num_classes)
    if labels and max(labels) >= num_classes:
        raise InputError(f'num_classes = {num_classes}, but the images have labels to {max(labels)}')


def choose_evenly(indices: list[int], labels: list[int] | None, count: int, seed: int) -> list[int]:
    """`count` of the indices in rising order, as evenly from all classes as can be where their labels are known."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        counters: dict[int, Iterator[int]] = defaultdict(itertools.count)
        turn = [next(counters[labels[i]]) for i in order.tolist()]  # images of its class that come before each image
        order = order[torch.tensor(turn).argsort(stable=True)]
    return sorted(indices[i] for i in order[:count].tolist())


def make_train_loader(dataset: Images, recipe: Recipe, config: Config, device: torch.device, distributed: bool) -> Any:
    """Batches of augmented images, normalised and on the device; in the sizes that the recipe has for each epoch."""
    if recipe.device_cache:
        return _filled(CachedLoader(dataset, recipe, config, device, distributed), dataset, recipe)
    transforms: dict[int, Any] = {}
    for epoch, input_size in training_sizes(recipe, config['input_size']).items():
        loader = _train_loader(dataset, recipe, config | dict(input_size=input_size), device, distributed)
        transforms[epoch] = dataset.transform
    if len(transforms) > 1:
        dataset.transform = ByEpoch(transforms)
    if distributed and hasattr(loader.sampler, 'seed'):
        loader.sampler.seed = recipe.seed
    return _filled(loader, dataset, recipe)


def _filled(loader: Any, dataset: Images, recipe: Recipe) -> Any:
    """The loader, if it has a batch."""
    if len(loader) == 0:
        raise InputError(f'{len(dataset)} training images do not fill one batch (batch_size = {recipe.batch_size})')
    return loader


def _train_loader(dataset: Images, recipe: Recipe, config: Config, device: torch.device, distributed: bool) -> Any:
    """timm's loader of one size, which gives the dataset its transform."""
    trivial = recipe.auto_augment == 'ta_wide'
    height, width = config['input_size'][1:]
    ratio = tuple(ratio * width / height for ratio in recipe.ratio)  # validation does not stretch pictures either
    options = _loader_options(recipe, config, device, distributed) | dict(
        scale=recipe.scale, ratio=ratio, hflip=recipe.hflip, re_prob=recipe.re_prob,
        color_jitter=None if trivial or not recipe.color_jitter else recipe.color_jitter,
        auto_augment=None if trivial else recipe.auto_augment)
    loader = create_loader(dataset, is_training=True, **options)
    steps = dataset.transform.transforms
    if recipe.crop_padding:
        if not isinstance(steps[0], RandomResizedCropAndInterpolation):
            raise RuntimeError(f"timm's training transform starts with {steps[0]}, not with the random crop")
        resize = transforms.Resize(width, interpolation=str_to_interp_mode(config['interpolation']))
        steps[:1] = [RandomShift(recipe.crop_padding), resize, transforms.CenterCrop(width)]
    if trivial:
        steps.insert(len(steps) - 1, transforms.TrivialAugmentWide())  # the last step makes the tensor
    return loader


def make_eval_loader(
        dataset: Images, recipe: Recipe, config: Config, device: torch.device, distributed: bool = False,
) -> Any:
    """Batches of centre-cropped images, normalised and on the device."""
    return create_loader(dataset, crop_pct=config['crop_pct'], crop_mode=config['crop_mode'],
                         **_loader_options(recipe, config, device, distributed))


def make_probe_loader(dataset: Images, recipe: Recipe, config: Config, device: torch.device, most: int) -> Any:
    """Batches of the training pictures, at most that many and then evenly of all classes, as they are in validation."""
    whole, indices = dataset, list(range(len(dataset)))
    if isinstance(dataset, _Part):
        whole, indices = dataset.dataset, list(dataset.indices)
    if len(indices) > most:
        indices = _choose(whole, indices, most, 'linear_probe', recipe)
    return make_eval_loader(_Part(copy.copy(whole), indices), recipe, config, device)  # a copy has its own transform


def _loader_options(recipe: Recipe, config: Config, device: torch.device, distributed: bool) -> dict[str, Any]:
    # new workers take their seeds from the epoch's: no state outlives an epoch
    return {key: config[key] for key in ('input_size', 'interpolation', 'mean', 'std')} | dict(
        batch_size=recipe.batch_size, num_workers=recipe.workers, distributed=distributed, device=device,
        pin_memory=device.type == 'cuda', worker_seeding='all', persistent_workers=False)
