"""The cold start as a ledger: when each phase was over, counted from the start of the process."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

__all__ = ["Ledger"]

log = logging.getLogger(__name__)


class Ledger:
    """Notes when phases are over; may be written by any thread."""

    def __init__(self) -> None:
        self._started = time.monotonic() - _age()
        self._entries: list[tuple[str, float]] = []

    def note(self, phase: str) -> None:
        """Note that a phase is over now."""
        self._entries.append((phase, time.monotonic() - self._started))

    def phases(self) -> dict[str, float]:
        """Return the seconds from the start of the process to the end of each phase so far."""
        return dict(self._entries)

    def close(self) -> None:
        """Log all that was noted, in seconds since the process was started."""
        log.info("cold start: %s", ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in self._entries))


def _age() -> float:
    """Return for how many seconds this process has been running; 0 where the kernel does not tell (other than Linux)."""
    try:
        # Field 22: start time in clock ticks since boot; the second field, a name in brackets, may hold spaces.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
