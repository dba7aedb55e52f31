"""Draw attention over a picture."""
import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from .queries import cell_of

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
    width, height = (_PANEL * side / max(picture.size) for side in picture.size)
    width, height = max(width, _HEADING), max(height, _PANEL / 5)
    figure = Figure(figsize=(columns * width + 0.2, rows * (height + 0.35) + 0.3), layout='constrained')
    figure.suptitle(title, fontsize='small', wrap=True)
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    small = picture.copy()
    small.thumbnail((_SHOWN, _SHOWN))
    extent = -0.5, picture.width - 0.5, picture.height - 0.5, -0.5  # the pixel (x, y) has its centre there
    first.imshow(small.convert('RGB'), extent=extent)
    first.set_title('picture', fontsize='x-small')
    for axes, (name, weights) in zip(others, panels.items()):
        axes.imshow(small.convert('L'), cmap='gray', vmin=0, vmax=255, extent=extent)
        axes.imshow(weights.numpy(), cmap='inferno', vmin=0, alpha=0.75, interpolation='nearest', extent=extent)
        axes.set_title(f'{name}\nlargest {float(weights.max()):.2g}', fontsize='x-small')
        H, W = weights.shape
        row, column = cell_of(query, picture.size, (H, W))
        width, height = picture.width / W, picture.height / H  # of the map's cell in which the query lies
        axes.add_patch(Rectangle(
            (column * width - 0.5, row * height - 0.5), width, height, fill=False, edgecolor='cyan', linewidth=0.8))
    for axes in (first, *others[:len(panels)]):
        axes.plot(*query, marker='+', color='cyan', markersize=9, markeredgewidth=1.5)
        axes.set_axis_off()
    for axes in others[len(panels):]:
        axes.remove()
    return figure
