"""Tell a person how far a transfer is: a bar where stderr is a terminal, a line of the log every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time

__all__ = ["Progress", "duration_text", "progress_text", "size_text"]

log = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two lines of the log."""


def size_text(size: float) -> str:
    """Return a number of bytes for people, in powers of 1000 as hubs and clouds count them."""
    for unit in ("B", "kB", "MB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def duration_text(seconds: float) -> str:
    """Return a duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def progress_text(done: int, total: int, rate: float) -> str:
    """Return one line: bytes, rate in bytes a second, and the time that is left at that rate."""
    left = f"{duration_text((total - done) / rate)} left" if rate > 0 else "waiting"
    return f"{size_text(done)} of {size_text(total)} ({done / max(total, 1):.0%}), {size_text(rate)}/s, {left}"


class Progress:
    """Counts bytes from any thread, and shows them while it is entered."""

    def __init__(self, total: int, *, interval: float = INTERVAL) -> None:
        self._total, self._interval = total, interval
        self._done = self._received = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._bar if sys.stderr.isatty() else self._lines, name="progress", daemon=True)

    def add(self, size: int, *, received: bool = True) -> None:
        """Count bytes; those that were there before are not `received`, and count for the way but not for the rate."""
        with self._lock:
            self._done += size
            self._received += size if received else 0

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        took = time.monotonic() - self._began
        if kind is None:
            rate = self._received / max(took, 1e-3)
            log.info("received %s in %s, %s/s", size_text(self._received), duration_text(took), size_text(rate))

    def _lines(self) -> None:
        before = 0
        while not self._over.wait(self._interval):
            now = self._received
            log.info("%s", progress_text(self._done, self._total, (now - before) / self._interval))
            before = now

    def _bar(self) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]  # no types are published

        with tqdm(total=self._total, unit="B", unit_scale=True, desc="weights") as bar:
            while not self._over.wait(0.2):
                bar.update(self._done - bar.n)
            bar.update(self._done - bar.n)
