"""The worker as a child process, ended together with everything that it started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import tomli

__all__ = ["LocalWorker", "job_key"]

_ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def job_key(home: Path, fallback: str) -> str:
    """Return the key that the SDK will send with every poll.

    One in its configuration file wins over the variable (runpod 1.12.0, http_client.py), and who uses RunPod's command line has that file.
    """
    try:
        profile = tomli.loads((home / ".runpod" / "config.toml").read_text(encoding="utf-8")).get("default")
    except (OSError, ValueError):
        return fallback
    return str(profile.get("api_key", "")) if isinstance(profile, dict) and profile else fallback


class LocalWorker:
    """`python -m handler` with the given variables; an async context manager. What it prints goes to stderr."""

    def __init__(self, variables: Mapping[str, str], *, stop_s: float) -> None:
        """`stop_s` is how long it may take to end after SIGTERM."""
        self._variables, self._stop_s = variables, stop_s

    async def __aenter__(self) -> LocalWorker:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "handler",
            cwd=_ROOT,
            env=dict(self._variables),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            # A session of its own: Ctrl-C reaches the gateway alone, which then ends the worker in good order.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        family: set[psutil.Process] = set()
        if self.process.returncode is None:
            family |= self._family()
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), self._stop_s)
            except asyncio.TimeoutError:
                family |= self._family()
                self.process.kill()
                await self.process.wait()
                print(f"serve: the worker did not end within {self._stop_s:g} s and was killed", file=sys.stderr)
        # The SDK's heartbeat is a process that outlives a worker that was killed, and so may children that had no time to end.
        for process in family | self._session():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    process.kill()

    def _family(self) -> set[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return set(psutil.Process(self.process.pid).children(recursive=True))
        return set()

    def _session(self) -> set[psutil.Process]:
        """Processes of the session that the worker began; it may be gone itself."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self.process.pid:
                    found.add(process)
        return found


def _end_with_parent() -> None:
    """Have the kernel ask the worker to end when the gateway was killed; Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
