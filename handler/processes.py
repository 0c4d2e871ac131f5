"""The processes of one engine: found wherever they went, measured, and ended.

FastDeploy's launcher calls setsid, and after a crash its children belong to nobody. They are known by two marks: a variable that every
descendant inherits, and the session that the engine's first process leads. Some lose one of them (gunicorn's workers overwrite their
environment with a title, the launcher's children have a session of their own), none both.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from handler.prestart import MARK

__all__ = ["Family", "Work"]

PATIENCE = 5.0
"""Seconds that killing them may take; one that hangs in a driver may take longer, and ends with it."""

_PAUSE = 0.02
"""Seconds between two rounds of killing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the processes of an engine have done, and what they hold."""

    cpu: Mapping[int, float]
    """Seconds of processor time by process id."""
    read: int
    """Bytes read from storage."""
    resident: int
    """Bytes of main memory."""


@dataclass(slots=True)
class Family:
    """The processes of one start of an engine."""

    pid: int
    """The first process, which leads a session."""
    mark: str
    """What all of them inherit in the variable `MARK`."""

    def members(self) -> list[psutil.Process]:
        """Return those that live, zombies included."""
        return [process for process in psutil.process_iter() if process.pid != os.getpid() and self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The kernel's own threads, and processes that came into the container from outside, have session 0.
            if os.getsid(process.pid) == self.pid:
                return True
        with contextlib.suppress(psutil.Error):
            return process.environ().get(MARK) == self.mark
        return False

    def work(self) -> Work:
        """Return what the living members have done so far, and what they hold."""
        read = resident = 0
        cpu: dict[int, float] = {}
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu[process.pid] = times.user + times.system
                resident += process.memory_info().rss
                if hasattr(process, "io_counters"):  # not on macOS
                    read += process.io_counters().read_bytes
        return Work(cpu=cpu, read=read, resident=resident)

    def cpu_of_first(self) -> float:
        """Return the seconds of processor time that the first process has used; 0 when it is gone."""
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def holds(self, port: int) -> bool:
        """Tell whether a member listens on a port of 127.0.0.1."""
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                if any(one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp")):
                    return True
        return False

    def kill(self) -> None:
        """End them all, and reap those that have become children of this process; the first one is its starter's to reap.

        Repeated until none is left, since one may start another while it is being killed, but not for more than `PATIENCE`.
        """
        seen: set[psutil.Process] = set()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            seen.update(self.members())
            living = [process for process in seen if not self._has_ended(process)]
            if not living:
                return
            for process in living:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(_PAUSE)

    def _has_ended(self, process: psutil.Process) -> bool:
        """Whether it is gone, or a zombie, which holds nothing any more; one whose parent is this process is reaped."""
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.Error:
            return True
        if process.pid != self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        return True
