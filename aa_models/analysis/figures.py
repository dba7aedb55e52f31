"""Draw attention over a picture."""
import math
from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from .plotting import plain_text
from .queries import cell_of

_COLOURS = 'inferno'
_COLUMNS = 5
_PANEL = 2.0  # longer side of a panel, inches
_SHORTEST = 0.2  # least part of that which the other side has: a narrower picture is stretched, to be seen at all
_BAR = 1.6  # least height of a figure, which the colour bar's label needs, inches
_HEADING = 1.5  # the width that a panel's heading needs, inches
_SHOWN = 1024  # longer side of a picture as drawn, pixels: no more can be seen in a panel


def draw(picture: Image.Image, query: tuple[int, int], panels: Mapping[str, torch.Tensor], title: str) -> Figure:
    """Draw the picture, and again for each map with the map stretched over it.

    All axes count the picture's pixels, so a point has the same coordinates in each panel. All maps have one scale of
    colours, in multiples of a map's average weight, which is what maps of different sizes have in common. It is that of
    the square root, which leaves something to be seen of a map beside another with a single bright cell.

    Args:
        picture: The picture.
        query: Column and row of the pixel whose attention is drawn; a cross marks it in the picture, in a map a cross
            and a frame its cell.
        panels: For each heading the attention weights (H, W).
        title: Printed above.
    """
    rows = math.ceil((len(panels) + 1) / _COLUMNS)
    columns = math.ceil((len(panels) + 1) / rows)
    width, height = (_PANEL * max(side / max(picture.size), _SHORTEST) for side in picture.size)
    shape = height / width
    size = columns * max(width, _HEADING) + 1.0, max(rows * (height + 0.35) + 0.3, _BAR)
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(plain_text(title), fontsize='small', wrap=True)
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    small = picture.copy()
    small.thumbnail((_SHOWN, _SHOWN))
    extent = -0.5, picture.width - 0.5, picture.height - 0.5, -0.5  # the pixel (x, y) has its centre there
    first.imshow(small.convert('RGB'), extent=extent, aspect='auto')
    first.set_title('picture', fontsize='x-small')
    _mark(first, *query)
    multiples = {name: weights * weights.numel() for name, weights in panels.items()}
    scale = PowerNorm(0.5, vmin=0, vmax=max(float(map_.max()) for map_ in multiples.values()))
    for axes, (name, map_) in zip(others, multiples.items()):
        axes.imshow(small.convert('L'), cmap='gray', vmin=0, vmax=255, extent=extent, aspect='auto')
        axes.imshow(map_.numpy(), cmap=_COLOURS, norm=scale, alpha=0.75, interpolation='nearest', extent=extent,
                    aspect='auto')
        axes.set_title(f'{name}\nup to {float(map_.max()):.3g} × average', fontsize='x-small')
        row, column = cell_of(query, picture.size, (map_.shape[0], map_.shape[1]))
        height, width = picture.height / map_.shape[0], picture.width / map_.shape[1]  # of a cell
        corner = column * width - 0.5, row * height - 0.5
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor='cyan', linewidth=0.8))
        _mark(axes, corner[0] + width / 2, corner[1] + height / 2)
    drawn = [first, *others[:len(panels)]]
    for axes in drawn:
        axes.set_box_aspect(shape)
        axes.set_axis_off()
    for axes in others[len(panels):]:
        axes.remove()
    bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=drawn)
    bar.set_label('weight, in multiples of the average', fontsize='x-small')
    bar.ax.tick_params(labelsize='x-small')
    return figure


def _mark(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, marker='+', color='cyan', markersize=9, markeredgewidth=1.5)
