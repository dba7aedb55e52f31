"""Draw time and memory against the size of the map."""
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .measure import MODES, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = {'step_time': 'time of a step, ms', 'memory': 'extra peak memory of a step, MB'}
_STYLES = {'infer': ('--', 'forward'), 'train': ('-', 'forward + backward')}


def draw(rows: Sequence[Row], path: str, title: str) -> None:
    """Draw a log-log panel for time and, where it was measured, one for memory.

    Args:
        rows: Results of `measure`, one for each model and size.
        path: The picture; its ending says which kind.
        title: Printed above.
    """
    from matplotlib.figure import Figure

    panels = [name for name in _PANELS if any(f'{mode}_{name}' in row for row in rows for mode in MODES)]
    models = list(dict.fromkeys(row['model'] for row in rows))
    figure = Figure(figsize=(5.5 * len(panels), 4.6), layout='constrained')
    figure.suptitle(title, fontsize='small')
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for i, model in enumerate(models):
            _draw_model(axes, [row for row in rows if row['model'] == model], name, f'C{i}')
        sizes = sorted({row['size'] for row in rows}, key=_side)
        axes.set(xscale='log', yscale='log', xlabel='size of the map', ylabel=_PANELS[name])
        axes.set_xticks([_side(size) for size in sizes], [size.replace('x', '×') for size in sizes], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    figure.savefig(path, dpi=150)


def _draw_model(axes: 'Axes', rows: Sequence[Row], name: str, color: str) -> None:
    for mode, (style, label) in _STYLES.items():
        # a logarithm has no place for nothing at all
        points = [(_side(row['size']), row[f'{mode}_{name}']) for row in rows if row.get(f'{mode}_{name}', 0) > 0]
        if points:
            axes.plot(*zip(*points), style, color=color, marker='.', label=f'{rows[0]["model"]}, {label}')


def _side(size: str) -> int:
    return int(size.partition('x')[0])
