"""SIGTERM and SIGINT (Ctrl-C): a file that is being saved is completed, then the run stops.

torchrun passes such a signal on and stops the other processes when one has ended. What it leaves to each process is to
complete a checkpoint, to say what is saved, and to end with the status that tells a batch system why.
"""
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Stopped(KeyboardInterrupt):
    """A run was asked to stop. Not an `Exception`, so that no library on the way up handles it as its own failure.

    Args:
        message: What happened and what is saved.
        number: The signal.
    """

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.number, self.status = number, 128 + number  # the customary exit status: 130 for SIGINT, 143 for SIGTERM


class StopSignals:
    """While this context lasts, either signal raises `Stopped`: at once, or at the end of a body that is `held`."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.raised: Stopped | None = None
        self.holding = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell ignores SIGINT for a job in the background
                    self._handle(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: signal.Signals, handler: Any) -> None:
        self.before.setdefault(number, signal.signal(number, handler))

    def _receive(self, number: int, frame: object) -> None:
        self.received.append(signal.Signals(number))
        if not self.holding:
            self._stop()

    def _stop(self) -> None:
        # Where a signal went to the whole process group, the loader's workers end by it too, and from then on torch
        # raises "worker is killed by signal" out of its handler of SIGCHLD, in any line, also in a destructor.
        if hasattr(signal, 'SIGCHLD'):
            self._handle(signal.SIGCHLD, signal.SIG_DFL)
        self.raised = Stopped(f'stopped by {self.received[-1].name}', self.received[-1])
        raise self.raised

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Complete the body, then raise `Stopped` if a signal came meanwhile. An error of the body goes first."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.received:
            self._stop()

    def only_note(self, for_good: bool = False) -> None:
        """From here on no signal raises, because the run is ending and has yet to say why.

        Args:
            for_good: Not even after this context. For one of several processes: the launcher stops all others as soon
                as it has lost one, and this one may be about to report its own failure.
        """
        self.holding = True
        if for_good:
            self.before.clear()
