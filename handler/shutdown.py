"""TERM and INT, the only signals of the worker, as one event on its loop.

The handlers are installed before the loop runs and stay until the process ends: with the loop's own, a signal that meets the loop's end
would kill the process. A handler only counts and wakes the loop; everything that ends, ends in the coroutines that wait for the event.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["INTERRUPTED", "Interrupted", "Shutdown"]

INTERRUPTED = 130
"""The exit code of a worker that was asked to stop before it served, as after Ctrl-C."""

T = TypeVar("T")


class Interrupted(Exception):
    """The worker was asked to stop before it served."""


class Shutdown:
    """Whether the worker was asked to stop; make it in the main thread, and `attach` it to the loop."""

    def __init__(self) -> None:
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again: Callable[[], None] = lambda: None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)

    def attach(self) -> None:
        """Wake this loop from now on."""
        self._loop, self.requested = asyncio.get_running_loop(), asyncio.Event()
        self._tell()

    def when_asked_again(self, act: Callable[[], None]) -> None:
        """Call `act` for every further signal: to stop at once."""
        self._again = act

    async def unless_requested(self, work: Awaitable[T]) -> T:
        """Return what `work` gives; cancel it and raise Interrupted as soon as the worker is asked to stop."""
        working, asked = asyncio.ensure_future(work), asyncio.ensure_future(self.requested.wait())
        try:
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and not working.done():
                raise Interrupted
            return working.result()
        finally:
            for task in (working, asked):
                task.cancel()
            await asyncio.gather(asked, *([] if working.done() else [working]), return_exceptions=True)

    def _received(self, *_: object) -> None:
        self._count += 1
        if self._loop:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and so has all that could be stopped
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._count > 1 and self.requested.is_set():
            self._again()
        if self._count:
            self.requested.set()
