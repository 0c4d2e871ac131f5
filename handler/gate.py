"""How many requests may run at the same time, and for how long; at the end of the worker, all are let out in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from handler.errors import Unavailable
from handler.timeouts import timeout

__all__ = ["Gate"]

_RETRY_SOON = 1
"""Seconds after which a full worker may be asked again: about the length of a short answer."""

_LAST_WORDS = 2.0
"""Seconds that requests which were ended have for their last words."""


class Gate:
    """Lets in at most `most` requests at once, each for at most `seconds`."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._running: set[asyncio.Task[object]] = set()
        self._verdicts: dict[asyncio.Task[object], Unavailable] = {}
        self._empty, self._closed = asyncio.Event(), False

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place for the current task while the block runs.

        Raises:
            Unavailable: no place is free, the worker leaves, or the block was ended from here: it took too long, or the worker leaves.
        """
        if self._closed:
            raise _leaving()
        if len(self._running) >= self._most:
            message = f"the worker answers {self._most} requests at the same time (MAX_CONCURRENCY), and so many are running"
            raise Unavailable(message, status=429, code="too_many_requests", retry_after=_RETRY_SOON)
        task = asyncio.current_task()
        assert task is not None, "requests run in tasks"  # noqa: S101  # for the type checker
        message = f"the request took longer than {self._seconds:g} s (HTTP_REQUEST_TIMEOUT)"
        late = Unavailable(message, status=504, code="request_timeout")
        timer = asyncio.get_running_loop().call_later(self._seconds, self._end, task, late)
        self._running.add(task)
        try:
            yield
        except asyncio.CancelledError:
            verdict = self._verdicts.get(task)
            if verdict is None:
                raise  # not ended from here: the client has left
            getattr(task, "uncancel", int)()  # Python 3.10 keeps no count
            raise verdict from None
        finally:
            timer.cancel()
            self._verdicts.pop(task, None)
            self._running.discard(task)
            if not self._running:
                self._empty.set()

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more, give those inside so many seconds to end, then end them."""
        self._closed = True
        if not await self._emptied(seconds):
            self.cut()
            await self._emptied(_LAST_WORDS)

    def cut(self) -> None:
        """End all that run now."""
        for task in self._running:
            self._end(task, _leaving())

    def _end(self, task: asyncio.Task[object], verdict: Unavailable) -> None:
        self._verdicts.setdefault(task, verdict)
        task.cancel()

    async def _emptied(self, seconds: float) -> bool:
        """Wait until nobody is inside, for so many seconds at most, and tell whether that is so."""
        if self._running:
            self._empty.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                async with timeout(seconds):
                    await self._empty.wait()
        return not self._running


def _leaving() -> Unavailable:
    return Unavailable("the worker is shutting down; another one can answer", code="shutting_down", retry_after=_RETRY_SOON)
