"""The datasets that timm opens, made strict: no picture is left out or replaced by another without a word."""
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, IterableImageDataset
from torchvision.datasets import DatasetFolder

from aa_models.errors import InputError

from .strict_images import ADVICE, BrokenPictureError, StrictImages, decode, decode_file
from .strict_streams import StrictStream, broken_of_stream


def strict(dataset: Any) -> Any:
    """Have a dataset that timm opened name what it cannot read. Arrays in memory are left as they are."""
    if type(dataset) is ImageDataset and not dataset.load_bytes:
        return StrictImages(
            None, dataset.reader, input_img_mode=dataset.input_img_mode, transform=dataset.transform,
            target_transform=dataset.target_transform, additional_features=dataset.additional_features)
    if type(dataset) is IterableImageDataset:
        return StrictStream(dataset)
    if isinstance(dataset, DatasetFolder):
        dataset.loader = decode_file
    return dataset


def leave_out_broken(dataset: Any) -> list[str]:
    """Take the pictures that cannot be read out of a dataset; each is read once.

    Args:
        dataset: A folder, a stream of WebDataset or a table of Hugging Face's `datasets`, as `strict` returned it.

    Returns:
        What is wrong with each.

    Raises:
        InputError: The dataset is of another kind, or nothing would be left.
        BrokenPictureError: A file of a stream is cut, so that nobody knows how many pictures are lost.
    """
    if isinstance(dataset, StrictStream):
        faults, count = broken_of_stream(dataset)
    else:
        faults, count = _broken_of_table(dataset)
    if len(faults) == count:
        raise InputError(f'none of the {count} pictures can be read: {next(iter(faults), "there is none")}')
    return faults


def _broken_of_table(dataset: Any) -> tuple[list[str], int]:
    """Of a dataset with random access: what is wrong with each broken picture, and the number of all."""
    owner = getattr(dataset, 'reader', dataset)
    samples: Any = getattr(owner, 'samples', None)
    table: Any = getattr(owner, 'dataset', None)
    is_folder = isinstance(samples, list) and bool(samples) and isinstance(samples[0][0], (str, Path))
    if not is_folder and not (isinstance(dataset, StrictImages) and hasattr(table, 'select')):
        raise InputError(
            'skip_broken needs a folder of pictures, wds/… or hfds/…: of other datasets each picture counts')
    faults: dict[int, str] = {}
    count = len(dataset)
    for index in range(count):
        try:
            decode(samples[index][0], samples[index][0]) if is_folder else dataset.picture(index)
        except BrokenPictureError as error:
            faults[index] = str(error).removesuffix(ADVICE)
    kept = [index for index in range(count) if index not in faults]
    if is_folder:
        owner.samples = [samples[index] for index in kept]
        if hasattr(owner, 'targets'):
            owner.targets = [label for _, label in owner.samples]
    elif faults:
        owner.dataset = table.select(kept)
    return list(faults.values()), count
