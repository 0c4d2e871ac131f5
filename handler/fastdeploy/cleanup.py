"""What FastDeploy leaves in the machine when it ends, and its removal: files in shared memory, message queues, logs.

FastDeploy names its files by the ports of a start, and derives the keys of its queues from them. Other engines may share the IPC
namespace, so only what carries this engine's ports is removed; 2.3's `need_block_num_signal.0` and `prefill_time_signal.PID`, a few bytes,
stay. Queues matter most: tokens travel over them, and a later engine whose port gives the same key would read stale ones.

Its logs hold prompts, so they are in a folder that only this user can read, and that the worker keeps locked. The folder of a worker that
was killed is unlocked, and the next worker removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from handler.fastdeploy.values import order

__all__ = ["Cleanup", "LogFolder"]

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # FastDeploy's choice
QUEUES = Path("/proc/sysvipc/msg")
TEMPORARY = Path("/tmp")  # noqa: S108  # `tempfile` would cost each start its imports

MOST_LOGGED = 256 << 20
"""Bytes that one of its log files may have; FastDeploy itself begins a new file only every day."""

_QUEUE_PATHS = ("/dev/shm", "/opt/", "./")  # noqa: S108
"""What FastDeploy's operators make the keys of their queues of, beside a port (custom_ops/gpu_ops); ./ is where the engine runs."""

_LONG_KEYS = "2.5"
"""The first release whose keys hold 20 bits of a port (custom_ftok.h); before, they are ftok's, with 8."""

_FOLDER = re.compile(r"fastdeploy-[0-9a-f]{16}")
_IPC_RMID = 0


@dataclass(slots=True, kw_only=True)
class Cleanup:
    """Remembers the ports of an engine's start, and removes what carries them."""

    release: str
    folder: Path = SHARED_MEMORY
    queues: Path = QUEUES
    ports: set[int] = field(default_factory=set)

    def expect(self, ports: Iterable[int]) -> None:
        """Take note of the ports of a start."""
        self.ports.update(ports)

    def clear(self) -> None:
        """Remove what carries the ports, and forget them: another engine may have them next. Call it when none of the processes lives."""
        for path in self._files():
            with contextlib.suppress(OSError):
                path.unlink()
                log.info("removed %s, which the engine left", path)
        for number in self._queue_ids():
            import ctypes  # seldom needed, and slow to import

            if ctypes.CDLL(None).msgctl(number, _IPC_RMID, None) == 0:
                log.info("removed message queue %d, which the engine left", number)
        self.ports.clear()

    def _files(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [path for path in self.folder.iterdir() if not self.ports.isdisjoint(map(int, re.findall(r"\d+", path.name)))]
        return []

    def _queue_ids(self) -> list[int]:
        """Return the ids of this user's queues with keys of the ports that no living process used last: short keys of two ports are equal.

        Columns of /proc/sysvipc/msg: key msqid perms cbytes qnum lspid lrpid uid ...
        """
        keys = {key for port in self.ports for key in _keys(port, self.release)}
        with contextlib.suppress(OSError):
            rows = [[int(word) for word in line.split()] for line in self.queues.read_text().splitlines()[1:]]
            return [row[1] for row in rows if row[0] in keys and row[7] == os.getuid() and not any(map(_lives, row[5:7]))]
        return []


def _keys(port: int, release: str) -> Iterator[int]:
    for path in _QUEUE_PATHS:
        with contextlib.suppress(OSError):
            stat = os.stat(path)  # noqa: PTH116  # "./" as it is written
            if order(release) >= order(_LONG_KEYS):
                key = (stat.st_dev & 0xF) << 28 | (stat.st_ino & 0xFF) << 20 | port & 0xFFFFF
            else:
                key = (port & 0xFF) << 24 | (stat.st_dev & 0xFF) << 16 | stat.st_ino & 0xFFFF
            yield key - (1 << 32) if key >> 31 else key  # key_t is signed


def _lives(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()


class LogFolder:
    """The folder of an engine's logs: private, bounded, locked while this worker lives; making it removes those of dead workers."""

    def __init__(self, parent: Path = TEMPORARY) -> None:
        _remove_unlocked(parent)
        self.path = parent / f"fastdeploy-{os.urandom(8).hex()}"  # cannot be guessed
        self._lock = -1

    def make(self) -> None:
        """Make it, if it is not there."""
        while self._lock < 0:
            self.path.mkdir(mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                self._lock = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            if not self.path.exists():  # another worker's start took it for a dead one's before it was locked
                self._close()

    def bound(self) -> None:
        """Empty each logger's file that takes more than `MOST_LOGGED` bytes of disk; loggers append, so they go on from the new end."""
        for path in self.path.rglob("*.log*"):
            with contextlib.suppress(OSError):
                if not path.name.startswith("launch_") and path.stat().st_blocks * 512 > MOST_LOGGED:
                    os.truncate(path, 0)

    def remove(self) -> None:
        """Remove it with all it holds."""
        import shutil  # slow to import, and not needed for a start

        shutil.rmtree(self.path, ignore_errors=True)
        self._close()

    def _close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def _remove_unlocked(parent: Path) -> None:
    """Remove the log folders of this user's workers that have ended without removing them."""
    with contextlib.suppress(OSError):
        for path in parent.iterdir():
            if _FOLDER.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    _remove_if_unlocked(path)


def _remove_if_unlocked(path: Path) -> None:
    import shutil

    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(folder).st_uid == os.getuid():
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its worker lives
            shutil.rmtree(path, ignore_errors=True)
            log.info("removed %s, the logs of an engine whose worker was killed", path)
    finally:
        os.close(folder)
