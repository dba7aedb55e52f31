"""Pictures drawn with matplotlib, an optional package: check before any work whether they can be, and save them."""
from pathlib import Path
from typing import TYPE_CHECKING

from aa_models.durable import check_file, written_whole
from aa_models.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plain_text(text: str) -> str:
    """A title or a name for matplotlib, which would take what is between two $ for a formula."""
    return text.replace('$', r'\$')


def check_plot(path: str) -> None:
    """Make sure that a picture can be drawn.

    Raises:
        InputError: matplotlib is missing, or cannot write such a file, or it may not be written.
        NoSuchFileError: The folder does not exist.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"output = {path!r} needs matplotlib: pip install 'aa-models[plot]'") from error
    known = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in known:
        raise InputError(f'output = {path!r} must end in one of .{", .".join(known)}')
    check_file(path, 'output')


def save_plot(figure: 'Figure', path: str) -> None:
    """Write a picture whose path `check_plot` has seen.

    Raises:
        InputError: matplotlib lacks a program for this kind of file.
        WriteError: The disk is full, or the file may not be written. An earlier one is there.
    """
    with written_whole(path, f'output = {path!r}') as part:
        try:
            figure.savefig(part, dpi=150, format=Path(path).suffix[1:].lower())
        except RuntimeError as error:  # .pgf without LaTeX
            raise InputError(f'output = {path!r} cannot be drawn: {error}') from error
