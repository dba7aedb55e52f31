"""What every picture drawn with matplotlib, an optional package, needs before any work is done."""
from pathlib import Path


def check_plot(path: str) -> None:
    """Make sure that a picture can be drawn.

    Raises:
        ValueError: matplotlib is missing, or cannot write such a file.
        FileNotFoundError: The folder does not exist.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"output = {path!r} needs matplotlib: pip install 'aa-models[plot]'") from error
    known = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in known:
        raise ValueError(f'output = {path!r} must end in one of .{", .".join(known)}')
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f'output = {path!r}: the folder {Path(path).parent} does not exist')
