"""Show how far a long step is: one line that is rewritten where stderr is a terminal, a new line every few seconds elsewhere.

Bytes are counted by `add`, from any thread, or read from `measure`, for a step that runs in another program.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Progress", "duration_text", "progress_text", "size_text"]

log = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two lines, and the time over which the rate is measured."""

_REDRAW = 0.2
"""Seconds between two states of the line on a terminal."""


def size_text(size: float) -> str:
    """Return a number of bytes as text, in powers of 1000 as hubs and clouds count them."""
    for unit in ("B", "kB", "MB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def duration_text(seconds: float) -> str:
    """Return a duration as text."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def progress_text(done: int, total: int, rate: float) -> str:
    """Return one line: bytes, rate in bytes per second, and the time left at that rate; a `total` of 0 means that it is not known."""
    if not total:
        return f"{size_text(done)}, {size_text(rate)}/s"
    left = f"{duration_text(max(total - done, 0) / rate)} left" if rate > 0 else "waiting"
    return f"{size_text(done)} of {size_text(total)} ({min(done / total, 1):.0%}), {size_text(rate)}/s, {left}"


class Progress:
    """Counts the bytes of one step, and shows them while the context is entered."""

    def __init__(
        self,
        total: int,
        label: str = "",
        *,
        tell: Callable[[str], object] = log.info,
        measure: Callable[[], int] | None = None,
        interval: float | None = None,
    ) -> None:
        self._total, self._prefix, self._tell, self._measure = total, label and f"{label}: ", tell, measure
        self._interval = interval or INTERVAL
        self._done = self._received = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._samples: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._redraw if sys.stderr.isatty() else self._report, name="progress", daemon=True)

    def add(self, size: int, *, received: bool = True) -> None:
        """Count bytes; those that were on the disk before are not `received`: they count for the total and not for the rate."""
        with self._lock:
            self._done += size
            self._received += size if received else 0

    @property
    def summary(self) -> str:
        """Return what was received since the context was entered, in which time, and the rate."""
        took = time.monotonic() - self._began
        return f"{size_text(self._received)} in {duration_text(took)}, {size_text(self._received / max(took, 1e-3))}/s"

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        self._samples.append((self._began, 0))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _line(self) -> str:
        if self._measure is not None:
            self._done = self._received = self._measure()
        now = time.monotonic()
        self._samples.append((now, self._received))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._interval:
            self._samples.popleft()
        then, before = self._samples[0]
        return self._prefix + progress_text(self._done, self._total, max(self._received - before, 0) / max(now - then, 1e-3))

    def _report(self) -> None:
        while not self._over.wait(self._interval):
            self._tell(self._line())

    def _redraw(self) -> None:
        clear = ""
        while not self._over.wait(_REDRAW):
            print(f"\r{self._line()[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", file=sys.stderr, flush=True)
            clear = "\r\x1b[K"
        print(clear, end="", file=sys.stderr, flush=True)
