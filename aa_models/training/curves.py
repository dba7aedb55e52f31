"""The accuracy of training runs over their epochs: read from their logs, and drawn."""
import csv
import re
from collections.abc import Iterable
from pathlib import Path

from aa_models.analysis.plotting import check_plot, plain_text, save_plot
from aa_models.errors import InputError, NoSuchFileError

from .checkpoints import LOG, read_log


def read_curve(path: Path) -> tuple[str, dict[int, float]]:
    """Read a run's log: its name, and its top-1 in percent by the number of epochs, wherever it was measured.

    The name is that of the folder of a `log.csv` or that of another file, in which `-seedN` does not count.

    Raises:
        NoSuchFileError: There is no log.
        InputError: There is no accuracy in it.
    """
    path = path.parent if path.name == LOG and path.is_file() else path
    log = path / LOG if path.is_dir() else path
    if not log.is_file():
        raise NoSuchFileError(f'run = {str(path)!r} is neither a log nor a folder with {LOG}')
    try:
        curve = {int(row['epoch']) + 1: float(row['eval_top1']) for row in read_log(log) if row.get('eval_top1')}
    except (ValueError, KeyError, csv.Error) as error:
        raise InputError(f'run = {str(path)!r} is no log of a training run: {error!r}') from error
    if not curve:
        raise InputError(f'run = {str(path)!r} has no accuracy (column eval_top1)')
    name = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r'-seed\d+$', '', name), curve


def draw_curves(runs: Iterable[Path], output: str, title: str = '') -> None:
    """Draw one line for each model, or for each of its tags where there are several.

    Args:
        runs: Logs, or folders with a `log.csv`. Those of one name become their mean, in a band from least to largest.
            A name without a tag is that of the only tag of this model, if there is one.
        output: The picture.
        title: Printed above.

    Raises:
        InputError: A run without accuracies, seeds without a common epoch, or a picture that cannot be drawn.
    """
    check_plot(output)
    named = [read_curve(run) for run in runs]
    tags: dict[str, set[str]] = {}
    for name, _ in named:
        model, _, tag = name.partition('.')
        tags.setdefault(model, set()).update([tag] if tag else [])
    groups: dict[str, list[dict[int, float]]] = {}
    for name, curve in named:
        model = name.partition('.')[0]
        groups.setdefault(name if len(tags[model]) > 1 else model, []).append(curve)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for i, (name, curves) in enumerate(sorted(groups.items())):
        epochs = sorted(set.intersection(*map(set, curves)))
        if not epochs:
            raise InputError(f'the {len(curves)} runs of {name} were measured after no epoch in common')
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        seeds = f', {len(curves)} seeds' if len(curves) > 1 else ''
        axes.plot(epochs, [sum(v) / len(v) for v in values], f'C{i}.-', label=_in_legend(name + seeds))
        axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=f'C{i}', alpha=0.25, lw=0)
    axes.set(xlabel='epochs', ylabel='top-1, %', title=plain_text(title))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    save_plot(figure, output)


def _in_legend(name: str) -> str:
    """A name as matplotlib shows it: one that begins with _ would be left out."""
    return plain_text(f' {name}' if name.startswith('_') else name)
