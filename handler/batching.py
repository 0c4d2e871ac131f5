"""Gather the frames that arrive while the consumer is busy, so that they share one trip.

The RunPod SDK awaits one POST for every yield. The first frame leaves at once; what arrives during its POST leaves with the next
yield, and so on. Thus the number of trips follows the round-trip time by itself, and no frame ever waits while the consumer does.
`BatchLimits` bounds a batch from above only, in tokens: the first batch of a request holds at most `minimum`, each next one `growth`
times more, none over `maximum`. Frames without a token, such as the one that opens a chat answer, count for nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque

from handler.settings import BatchLimits

__all__ = ["MAX_BATCH_BYTES", "MAX_WAITING_BYTES", "BatchSize", "Batcher"]

MAX_BATCH_BYTES = 900_000
"""A streamed piece over 1 MB is split by RunPod; the rest is left for the JSON text around it."""

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Above this the engine's socket is no longer read until the consumer has caught up."""


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
    """A queue of frames between one producer and one consumer, which takes them in batches."""

    def __init__(self, limits: BatchLimits, *, max_bytes: int = MAX_BATCH_BYTES, max_waiting: int = MAX_WAITING_BYTES) -> None:
        self._size = BatchSize(limits)
        self._frames: deque[tuple[bytes, int]] = deque()
        self._max_bytes, self._max_waiting, self._waiting = max_bytes, max_waiting, 0
        self._closed = False
        self._error: BaseException | None = None
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()

    def put(self, frame: bytes, tokens: int = 1) -> None:
        """Add a frame that counts as `tokens`; frames that come after `close` are dropped."""
        if self._closed:
            return
        self._frames.append((frame, tokens))
        self._waiting += len(frame)
        if self._waiting > self._max_waiting:
            self._room.clear()
        self._changed.set()

    async def room(self) -> None:
        """Wait until the consumer has caught up far enough to take more."""
        await self._room.wait()

    def close(self, error: BaseException | None = None) -> None:
        """End the stream, with `error` if it broke; what was put before is still delivered. Later calls change nothing."""
        if not self._closed:
            self._closed, self._error = True, error
            self._changed.set()
            self._room.set()

    async def take(self) -> list[bytes]:
        """Return the next batch, at once if there is any frame; an empty list is the end.

        Raises:
            BaseException: what `close` was given, after the last frame.
        """
        while not self._frames:
            if self._error is not None:
                raise self._error
            if self._closed:
                return []
            self._changed.clear()
            await self._changed.wait()
        return self._cut()

    def _cut(self) -> list[bytes]:
        """Remove frames up to the bounds; one frame always goes, however large, and frames of no tokens ride along."""
        batch: list[bytes] = []
        tokens = size = 0
        frames, most = self._frames, self._size.current
        while frames:
            frame, weight = frames[0]
            if batch and (tokens + weight > most or size + len(frame) > self._max_bytes):
                break
            batch.append(frame)
            tokens, size = tokens + weight, size + len(frame)
            frames.popleft()
        if tokens:
            self._size.grow()
        self._waiting -= size
        if self._waiting <= self._max_waiting:
            self._room.set()
        return batch
