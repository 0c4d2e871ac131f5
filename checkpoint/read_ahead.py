"""Bring the weights into the page cache while the engine imports, so that it loads them from memory.

An engine spends its first ten seconds or more on imports and touches no weight; a disk that idles meanwhile is time lost. The files
are read, block by block, into a buffer that is thrown away. `posix_fadvise(WILLNEED)` would save the copy, but the kernel cuts each call
to its own read-ahead window and drops calls that come too fast: measured on Linux 6.18, one call for a file of 2 GiB brought in nothing,
calls of 16 MiB brought in half.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from checkpoint.files import weight_files
from checkpoint.memory import memory_left
from checkpoint.progress import duration_text, size_text

__all__ = ["ReadAhead"]

log = logging.getLogger(__name__)

_BLOCK = 8 << 20
_THREADS = 4
"""Enough to keep a network volume busy, whose single streams are slow; a local disk is busy with one."""


class ReadAhead:
    """Reads the weights of a directory in threads of its own while it is entered; `stop` ends it early, and may be called twice.

    It reads at most `budget` bytes, by default half of what the container's memory has left: beyond that, what it brings in would push out
    what the engine needs. A file that cannot be read is the engine's to complain about.
    """

    def __init__(self, directory: Path, *, budget: int | None = None) -> None:
        self._budget = memory_left() // 2 if budget is None else budget
        self._directory = directory
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._blocks = self._plan()
        self._threads = [threading.Thread(target=self._read, name=f"read-ahead-{number}", daemon=True) for number in range(_THREADS)]
        self.done = 0
        """Bytes read so far."""
        self.seconds = 0.0
        """From the first block to the last one so far: the time of the reading, however long the engine takes after it."""

    def __enter__(self) -> ReadAhead:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self) -> None:
        """Return once all is read."""
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """End the reading within a block, for the engine is ready."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self.wait()
        rest = ", and stopped before the rest" if next(self._blocks, None) else ""
        if self.done:
            log.info("read %s of weights ahead in %s%s", size_text(self.done), duration_text(self.seconds), rest)

    def _plan(self) -> Iterator[tuple[Path, int]]:
        """Yield file and offset of each block, in the order in which engines load shards, until the budget is spent."""
        planned = 0
        with contextlib.suppress(OSError, ValueError):
            for name in weight_files(self._directory):
                path = self._directory / name
                for offset in range(0, path.stat().st_size, _BLOCK):
                    if planned + _BLOCK > self._budget:
                        return
                    planned += _BLOCK
                    yield path, offset

    def _read(self) -> None:
        buffer = bytearray(_BLOCK)
        while not self._stopped.is_set():
            with self._lock:
                block = next(self._blocks, None)
            if block is None:
                return
            path, offset = block
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    size = os.preadv(descriptor, [buffer], offset)
                finally:
                    os.close(descriptor)
                with self._lock:
                    self.done += size
                    self.seconds = time.monotonic() - self._began
