"""Find picture files and read any of them as the plain RGB or grey picture that a network expects."""
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps

from aa_models.errors import InputError, NoSuchFileError


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """Replace folders by the pictures in and below them, in the order of their names.

    In a folder only files with a picture's suffix are taken; a file that is named itself is taken whatever its suffix.

    Raises:
        NoSuchFileError: A path does not exist.
        InputError: A folder holds no picture.
    """
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise NoSuchFileError(f'{path} does not exist')
        pictures = sorted(filter(_looks_like_picture, path.rglob('*'))) if path.is_dir() else [path]
        if not pictures:
            raise InputError(f'the folder {path} contains no picture')
        found += pictures
    return found


def read_picture(path: str | Path, mode: str = 'RGB') -> Image.Image:
    """Read a picture the way a viewer shows it: upright, on white where it is transparent, its first frame.

    Args:
        path: File in any format that Pillow reads.
        mode: Pillow's mode of the result, `'RGB'` or `'L'` (grey).

    Raises:
        InputError: The file is not a picture, or an incomplete one.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            return _plain(picture).convert(mode)
    except Image.UnidentifiedImageError:
        raise InputError(f'{path} is not a picture in a format that can be read') from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f'{path} cannot be read as a picture: {error}') from error


def picture_mode(channels: int) -> str:
    """Pillow's mode of pictures with a number of channels.

    Raises:
        InputError: No pictures have that number of channels.
    """
    if channels not in (1, 3):
        raise InputError(f'the model reads {channels} channels, and pictures have 1 or 3')
    return 'RGB' if channels == 3 else 'L'


def _plain(picture: Image.Image) -> Image.Image:
    """Change rare modes to common ones, where `convert` alone would lose the picture."""
    if picture.mode.startswith('I'):  # 16-bit grey: `convert` would cut everything above 255 to white
        return picture.convert('I').point(lambda value: value * (1 / 257) + 0.5).convert('L')
    if picture.has_transparency_data:  # `convert` would show whatever colour lies under the transparent pixels
        picture = picture.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return picture


def _looks_like_picture(path: Path) -> bool:
    """Whether the suffix belongs to a picture format that Pillow can open and the file is not hidden."""
    format = Image.registered_extensions().get(path.suffix.lower())
    is_picture = format in Image.OPEN and Image.MIME.get(format, '').startswith('image/')
    return is_picture and path.is_file() and not path.name.startswith('.')
