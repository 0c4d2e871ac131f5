"""What this machine can spare: cores for BLAS threads and bytes for weights.

Imports nothing heavy, because the number of threads has to be known before numpy loads its BLAS.
Two BLAS threads on a busy machine of two cores are slower than one, so load counts against the cores.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_cores(cgroup: Path = _CGROUP, load: float | None = None) -> int:
    """Return how many cores are free: affinity, cut by the cgroup's quota, less the load; at least 1.

    `load` is the number of runnable tasks of the last minute (default: the kernel's figure).
    """
    usable = float(_affinity())
    quota = _cgroup_cores(cgroup)
    if quota is not None:
        usable = min(usable, quota)
    busy = os.getloadavg()[0] if load is None else load
    return max(1, round(usable - busy))


def available_memory(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int | None:
    """Return the bytes that can still be allocated here, or None where the machine does not say."""
    limits = [value for value in (_kernel_available(meminfo), _cgroup_available(cgroup)) if value is not None]
    return min(limits, default=None)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_cores(cgroup: Path) -> float | None:
    """Read the CPU quota: `cpu.max` of version 2, or the two files of version 1."""
    quota, period = _words(cgroup / "cpu.max", 2)
    if quota is None:
        (quota,) = _words(cgroup / "cpu/cpu.cfs_quota_us", 1)
        (period,) = _words(cgroup / "cpu/cpu.cfs_period_us", 1)
    if quota is None or period is None or not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return int(quota) / int(period)


def _cgroup_available(cgroup: Path) -> int | None:
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        (limit,) = _words(cgroup / limit_file, 1)
        (usage,) = _words(cgroup / usage_file, 1)
        if limit is not None and usage is not None and limit.isdigit() and usage.isdigit():
            return max(0, int(limit) - int(usage))
    return None


def _kernel_available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _words(path: Path, count: int) -> list[str | None]:
    """Return exactly `count` words of a one-line file, None for each that is not there."""
    try:
        words: list[str | None] = list(path.read_text(encoding="ascii").split()[:count])
    except OSError:
        words = []
    return words + [None] * (count - len(words))
