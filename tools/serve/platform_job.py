"""One job as RunPod's platform sees it, from its submission to its end, and the bell that wakes whoever waits for news of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"]


class Bell:
    """Wakes everybody who waits, each time it rings."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake them."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, test: Callable[[], bool], timeout: float | None, what: str = "") -> None:
        """Return once `test` holds.

        Raises:
            TimeoutError: it did not within `timeout` seconds; the message is `what`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not test():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(what)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the ring, and the poll of a dead worker stays.
                await asyncio.wait({waiter}, timeout=left)
            finally:
                self._waiters.discard(waiter)


class Job:
    """One job as the platform sees it. Iterating gives streamed values as they arrive, until the job has ended."""

    def __init__(self, job_id: str, job_input: Any, text: str | None = None) -> None:
        self.id = job_id
        self.input = job_input
        self.text = text
        """The input as it is written into the answer, if it is no value; empty means that there is none."""
        self.status: Status = "IN_QUEUE"
        self.worker: str | None = None
        self.submitted_at = time.monotonic()
        self.taken_at: float | None = None
        self.ended_at: float | None = None
        self.stream: list[Any] = []
        """Streamed values in order of arrival."""
        self.arrivals: list[float] = []
        """When each of `stream` came."""
        self.progress: list[Any] = []
        """Values of `progress_update`."""
        self.result: dict[str, Any] | None = None
        """Body of the first job-done, with its `isStream`."""
        self.done_count = 0
        self.bell = Bell()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more may come."""
        return self.status in {"COMPLETED", "FAILED", "CANCELLED"}

    async def wait_taken(self, timeout: float) -> None:
        """Return once a worker has it; raises TimeoutError."""
        await self.bell.until(lambda: self.taken_at is not None, timeout, f"{self}: not taken within {timeout} s")

    async def wait_stream(self, wanted: int, timeout: float) -> list[Any]:
        """The streamed values once there are `wanted`; raises TimeoutError."""
        await self.bell.until(lambda: len(self.stream) >= wanted, timeout, f"{self}: fewer than {wanted} values within {timeout} s")
        return self.stream

    async def wait_done(self, timeout: float) -> dict[str, Any]:
        """Body of the first job-done (`output`, or `error`) with `isStream`; raises TimeoutError, also for a job that was stopped."""
        await self.bell.until(lambda: self.result is not None, timeout, f"{self}: no job-done within {timeout} s")
        return self.result or {}

    async def __aiter__(self) -> AsyncIterator[Any]:
        position = 0
        while await self._reaches(position):
            yield self.stream[position]
            position += 1

    async def _reaches(self, position: int) -> bool:
        await self.bell.until(lambda: len(self.stream) > position or self.has_ended, None)
        return len(self.stream) > position

    def end(self, status: Status) -> None:
        """Enter a last state."""
        self.status, self.ended_at = status, time.monotonic()
        self.bell.ring()

    def __str__(self) -> str:
        return f"job {self.id} ({self.status}, worker {self.worker}, {len(self.stream)} streamed, {self.done_count} job-done)"
