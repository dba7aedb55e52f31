"""A folder of generated pictures to fine-tune on: few, small, twice as wide as high, and unlike photographs.

Eight figures (circle, triangle, square, pentagon, hexagon, star, cross, crescent) of any position, size, angle and
colour, on a striped background and under noise. They go to FOLDER/train/CLASS and FOLDER/validation/CLASS, where
`aa-models train` looks.

Examples:
  python -m aa_models.examples.shapes shapes
  python -m aa_models.examples.shapes shapes --train 20 --seed 1
"""
import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from aa_models.errors import InputError

SIZE = (80, 160)  # height, width
STRIPES = 0.5  # contrast: how far the stripes go from the background's one colour to the other
NOISE = 20  # standard deviation, of values up to 255


def _polygon(*radii: float, corners: int) -> np.ndarray:
    """Points at equal angles around 0, whose radii repeat: one for each corner, or two for a star."""
    count = corners * len(radii)
    return np.tile(radii, corners) * np.exp(2j * np.pi * np.arange(count) / count)


_ARC = np.exp(1j * np.linspace(0.6, 2 * np.pi - 0.6, 40))
# Outlines, at most 1 from their centre: x + 1j * y, so that a product turns and scales them
SHAPES = {
    'circle': _polygon(1.0, corners=48),
    'crescent': np.concatenate([_ARC, 0.35 + 0.75 * _ARC[::-1]]),
    'cross': np.outer([1, 1j, -1, -1j], [1 - 0.32j, 1 + 0.32j, 0.32 + 0.32j]).ravel(),  # 0.32 is half an arm's width
    'hexagon': _polygon(1.0, corners=6),
    'pentagon': _polygon(1.0, corners=5),
    'square': _polygon(1.0, corners=4),
    'star': _polygon(1.0, 0.45, corners=5),
    'triangle': _polygon(1.0, corners=3),
}


def draw(shape: str, random: np.random.Generator) -> Image.Image:
    """Draw one picture of `SIZE`; arguments as in `draw_with_mask`."""
    return draw_with_mask(shape, random)[0]


def draw_with_mask(shape: str, random: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw one picture of `SIZE`, and where its figure is.

    Args:
        shape: A key of `SHAPES`.
        random: Gives position, size, angle, colours and background.

    Returns:
        The picture, and a grey one: 255 in the figure, 0 around it.
    """
    height, width = SIZE
    back, stripe, front = random.uniform(0, 255, (3, 3))
    front = front if abs(front - back).max() > 80 else (back + 128) % 256  # stands out
    rows, columns = np.mgrid[:height, :width]
    angle, period = random.uniform(0, math.pi), random.uniform(6, 40)
    wave = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * 2 * math.pi / period)
    ground = back + (stripe - back) * STRIPES * (1 + wave[..., None]) / 2
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))

    radius = random.uniform(0.2, 0.45) * height
    centre = random.uniform(radius, width - radius) + 1j * random.uniform(radius, height - radius)
    outline = centre + radius * np.exp(1j * random.uniform(0, 2 * math.pi)) * SHAPES[shape]
    corners, mask = list(zip(outline.real, outline.imag)), Image.new('L', (width, height))
    ImageDraw.Draw(picture).polygon(corners, fill=tuple(front.astype(int)))
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    noisy = np.asarray(picture) + random.normal(0, NOISE, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), mask


def write_folder(folder: Path, train: int, validation: int, seed: int = 0) -> None:
    """Write `train` and `validation` pictures of each shape.

    Raises:
        InputError: The folder exists and is not empty, a number is below 1, or the seed below 0.
    """
    if min(train, validation) < 1:
        raise InputError(f'train and validation must be at least 1, not {train} and {validation}')
    if seed < 0:
        raise InputError(f'seed must be at least 0, not {seed}')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f'folder = {str(folder)!r} exists and is not empty: choose another')
    random = np.random.default_rng(seed)
    for split, count in (('train', train), ('validation', validation)):
        for shape in SHAPES:
            target = folder / split / shape
            target.mkdir(parents=True)
            for number in range(count):
                draw(shape, random).save(target / f'{number:04}.png')


def main(words: Sequence[str] | None = None) -> int:
    """Write the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='where to write; new or empty')
    for split, default in (('train', 50), ('validation', 125)):
        parser.add_argument(
            f'--{split}', type=int, default=default, metavar='N', help='pictures of each shape (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all random numbers (default: %(default)s)')
    args = parser.parse_args(words)
    try:
        write_folder(args.folder, args.train, args.validation, args.seed)
    except (InputError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == '__main__':
    sys.exit(main())
