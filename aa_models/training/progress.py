"""How far a pass over the data is: a bar on a terminal, a line now and then in a log."""
import logging
import sys
import time
from datetime import timedelta

from tqdm import tqdm

_logger = logging.getLogger(__name__)


class Progress:
    """Counts batches and images, and shows the progress.

    Args:
        label: What is being done, e.g. `epoch 3/14`.
        total: Batches in this pass.
        after: Batches of later passes, which count for the time left.
        every: Seconds between lines where there is no terminal.
        show: False on all processes but the first.
    """

    def __init__(self, label: str, total: int, after: int = 0, every: float = 30.0, show: bool = True) -> None:
        self.label, self.total, self.after, self.every, self.show = label, total, after, every, show
        self.batches = self.images = 0
        self.start = self.spoken = time.perf_counter()
        self.bar = tqdm(total=total, desc=label, unit='batch', leave=False, disable=not (show and sys.stderr.isatty()))

    @property
    def seconds(self) -> float:
        """Since the beginning of the pass."""
        return time.perf_counter() - self.start

    @property
    def speed(self) -> float:
        """Images in a second."""
        return self.images / max(self.seconds, 1e-9)

    def step(self, images: int, **figures: float) -> None:
        """Count a batch. The figures are shown with the next line."""
        self.batches += 1
        self.images += images
        self.bar.update()
        if not self.show or time.perf_counter() - self.spoken < (self.every if self.bar.disable else 1.0):
            return
        self.spoken = time.perf_counter()
        left = (self.total - self.batches + self.after) * self.seconds / self.batches
        text = ' '.join(f'{name} {value:.4g}' for name, value in figures.items())
        text = f'{self.speed:.1f} img/s {text} ETA {timedelta(seconds=round(left))}'
        if self.bar.disable:
            _logger.info(f'{self.label}: {self.batches}/{self.total} {text}')
        else:
            self.bar.set_postfix_str(text, refresh=False)
