"""One place, one writer: who writes there holds a lock on it, and the next one is told who that is."""
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import InputError

_logger = logging.getLogger(__name__)
LOCK = '.lock'
_HOLDER = '.txt'  # behind the lock's name: a locked file cannot be read on every system


class HeldError(InputError):
    """Another process holds the lock."""


@contextlib.contextmanager
def alone_in(folder: Path, name: str = LOCK, what: str | None = None, wait: float = 0.) -> Iterator[None]:
    """Hold the lock of a folder, which is made where there is none, for the time of the body.

    The operating system lets go of the lock with the process, however that ends: a kill leaves nothing to clean up.
    Processes forked meanwhile, such as readers of pictures, do not hold it.

    Args:
        folder: What the body writes into.
        name: Of the file that is locked; it is gone afterwards.
        what: What the body writes, for the error.
        wait: Seconds to wait until another process lets go.

    Raises:
        HeldError: Another process holds it. The message says which, on which machine and since when.
        InputError: The folder cannot be made or written to.
    """
    # its other kind of lock, for file systems without the system's, would outlive a kill
    what = what or f'output = {str(folder)!r}'
    lock, holder = FileLock(folder / name, fallback_to_soft=False), folder / f'{name}{_HOLDER}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait)
    except Timeout:
        raise HeldError(f'{what} is in use by {_text_of(holder)}: let it end, or choose another place') from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise InputError(f'{what} cannot be written: nothing can be made in {str(folder)!r}: {error}') from error
        _logger.warning(f'{folder} is on a file system without locks: start no second run in it')
    process = os.getpid()
    with contextlib.suppress(OSError):  # a full disk has room for a lock, which is no content
        holder.write_text(f'process {process} on {socket.gethostname()} since {time.strftime("%Y-%m-%d %H:%M:%S")}')
    try:
        yield
    finally:
        if os.getpid() == process:  # not in a forked child
            # before the lock goes: afterwards the files may be another process's
            for path in (holder, folder / name):
                with contextlib.suppress(OSError):  # one system removes a file that is open, another does not
                    path.unlink(missing_ok=True)
            lock.release()


def alone_at(path: Path, what: str) -> contextlib.AbstractContextManager[None]:
    """Hold, for the time of the body, the lock of a file or folder that is to be replaced; it lies beside it.

    Another process that does the same is waited for, a minute long; for the errors see `alone_in`.
    """
    path = path.absolute()
    return alone_in(path.parent, f'.{path.name}{LOCK}', what, wait=60)


def _text_of(holder: Path) -> str:
    try:
        return holder.read_text(encoding='utf-8') or 'another process'
    except OSError:
        return 'another process'
