"""Draw attention over a picture."""
import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

_COLUMNS = 5
_PANEL = 2.0  # longer side of a panel, inches
_HEADING = 1.5  # the width that a panel's heading needs, inches
_SHOWN = 1024  # longer side of a picture as drawn, pixels: no more can be seen in a panel


def draw(picture: Image.Image, query: tuple[int, int], panels: Mapping[str, torch.Tensor], title: str) -> Figure:
    """Draw the picture, and again for each map with the map stretched over it.

    All axes count the picture's pixels, so a point has the same coordinates in each panel.

    Args:
        picture: The picture.
        query: Column and row of the pixel whose attention is drawn; a cross marks it, a frame its cell of the map.
        panels: For each heading the attention weights (H, W).
        title: Printed above.
    """
    rows = math.ceil((len(panels) + 1) / _COLUMNS)
    columns = math.ceil((len(panels) + 1) / rows)
    longer = max(picture.size)
    width, height = (_PANEL * side / longer for side in picture.size)
    width, height = max(width, _HEADING), max(height, _PANEL / 5)
    figure = Figure(figsize=(columns * width + 0.2, rows * (height + 0.35) + 0.3), layout='constrained')
    figure.suptitle(title, fontsize='small', wrap=True)
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    small = picture.copy()
    small.thumbnail((_SHOWN, _SHOWN))
    _show(first, small.convert('RGB'), picture.size, 'picture')
    _mark(first, query)
    for axes, (name, weights) in zip(others, panels.items()):
        _show(axes, small.convert('L'), picture.size, f'{name}\nlargest {float(weights.max()):.2g}')
        axes.imshow(
            weights.numpy(), cmap='inferno', vmin=0, alpha=0.75, interpolation='nearest', extent=_extent(picture.size))
        _mark(axes, query)
        _frame(axes, query, picture.size, weights.shape)
    for axes in others[len(panels):]:
        axes.remove()
    return figure


def _extent(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The borders of a picture whose pixel (x, y) has its centre there: left, right, bottom, top."""
    return -0.5, size[0] - 0.5, size[1] - 0.5, -0.5


def _show(axes: Axes, picture: Image.Image, size: tuple[int, int], heading: str) -> None:
    axes.imshow(picture, cmap='gray', vmin=0, vmax=255, extent=_extent(size))
    axes.set_title(heading, fontsize='x-small')
    axes.set_axis_off()


def _mark(axes: Axes, query: tuple[int, int]) -> None:
    axes.plot(*query, marker='+', color='cyan', markersize=9, markeredgewidth=1.5)


def _frame(axes: Axes, query: tuple[int, int], size: tuple[int, int], map_size: Sequence[int]) -> None:
    """Outline the map's cell in which the query lies."""
    width, height = size[0] / map_size[1], size[1] / map_size[0]
    left, top = (pixel * cells // side * step - 0.5 for pixel, cells, side, step in zip(
        query, map_size[::-1], size, (width, height)))
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor='cyan', linewidth=0.8))
