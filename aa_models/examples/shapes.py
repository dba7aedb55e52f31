"""A folder of generated pictures to fine-tune on: few, small, twice as wide as high, and unlike photographs.

Eight figures (circle, triangle, square, pentagon, hexagon, star, cross, crescent) at any place, size, angle and colour,
before stripes and under noise. The folder is FOLDER/train/CLASS/… and FOLDER/validation/CLASS/…, as `aa-models train`
reads.

Examples:
  python -m aa_models.examples.shapes shapes
  python -m aa_models.examples.shapes shapes --train 20 --seed 1
"""
import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ['SHAPES', 'draw', 'main', 'write_folder']

SIZE = (80, 160)  # height, width
STRIPES = 0.5  # of the way from one colour of the ground to the other
NOISE = 20  # deviation, of 255
Points = list[tuple[float, float]]


def _polygon(*radii: float, corners: int) -> Points:
    """Corners on circles around 0, the radii in turn."""
    count = corners * len(radii)
    turn = 2 * math.pi / count
    return [(r * math.cos(i * turn), r * math.sin(i * turn)) for i, r in zip(range(count), radii * corners)]


def _cross() -> Points:
    half = 0.32  # of an arm's width
    quarter = [(1.0, -half), (1.0, half), (half, half)]
    turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # cosine and sine of each arm
    return [(c * x - s * y, s * x + c * y) for c, s in turns for x, y in quarter]


def _crescent() -> Points:
    angles = np.linspace(0.6, 2 * math.pi - 0.6, 40)
    outer = [(math.cos(a), math.sin(a)) for a in angles]
    inner = [(0.35 + 0.75 * math.cos(a), 0.75 * math.sin(a)) for a in np.linspace(angles[-1], angles[0], 40)]
    return outer + inner


SHAPES: dict[str, Callable[[], Points]] = {
    'circle': lambda: _polygon(1.0, corners=48),
    'crescent': _crescent,
    'cross': _cross,
    'hexagon': lambda: _polygon(1.0, corners=6),
    'pentagon': lambda: _polygon(1.0, corners=5),
    'square': lambda: _polygon(1.0, corners=4),
    'star': lambda: _polygon(1.0, 0.45, corners=5),
    'triangle': lambda: _polygon(1.0, corners=3),
}


def draw(shape: str, random: np.random.Generator) -> Image.Image:
    """Draw one picture of `SIZE`.

    Args:
        shape: A key of `SHAPES`.
        random: Where place, size, angle, colours and ground come from.
    """
    height, width = SIZE
    back, stripe, front = random.uniform(0, 255, (3, 3))
    front = front if abs(front - back).max() > 80 else (back + 128) % 256  # to be seen
    rows, columns = np.mgrid[:height, :width]
    angle, period = random.uniform(0, math.pi), random.uniform(6, 40)
    wave = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * 2 * math.pi / period)
    ground = back + (stripe - back) * STRIPES * (1 + wave[..., None]) / 2
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))

    radius = random.uniform(0.2, 0.45) * height
    x, y = random.uniform(radius, width - radius), random.uniform(radius, height - radius)
    turn = random.uniform(0, 2 * math.pi)
    c, s = radius * math.cos(turn), radius * math.sin(turn)
    points = [(x + c * u - s * v, y + s * u + c * v) for u, v in SHAPES[shape]()]
    ImageDraw.Draw(picture).polygon(points, fill=tuple(front.astype(int)))
    noisy = np.asarray(picture) + random.normal(0, NOISE, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_folder(folder: Path, train: int, validation: int, seed: int = 0) -> None:
    """Write `train` and `validation` pictures of each shape.

    Raises:
        ValueError: The folder is there and not empty, or a number is below 1.
    """
    if min(train, validation) < 1:
        raise ValueError(f'train and validation must be at least 1, not {train} and {validation}')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f'folder = {str(folder)!r} is there and not empty: choose another')
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
    parser.add_argument('folder', type=Path, help='is made')
    parser.add_argument('--train', type=int, default=50, metavar='N', help='of each shape (default: %(default)s)')
    parser.add_argument('--validation', type=int, default=125, metavar='N', help='the same (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of all that is random (default: %(default)s)')
    args = parser.parse_args(words)
    try:
        write_folder(args.folder, args.train, args.validation, args.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == '__main__':
    sys.exit(main())
