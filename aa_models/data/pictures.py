"""Find picture files and read any of them as the plain RGB or grey picture that a network expects."""
import contextlib
import functools
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from aa_models.errors import InputError, NoSuchFileError

# what Pillow and its plugins raise for files that are no pictures, cut or broken ones, and for sizes that are an attack
BROKEN = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, TypeError, ArithmeticError, struct.error,
          Image.DecompressionBombError)
_RARE = 'I', 'F'  # modes of grey values of more than 8 bits begin so


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """Replace folders by the pictures in and below them, in the order of their names.

    In a folder only files with a picture's suffix are taken; a file that is named itself is taken whatever its suffix.

    Raises:
        NoSuchFileError: A path does not exist.
        InputError: A folder holds no picture, or a path is an address on the web.
    """
    found = []
    for path in map(Path, paths):
        if re.match(r'https?:/', str(path)):
            address = re.sub('^(https?:)/+', r'\1//', str(path))  # as a path it has lost a stroke
            raise InputError(
                f'{address} is an address, and pictures are read from files only: `curl -s ADDRESS | aa-models '
                'predict -` fetches one')
        if not os.path.exists(path):  # which says so of a name that is too long, too
            raise NoSuchFileError(f'{path} does not exist')
        pictures = sorted(filter(_looks_like_picture, _files_below(path))) if path.is_dir() else [path]
        if not pictures:
            raise InputError(f'the folder {path} contains no picture')
        found += pictures
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """The files in and below a folder, also through links, but not in a circle."""
    for at, folders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(path) for path in (Path(at), *Path(at).parents)}
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(at, name)) not in above]
        yield from (Path(at, name) for name in files)


def read_picture(path: str | Path | BinaryIO, mode: str = 'RGB', name: str | None = None) -> Image.Image:
    """Read a picture the way a viewer shows it: upright, on white where it is transparent, its first frame.

    Args:
        path: File in any format that Pillow reads, or an open one.
        mode: Pillow's mode of the result, `'RGB'` or `'L'` (grey).
        name: Of an open file, for the error.

    Raises:
        InputError: The file is not a picture, or an incomplete one.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return as_shown(picture, mode)
    except Image.UnidentifiedImageError:
        raise InputError(f'{name or path} is not a picture in a format that can be read') from None
    except (*BROKEN, LookupError) as error:
        raise InputError(f'{name or path} cannot be read as a picture: {error}') from error


def as_shown(picture: Image.Image, mode: str) -> Image.Image:
    """A picture the way a viewer shows it: upright, and on white where it is transparent.

    Args:
        picture: Of any mode, loaded; its pixels may be turned in place.
        mode: Pillow's mode of the result, `'RGB'` or `'L'` (grey).
    """
    with contextlib.suppress(*BROKEN):  # notes that cannot be read do not say which side is up
        ImageOps.exif_transpose(picture, in_place=True)
    plain = _plain(picture)
    return plain if plain.mode == mode else plain.convert(mode)


def in_rgb(picture: Image.Image) -> Image.Image:
    """A picture of an array in memory, which may be grey, in red, green and blue."""
    return picture if picture.mode == 'RGB' else picture.convert('RGB')


def picture_mode(channels: int) -> str:
    """Pillow's mode of pictures with a number of channels.

    Raises:
        InputError: No pictures have that number of channels.
    """
    if channels not in (1, 3):
        raise InputError(f'the model reads {channels} channels, and pictures have 1 or 3')
    return 'RGB' if channels == 3 else 'L'


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes, in small letters, of the formats of pictures that can be read."""
    return frozenset(
        suffix for suffix, format in Image.registered_extensions().items()
        if format in Image.OPEN and Image.MIME.get(format, '').startswith('image/'))


def _grey_of_rare_mode(picture: Image.Image) -> Image.Image:
    """Bring grey values of 16 or 32 bits and those in floating point to 8 bits; other pictures come back as they are.

    `convert` alone would cut what is above 255 to white, and show values from 0 to 1 as black.

    Raises:
        ValueError: The range of the values does not tell what black and white are.
    """
    if not picture.mode.startswith(_RARE):
        return picture
    whole = picture.mode.startswith('I')
    values = picture.convert('I' if whole else 'F')
    low, high = (float(bound(np.asarray(values))) for bound in (np.min, np.max))  # one nan makes both nan
    # two ranges are known for each kind, and in the wider one the picture must show that it is that one
    sixteen_bits = whole and (picture.mode.startswith('I;16') or picture.format == 'PNG' or high > 255)
    white = 65535 if sixteen_bits else 255 if whole or high > 1 else 1
    if not 0 <= low <= high <= white:
        possible = '0 to 255 or 65535' if whole else '0 to 1 or 255'
        raise ValueError(f'its grey values go from {low:g} to {high:g}, and only those from {possible} are known')
    return values.point(lambda value: value * (255 / white) + (0.5 if white != 255 else 0)).convert('L')


def _plain(picture: Image.Image) -> Image.Image:
    """Change rare modes to common ones, where `convert` alone would lose the picture."""
    if not picture.has_transparency_data:
        return _grey_of_rare_mode(picture)
    if picture.mode.startswith(_RARE):  # one value stands for transparent
        shown = _grey_of_rare_mode(picture)
        shown.paste(255, mask=Image.fromarray(np.asarray(picture) == picture.info['transparency']))
        return shown
    picture = picture.convert('RGBA')  # `convert` alone would show whatever colour lies under the transparent pixels
    return Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)


def _looks_like_picture(path: Path) -> bool:
    """Whether the suffix belongs to a picture format that can be read and the file is not hidden."""
    return path.suffix.lower() in picture_suffixes() and path.is_file() and not path.name.startswith('.')
