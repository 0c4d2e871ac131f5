"""This container's main memory: what is left of it, and how often the kernel has killed for want of it.

Both are the control group's figures, version 2 or 1, because a container's limit is below the machine's memory.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["memory_left", "oom_kills"]

CGROUP = Path("/sys/fs/cgroup")

_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Limit and use in bytes: version 2, then 1."""

_EVENTS = ("memory.events", "memory/memory.oom_control")
"""Files with a line `oom_kill N`, version 2, then 1."""


def memory_left(cgroup: Path = CGROUP) -> int:
    """Return the bytes of memory that this container can still use."""
    import psutil  # which an engine's start need not wait for

    left = int(psutil.virtual_memory().available)
    for limit, used in _LIMITS:
        # "max" means no limit, and a missing file that this is not the version in use.
        with contextlib.suppress(OSError, ValueError):
            left = min(left, int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
    return max(left, 0)


def oom_kills(cgroup: Path = CGROUP) -> int:
    """Return how many processes of this container the kernel has killed because its memory was full; 0 where it does not count them."""
    for name in _EVENTS:
        with contextlib.suppress(OSError, ValueError):
            counts = dict(line.split() for line in (cgroup / name).read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0
