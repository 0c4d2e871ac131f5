"""What a dead FastDeploy leaves in the machine's shared memory, and its removal before another is started.

Tokens travel over a SysV message queue that nobody removes: a later engine whose port ends in the same byte would read stale ones. Files
in /dev/shm are made anew at the next start; they are removed for their size.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
from pathlib import Path

__all__ = ["Residue"]

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # FastDeploy's choice
QUEUES = Path("/proc/sysvipc/msg")

_FILES = (
    "*.socket router_*.ipc *_signal.* *_signal_*.* get_profile_block_num.* model_weights_status* fd_lock_* fmq_*.ipc "
    "fd_task_queue_*.sock response_*.pull processor_cache.ipc get_save_output_rank*.socket"
).split()
"""Names in /dev/shm that FastDeploy 2.3 to 2.6 were seen to use."""

_IPC_RMID = 0


class Residue:
    """Notes what is there when it is made, so that `clear` takes away only what came later."""

    def __init__(self, folder: Path = SHARED_MEMORY, queues: Path = QUEUES) -> None:
        self._folder, self._queues = folder, queues
        self._files, self._ids = set(self._present()), set(self._queue_ids())

    def clear(self) -> None:
        """Remove FastDeploy's files and this user's message queues that came since; call it when no process of the engine lives."""
        for path in set(self._present()) - self._files:
            with contextlib.suppress(OSError):
                path.unlink()
                log.info("removed %s, which the engine left", path)
        for number in set(self._queue_ids()) - self._ids:
            import ctypes  # seldom needed, and slow to import

            if ctypes.CDLL(None).msgctl(number, _IPC_RMID, None) == 0:
                log.info("removed message queue %d, which the engine left", number)

    def _present(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [path for path in self._folder.iterdir() if any(fnmatch.fnmatch(path.name, pattern) for pattern in _FILES)]
        return []

    def _queue_ids(self) -> list[int]:
        """Return the ids of this user's queues; columns of /proc/sysvipc/msg: key msqid perms cbytes qnum lspid lrpid uid ..."""
        with contextlib.suppress(OSError):
            rows = [line.split() for line in self._queues.read_text().splitlines()[1:]]
            return [int(row[1]) for row in rows if int(row[7]) == os.getuid()]
        return []
