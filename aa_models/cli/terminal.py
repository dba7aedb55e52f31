"""What a command prints, on any terminal: its characters shown if the encoding has them, none of them a command."""
import contextlib
import io
import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import TextIO

from aa_models.errors import WriteError


def harmless(text: str) -> str:
    """Escape what a terminal would obey instead of show; names of classes and files may hold anything."""
    return ''.join(
        repr(letter)[1:-1] if unicodedata.category(letter) in ('Cc', 'Cf', 'Cs') and letter not in '\n\t' else letter
        for letter in text)


def start_logging(level: int = logging.INFO) -> None:
    """Have the first process say what happens, from a level on."""
    from timm.utils import setup_default_logging
    from timm.utils.distributed import world_info_from_env

    if not logging.root.handlers:
        setup_default_logging(level if world_info_from_env()[1] == 0 else logging.ERROR)
        log_harmlessly()
    # of internals: keys of weights, files that are kept; each convolution whenever a network is built
    for name in ('timm', 'aa_models.augmentation'):
        logging.getLogger(name).setLevel(logging.WARNING)


def log_harmlessly() -> None:
    """Have the lines of the log, which go past `Output` to standard error, escaped in the same way."""
    for handler in (*logging.root.handlers, logging.lastResort):
        if handler is not None:
            handler.addFilter(_escape)


def _escape(record: logging.LogRecord) -> bool:
    record.msg, record.args = harmless(record.getMessage()), ()
    return True


class Output(io.TextIOBase):
    """Standard output as commands write it: control characters are escaped, and so is what its encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = self.stream.encoding or 'utf-8'
        with self._failing():
            self.stream.write(harmless(text).encode(encoding, 'backslashreplace').decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self.stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the reader has seen enough
            raise
        except OSError as error:
            leave(self.stream)
            raise WriteError(f'standard output cannot be written: {error.strerror}') from error

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()


def leave(stream: TextIO) -> None:
    """Have Python not try again, as it ends, to write what cannot be written."""
    with contextlib.suppress(OSError, ValueError):  # tests have no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_closed_streams() -> None:
    """Give a process that was started without standard output or error ones that swallow what is written."""
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))  # noqa: SIM115, for the process's life
