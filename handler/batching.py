"""Gather what arrives while the consumer is busy, so that it shares one trip.

The worker awaits one POST for every piece. The first frame leaves at once; what arrives during its POST leaves with the next one, and so
on. Thus the number of trips follows the round-trip time by itself, and nothing waits while the consumer does.

`BatchLimits`, where they are set, bound a batch from above only, in tokens: the first batch of a request holds at most `minimum`, each next
one `growth` times more, none over `maximum`. Frames without a token, such as the one that opens a chat answer, count for nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from handler.settings import BatchLimits
from handler.sse import frames_of

__all__ = ["MAX_BATCH_BYTES", "MAX_WAITING_BYTES", "BatchSize", "Batcher", "tokens_in"]

MAX_BATCH_BYTES = 900_000
"""A streamed piece over 1 MB is split by RunPod; the rest is left for the JSON text around it."""

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Above this the engine's socket is no longer read until the consumer has caught up."""


def tokens_in(run: bytes) -> int:
    """Count the frames of a run that hold a choice, each for a token; the one that opens a chat answer holds none.

    A quotation mark inside a JSON text is escaped, so these bytes are always keys.
    """
    found = run.count(b'"choices":[{')
    return found - run.count(b'"role":"assistant"') if found else 0


class BatchSize:
    """The bound on the next batch, in tokens: floor(minimum * growth**k) for batch k, at most `maximum`."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._exact = float(min(limits.minimum, limits.maximum))

    @property
    def current(self) -> int:
        """Most tokens in the next batch; at least one."""
        return int(self._exact)

    def grow(self) -> None:
        """Move on to the bound of the batch after it."""
        self._exact = min(self._exact * self._limits.growth, float(self._limits.maximum))


class Batcher:
    """A queue of whole frames between one producer and one consumer, which takes them in batches.

    `pause` and `resume` are called when too much waits for the consumer, and when it has caught up.
    """

    def __init__(
        self,
        limits: BatchLimits | None,
        pause: Callable[[], None],
        resume: Callable[[], None],
        *,
        max_bytes: int = MAX_BATCH_BYTES,
        max_waiting: int = MAX_WAITING_BYTES,
    ) -> None:
        self._size = BatchSize(limits) if limits else None
        self._pause, self._resume = pause, resume
        self._runs: deque[bytes] = deque()
        self._max_bytes, self._max_waiting, self._waiting = max_bytes, max_waiting, 0
        self._paused = self._closed = False
        self._error: BaseException | None = None
        self._taker: asyncio.Future[None] | None = None

    def put(self, run: bytes) -> None:
        """Add whole frames; what comes after `close` is dropped."""
        if self._closed:
            return
        if self._size:
            self._runs.extend(frames_of(run))
        else:
            self._runs.append(run)
        self._waiting += len(run)
        if self._waiting > self._max_waiting and not self._paused:
            self._paused = True
            self._pause()
        self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """End the stream, with `error` if it broke; what was put before is still delivered. Later calls change nothing."""
        if not self._closed:
            self._closed, self._error = True, error
            self._wake()

    async def take(self) -> bytes:
        """Return the next batch, at once if there is any frame; nothing is the end.

        Raises:
            BaseException: what `close` was given, after the last frame.
        """
        while not self._runs:
            if self._error is not None:
                raise self._error
            if self._closed:
                return b""
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        batch = self._cut()
        self._waiting -= len(batch)
        if self._paused and self._waiting <= self._max_waiting:
            self._paused = False
            self._resume()
        return batch

    def _wake(self) -> None:
        if self._taker and not self._taker.done():
            self._taker.set_result(None)

    def _cut(self) -> bytes:
        """Remove frames up to the bounds; one entry always goes, however large, and frames of no tokens ride along."""
        batch: list[bytes] = []
        tokens = size = 0
        runs, most = self._runs, self._size.current if self._size else 0
        while runs:
            run = runs[0]
            weight = tokens_in(run) if most else 0
            if batch and ((most and tokens + weight > most) or size + len(run) > self._max_bytes):
                break
            batch.append(run)
            tokens, size = tokens + weight, size + len(run)
            runs.popleft()
        if tokens and self._size:
            self._size.grow()
        return batch[0] if len(batch) == 1 else b"".join(batch)
