"""Pictures of a dataset, none of which is ever replaced by another: one that cannot be read is an error by its name.

timm's `ImageDataset` takes the next sample where one cannot be read, and the figures still count the first.
"""
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageDataset
from torchvision.datasets import DatasetFolder

from aa_models.errors import InputError, WorkError

from .pictures import BROKEN, grey_of_rare_mode

_ADVICE = '. Mend it or remove it; --skip-broken leaves such pictures out and says how many'


class BrokenPictureError(WorkError, OSError):
    """A picture of a dataset cannot be read."""

    def __init__(self, message: str) -> None:
        # a loader's worker process hands on the whole traceback as the message; what was said stands at its end
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].rstrip())


class StrictImages(ImageDataset):
    """timm's dataset, but for pictures that cannot be read.

    Raises:
        BrokenPictureError: On reading such a picture.
    """

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        picture, target, *features = _read(lambda: self.reader[index], lambda: self.filename(index, absolute=True))
        picture = decode(picture, self.filename(index, absolute=True), self.input_img_mode)
        if self.transform is not None:
            picture = self.transform(picture)
        if target is None:
            target = -1
        elif self.target_transform is not None:
            target = self.target_transform(target)
        return (picture, target) if self.additional_features is None else (picture, target, *features)


def strict(dataset: Any) -> Any:
    """Have a dataset that timm opened name what it cannot read. Streams and arrays are left as they are."""
    if type(dataset) is ImageDataset and not dataset.load_bytes:
        return StrictImages(
            None, dataset.reader, input_img_mode=dataset.input_img_mode, transform=dataset.transform,
            target_transform=dataset.target_transform, additional_features=dataset.additional_features)
    if isinstance(dataset, DatasetFolder):
        dataset.loader = lambda path: decode(path, path)
    return dataset


def leave_out_broken(dataset: Any) -> list[str]:
    """Take the pictures that cannot be read out of a folder of pictures; each is read once.

    Returns:
        What is wrong with each.

    Raises:
        InputError: The dataset is no folder, or nothing would be left.
    """
    owner = getattr(dataset, 'reader', dataset)
    samples = getattr(owner, 'samples', None)
    if not isinstance(samples, list) or not samples or not isinstance(samples[0][0], (str, Path)):
        raise InputError('skip_broken needs a folder of pictures: of other datasets each picture counts')
    faults: dict[int, str] = {}
    for index, (path, _) in enumerate(samples):
        try:
            decode(path, path)
        except BrokenPictureError as error:
            faults[index] = str(error).removesuffix(_ADVICE)
    if len(faults) == len(samples):
        raise InputError(f'none of the {len(samples)} pictures can be read: {faults[0]}')
    owner.samples = [sample for index, sample in enumerate(samples) if index not in faults]
    if hasattr(owner, 'targets'):
        owner.targets = [label for _, label in owner.samples]
    return list(faults.values())


def decode(source: Any, name: str | Path, mode: str | None = 'RGB') -> Image.Image:
    """Open and decode a picture.

    Args:
        source: A path or an open file.
        name: For the error.
        mode: Pillow's mode of the result; None for the picture's own.
    """
    def read() -> Image.Image:
        with Image.open(source) as picture:
            picture.load()
            return grey_of_rare_mode(picture).convert(mode or picture.mode)
    return _read(read, lambda: name)


def _read(read: Callable[[], Any], name: Callable[[], str | Path]) -> Any:
    try:
        return read()
    except BROKEN as error:
        reason = ' '.join(str(error).split())  # on one line
        raise BrokenPictureError(f'{name()} cannot be read as a picture: {reason}{_ADVICE}') from error
