"""Draw time and memory against the size of the map."""
from collections.abc import Sequence

from aa_models.analysis.plotting import save_plot

from .measure import Row

_PANELS = {'step_time': 'time of a step, ms', 'memory': 'extra peak memory of a step, MB'}
_STYLES = {'infer': ('--', 'forward'), 'train': ('-', 'forward + backward')}


def draw_growth(rows: Sequence[Row], path: str, title: str) -> None:
    """Draw a log-log panel for time and, where it was measured, one for memory.

    Args:
        rows: One for each model and size.
        path: The picture; its ending says which kind.
        title: Printed above.

    Raises:
        WriteError: The picture cannot be written.
    """
    from matplotlib.figure import Figure  # an optional package

    panels = [name for name in _PANELS if any(f'{mode}_{name}' in row for row in rows for mode in _STYLES)]
    sides = {row['size']: int(row['size'].partition('x')[0]) for row in rows}
    figure = Figure(figsize=(5.5 * len(panels), 4.6), layout='constrained')
    figure.suptitle(title, fontsize='small')
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for i, model in enumerate(dict.fromkeys(row['model'] for row in rows)):
            for mode, (style, label) in _STYLES.items():
                points = [(sides[row['size']], row.get(f'{mode}_{name}', 0)) for row in rows if row['model'] == model]
                if points := [point for point in points if point[1] > 0]:  # 0 has no logarithm
                    axes.plot(*zip(*points), style, color=f'C{i}', marker='.', label=f'{model}, {label}')
        axes.set(xscale='log', yscale='log', xlabel='size of the map', ylabel=_PANELS[name])
        axes.set_xticks(list(sides.values()), [size.replace('x', '×') for size in sides], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    save_plot(figure, path)
