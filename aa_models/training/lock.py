"""One folder, one run: who writes into a folder holds a lock on it, and the next one is told who that is."""
import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from aa_models.errors import InputError

_logger = logging.getLogger(__name__)
LOCK = '.lock'
_held: set[int] = set()  # descriptors of files that this process has locked


def _leave_to_parent() -> None:
    """Close the locked files in a forked child: one that reads pictures would hold the lock of a killed parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class HeldError(InputError):
    """Another process holds the lock."""


@contextlib.contextmanager
def alone_in(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold the lock of a folder, which is made where there is none, for the time of the body.

    The operating system lets go of the lock with the process, however that ends: a kill leaves nothing to clean up.

    Args:
        folder: What the body writes into.
        name: Of the file that is locked; it is gone afterwards.

    Raises:
        HeldError: Another process holds it. The message says which, on which machine and since when.
        InputError: The folder cannot be made or written to.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except BlockingIOError:
        raise HeldError(
            f'output = {str(folder)!r} is in use by {_holder(path)}: let it end, or choose another directory') from None
    except OSError as error:
        raise InputError(f'output = {str(folder)!r} cannot be made a directory to write in: {error}') from error
    with file:
        _held.add(file.fileno())
        try:
            yield
        finally:
            if file.fileno() in _held:  # not in a forked child
                path.unlink(missing_ok=True)  # before the lock goes: afterwards the file may be another process's
                _held.remove(file.fileno())


def _locked(path: Path) -> TextIO:
    """Open and lock a file, and write into it who did."""
    while True:
        file = path.open('a+', encoding='utf-8')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.close()  # its holder removed it between the two calls
                continue
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                file.close()
                raise
            _logger.warning(f'{path.parent} is on a file system without locks: start no second run in it')
        with contextlib.suppress(OSError):  # a full disk has room for a lock, which is no content
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()} since {time.strftime("%Y-%m-%d %H:%M:%S")}')
            file.flush()
        return file


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8') or 'another process'
    except OSError:
        return 'another process'
