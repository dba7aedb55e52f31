"""A dataset as timm opens it, with one kind of error, and what it knows of its pictures and their classes."""
import logging
import os
from typing import Any

from timm.data import create_dataset
from torch.utils.data import IterableDataset, Subset

from aa_models.data.folders import folder_options, overlooked
from aa_models.data.labels import KnownLabel
from aa_models.data.split_names import split_fault
from aa_models.data.strict_datasets import leave_out_broken, strict
from aa_models.durable import is_unicode
from aa_models.errors import InputError

_logger = logging.getLogger(__name__)

# The datasets that timm opens have no common type: torch's datasets with a `transform`, most of them with a length.
AnyDataset = Any


class Part(Subset[Any]):
    """A subset with the attribute `transform` of a whole dataset, which timm's loader sets."""
    dataset: AnyDataset

    transform = property(
        lambda self: self.dataset.transform, lambda self, transform: setattr(self.dataset, 'transform', transform))


def open_dataset(name: str, root: str | None, split: str, **options: Any) -> AnyDataset:
    """`timm.data.create_dataset`, whose many kinds of errors become one.

    Raises:
        InputError: There is no such dataset or split, or it is not at `root`.
    """
    if root is not None and not os.path.isdir(root) and not options.get('download') and '://' not in root:
        raise InputError(f'data_dir = {root!r} is no directory (--dataset-download fetches what torchvision can)')
    if fault := split_fault(name, root, split):
        raise InputError(f'dataset {name or "folder"!r} at data_dir = {root!r} has no split {split!r}: {fault}')
    try:
        dataset = create_dataset(name, root=root, split=split, **options, **folder_options(name, root))
        if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
            raise ValueError('no images')
    except Exception as error:  # each kind of dataset raises its own, bare assertions among them
        raise InputError(f'dataset {name or "folder"!r}, split {split!r}, data_dir {root!r} cannot be read: '
                         f'{error or type(error).__name__}') from error
    return strict(dataset)


def say_overlooked(dataset: AnyDataset) -> None:
    """Name what a folder holds beside pictures, so that nobody takes it for counted."""
    for message in overlooked(dataset):
        _logger.warning(message)


def leave_out(dataset: AnyDataset, split: str) -> None:
    """Take the pictures that cannot be read out of a dataset, and name them."""
    for fault in (faults := leave_out_broken(dataset)):
        _logger.warning(fault)
    if faults:
        _logger.warning(f'{split}: {len(faults)} broken pictures are left out, {len(dataset)} are left')


def samples_of(dataset: AnyDataset) -> list[tuple[str, int]] | None:
    """Path and label of each picture, where the dataset is a folder."""
    return getattr(getattr(dataset, 'reader', dataset), 'samples', None)


def class_names(dataset: AnyDataset) -> list[str] | None:
    """The names of the classes in the order of their labels, where the dataset knows them.

    Raises:
        InputError: A name is no Unicode, as in archives of old systems, and could be written nowhere.
    """
    dataset = dataset.dataset if isinstance(dataset, Part) else dataset
    index = getattr(getattr(dataset, 'reader', dataset), 'class_to_idx', None)
    if not isinstance(index, dict) or sorted(index.values()) != list(range(len(index))):
        return None
    for name in index:
        if not is_unicode(str(name)):
            raise InputError(f'the class {name!r} has a name that is no Unicode: rename its folder')
    return sorted(index, key=index.__getitem__) or None


def labels_of(dataset: AnyDataset) -> list[int] | None:
    """The labels, where the dataset has them without reading its images."""
    if isinstance(dataset, Part):
        labels = labels_of(dataset.dataset)
        return labels and [labels[i] for i in dataset.indices]
    if hasattr(dataset, 'targets'):
        return [int(label) for label in dataset.targets]
    samples = samples_of(dataset)
    return [int(label) for _, label in samples] if samples else None


def check_labels(dataset: AnyDataset, num_classes: int) -> None:
    """Compare the labels with the model's classes; those that are not known yet, when they are read.

    Raises:
        InputError: There are labels that the model has no output for.
    """
    dataset = dataset.dataset if isinstance(dataset, Part) else dataset
    labels = labels_of(dataset)
    if labels is None and getattr(dataset, 'target_transform', 0) is None:
        dataset.target_transform = KnownLabel(num_classes)
    if labels and max(labels) >= num_classes:
        raise InputError(f'num_classes = {num_classes}, but the images have labels to {max(labels)}')
