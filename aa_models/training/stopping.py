"""SIGTERM and SIGINT (Ctrl-C): what is being saved is completed, then the run leaves. Nothing holds one that failed."""
import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run was asked to stop. Not an `Exception`, which a library on the way up might take for its own."""


class StopSignals:
    """While this context lasts, either signal raises `Stopped`: at once, or at the end of what is `held`."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.raised = False
        self.holding = False
        self.before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():  # no other can have handlers
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell leaves SIGINT for what runs behind it
                    self.before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        if not self.holding:
            self._leave()

    def _leave(self) -> None:
        self.raised = True
        if hasattr(signal, 'SIGCHLD'):  # by it torch calls a lost worker an error, but they were told to stop as well
            self.before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL) or signal.SIG_DFL)
        raise Stopped(self.received[-1].name)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Complete the body, then raise `Stopped` if a signal came meanwhile. An error of the body goes first."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.received:
            self._leave()

    def only_note(self) -> None:
        """From here on no signal raises: the run is on its way out and shall say why."""
        self.holding = True

    @property
    def status(self) -> int:
        """The customary exit status: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.received[-1]


def leave_within(seconds: float) -> None:
    """End this process by then with status 1, if it has not ended by itself.

    For one of several that has failed: as torch takes its process group apart it may wait for the others, and they wait
    for this one. That happens in C++ with Python's lock held, where no thread of Python can help.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=open(os.devnull, 'w'))  # noqa: SIM115, open to the end
