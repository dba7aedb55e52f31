"""What is written survives the loss of power: content goes to the disk before it gets its name.

A system may write names and contents in any order; without this a new file may come out empty and the old one gone.
"""
import contextlib
import os
import sys
from pathlib import Path

from .errors import WriteError


def flush(path: str | os.PathLike[str]) -> None:
    """Have the system write a file, or the names in a folder, to the disk now."""
    windows = sys.platform == 'win32'
    if windows and os.path.isdir(path):
        return  # it opens no folders
    number = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # and flushes no file that is not open for writing
    try:
        os.fsync(number)
    finally:
        os.close(number)


def flush_tree(folder: Path) -> None:
    """Flush every file in a folder, and the folder."""
    for path in folder.iterdir():
        flush(path)
    flush(folder)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file in one step: a reader, or a run that was killed here, finds the old one or the whole new one.

    Raises:
        WriteError: It cannot be written, as on a full disk. The old one is there.
    """
    part = Path(f'{path}.part')
    try:
        part.write_text(text, encoding='utf-8')
        flush(part)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise WriteError(f'{path} cannot be written: {error.strerror or error}') from error
    flush(Path(path).absolute().parent)
