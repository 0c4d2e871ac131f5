"""What the server saw: one entry per request, with how and when it ended, so that a test can observe an abort at the engine."""

import asyncio
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .wire import Request

KEPT = 10_000  # entries; probes of a long bench must not fill the memory

End = Literal["finished", "aborted-by-client", "dropped", "stopped"]


@dataclass(slots=True, kw_only=True)
class Entry:
    """One request; times are seconds since the epoch, None until it happened."""

    method: str
    path: str
    headers: dict[str, str]
    body: str
    case: str | None = None
    """The recording that answered, `synthetic`, or None (a probe of a fault, a miss)."""
    by: str | None = None
    """Why that recording answered: see `Recording.by`."""
    started: float
    first_byte: float | None = None
    last_event: float | None = None
    events: int = 0
    """SSE events written in full."""
    events_total: int = 0
    """SSE events of the whole answer, had no fault struck."""
    bytes: int = 0
    ended: End | None = None
    """None while it is being answered; `dropped`: closed by a fault; `stopped`: cut by the end of the server."""
    ended_at: float | None = None

    @classmethod
    def of(cls, request: Request) -> "Entry":
        """The entry of a request that was read in full just now."""
        return cls(
            method=request.method,
            path=request.path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=request.body.decode(errors="replace"),
            started=time.time(),
        )

    @property
    def is_whole(self) -> bool:
        """Whether every event was written: a client that closes after `[DONE]` aborts nothing."""
        return 0 < self.events_total <= self.events

    def wrote(self, size: int, events: int) -> None:
        """Count what was written just now."""
        now = time.time()
        self.first_byte = self.first_byte or now
        self.bytes += size
        if events:
            self.events += events
            self.last_event = now

    def end(self, how: End) -> None:
        """Say how it ended; only the first word counts."""
        if self.ended is None:
            self.ended, self.ended_at = how, time.time()


class Seen:
    """The entries, oldest first."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._one_ended = asyncio.Event()

    def add(self, entry: Entry) -> None:
        """Keep one more."""
        self._entries.append(entry)

    def ring(self) -> None:
        """Say that an entry has ended."""
        self._one_ended.set()
        self._one_ended = asyncio.Event()

    async def until_ended(self, count: int) -> None:
        """Return once so many entries have ended."""
        while sum(entry.ended is not None for entry in self._entries) < count:
            await self._one_ended.wait()

    def listed(self) -> list[dict[str, Any]]:
        """All entries as JSON values."""
        return [asdict(entry) for entry in self._entries]
