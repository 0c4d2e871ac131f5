"""Whether an engine makes progress while it starts, and runs while it serves, from figures of its processes.

Both are pure. A FastDeploy that waits for something that never comes is not idle: its loops use 5 to 28 % of a core each (measured on a
ready 2.3), so processor time alone proves little. Output, logs, reads, memory and the GPU do.
While it serves: does its main process run at all? Its HTTP server is another process, which still answers when the main one is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["FROZEN_AFTER", "Pulse", "Signs", "gets_on"]

FROZEN_AFTER = 30.0
"""Seconds without any processor time after which a process that polls is frozen: stopped by a signal, or deadlocked.
FastDeploy's main process takes 1 to 12 % of a core when it has nothing to do, a third of a second in that time at least."""

_BUSY = 0.3
"""Share of a core above which one process computes rather than waits."""

_GROWN = 16 << 20
"""Bytes of main memory by which a loading process grows within a look, and a waiting one does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What the processes of a starting engine have shown so far."""

    heard: int
    """Lines of output and logs."""
    read: int
    """Bytes read from storage; what lies in the page cache does not count."""
    resident: int
    """Bytes of main memory that they hold."""
    gpu: int | None
    """Bytes in use on its GPUs; None where they are not known."""
    cpu: Mapping[int, float]
    """Seconds of computing by process id."""


def gets_on(before: Signs, now: Signs, seconds: float) -> bool:
    """Return whether the start has got on between two looks that are so many seconds apart."""
    computed = max((now.cpu[pid] - before.cpu.get(pid, 0.0) for pid in now.cpu), default=0.0)
    return (
        now.heard > before.heard
        or now.read > before.read
        or now.resident - before.resident >= _GROWN
        or (now.gpu is not None and before.gpu is not None and now.gpu != before.gpu)
        or computed > _BUSY * seconds
    )


@dataclass(slots=True)
class Pulse:
    """Watches the processor time of a process that polls, and so is never idle for long while it runs."""

    limit: float = FROZEN_AFTER
    _beat: float | None = field(default=None, init=False)
    _spent: float = field(default=-1.0, init=False)

    def frozen(self, now: float, spent: float) -> bool:
        """Take what a clock and the process's processor time say, both in seconds, and return whether it has stood still for too long."""
        if self._beat is None or spent > self._spent:
            self._beat, self._spent = now, spent
        return now - self._beat > self.limit
