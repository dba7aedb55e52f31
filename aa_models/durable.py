"""What is written survives the loss of power: content goes to the disk before it gets its name.

A system may write names and contents in any order; without this a new file may come out empty and the old one gone.
"""
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, NoSuchFileError, WriteError


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


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: in names from old systems Python has stand-ins for other bytes."""
    return not any('\ud800' <= letter <= '\udfff' for letter in text)


def check_file(path: str | os.PathLike[str], argument: str) -> None:
    """Refuse, before any work is done, a place where no file can be written.

    Args:
        path: The file to be. A pipe, a device or a link to a file will do.
        argument: What the user calls it.

    Raises:
        InputError: It is a folder, or nobody may write there.
        NoSuchFileError: Its folder does not exist.
    """
    what, target = f'{argument} = {str(path)!r}', os.path.realpath(path)
    if os.path.isdir(target):
        raise InputError(f'{what} is a folder, not a file')
    if not os.path.isdir(folder := os.path.dirname(target)):
        raise NoSuchFileError(f'{what} is in a folder that does not exist')
    if not os.access(target if os.path.exists(target) else folder, os.W_OK):
        raise InputError(f'{what} may not be written')


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str], what: str | None = None) -> Iterator[Path]:
    """Where the body is to write what `path` will hold.

    A file gets its name in one step, when it is whole: a reader, or a run that was killed here, finds the old one or
    the new one. Of a link it is the file that it names. A pipe or a device, which nobody wants replaced, is written to.

    Args:
        path: The file.
        what: Names it in the error.

    Raises:
        WriteError: It cannot be written, as on a full disk. The old one is there.
    """
    in_place = os.path.exists(path) and not os.path.isfile(path)
    target = Path(path) if in_place else Path(path).resolve()
    part = target if in_place else target.with_name(f'{target.name}.part')
    try:
        yield part
        if not in_place:
            flush(part)
            os.replace(part, target)
            flush(target.parent)
    except OSError as error:
        raise WriteError(f'{what or path} cannot be written: {error.strerror or error}') from error
    finally:
        if not in_place:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def replace_text(path: str | os.PathLike[str], text: str, what: str | None = None) -> None:
    """Write a text as `written_whole` does, with its errors."""
    with written_whole(path, what) as part:
        part.write_text(text, encoding='utf-8')
