"""Pictures of a dataset, none of which is ever replaced by another: one that cannot be read is an error by its name.

timm's `ImageDataset` takes the next sample where one cannot be read, and the figures still count the first.
"""
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageDataset

from aa_models.errors import WorkError

from .labels import said_in_a_worker
from .pictures import BROKEN, as_shown

ADVICE = '. Mend it or remove it; --skip-broken leaves such pictures out and says how many'


class BrokenPictureError(WorkError, OSError):
    """A picture of a dataset cannot be read."""

    def __init__(self, message: str) -> None:
        super().__init__(said_in_a_worker(message, type(self)))


class StrictImages(ImageDataset):
    """timm's dataset, but for pictures that cannot be read.

    Raises:
        BrokenPictureError: On reading such a picture.
    """

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        picture, target, *features = self.picture(index)
        if self.transform is not None:
            picture = self.transform(picture)
        if target is None:
            target = -1
        elif self.target_transform is not None:
            target = self.target_transform(target)
        return (picture, target) if self.additional_features is None else (picture, target, *features)

    def picture(self, index: int) -> tuple[Any, ...]:
        """A picture as it is before `transform`, with its label and what else is asked for."""
        def name() -> str:
            return f'{self.filename(index, absolute=True) or "a picture without a name"}{self._row(index)}'
        picture, *others = read(lambda: self.reader[index], name)
        return decode(picture, name, self.input_img_mode), *others

    def _row(self, index: int) -> str:
        """Where names are those of rows in a table, which need not be unique: its number."""
        return f' (row {index})' if hasattr(self.reader, 'dataset') else ''


def decode(source: Any, name: str | Path | Callable[[], str], mode: str = 'RGB') -> Image.Image:
    """Open and decode a picture, as `aa_models.data.pictures.as_shown` has it.

    Args:
        source: A path, an open file, or a picture.
        name: For the error.
        mode: Pillow's mode of the result.
    """
    def decoded() -> Image.Image:
        with source if isinstance(source, Image.Image) else Image.open(source) as picture:
            picture.load()
            return as_shown(picture, mode)
    return read(decoded, name if callable(name) else lambda: str(name))


def decode_file(path: str) -> Image.Image:
    """As torchvision's folders want to be told how a file is read."""
    return decode(path, path)


def read(function: Callable[[], Any], name: Callable[[], str]) -> Any:
    """Call a function that reads a picture, and name the picture where it cannot be read.

    Raises:
        BrokenPictureError: The function raised what Pillow and the system raise for broken files.
    """
    try:
        return function()
    except BROKEN as error:
        if isinstance(error, BrokenPictureError):
            raise
        reason = ' '.join(str(error).split())  # on one line
        raise BrokenPictureError(f'{name()} cannot be read as a picture: {reason}{ADVICE}') from error
