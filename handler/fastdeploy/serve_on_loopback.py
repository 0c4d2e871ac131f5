"""Run FastDeploy's OpenAI server so that no socket it opens from Python listens beyond loopback.

Run by the interpreter that has FastDeploy, with the server's own flags, or with `--wait`: then they come on standard input, up to its end,
as `{"arguments": [...], "environment": {...}}` (handler/prestart.py). `--host` reaches only the HTTP server: the queues between engine,
workers and cache managers bind 0.0.0.0 whatever the flags say, and speak pickle under a key that stands in the source, so that whoever
reaches such a port runs code here. They are opened by this process and its forks, and their clients connect to 0.0.0.0, which is loopback.

It also ends when the worker is gone, even if that was killed: a server without its worker would hold the GPU for nobody. While the server
loads, most of it runs in processes of other sessions, which no signal to this one reaches: a process that was forked before all of them
waits for the worker's end, and kills whatever bears the mark of this start.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

_bind = socket.socket.bind
_PR_SET_PDEATHSIG = 1
"""linux/prctl.h."""
_MARK = "WORKER_ENGINE"
"""The variable by which the worker knows its engine's processes: its own process id, a dash, and a random word (handler/prestart.py)."""
_NEEDED_ANYWAY = ("asyncio", "email.message", "http.client", "logging.handlers", "multiprocessing", "ssl", "subprocess", "uuid")
"""Modules of the standard library that every HTTP server imports."""
_PATIENCE = 5.0
"""Seconds that killing them may take."""


def _bind_on_loopback(self: socket.socket, address: Any) -> None:
    """Bind as asked, with "every address" read as loopback."""
    if isinstance(address, tuple) and address and address[0] in ("", "0.0.0.0", "::"):  # noqa: S104  # what is being prevented
        address = ("::1" if self.family == socket.AF_INET6 else "127.0.0.1", *address[1:])
    _bind(self, address)


def _end_with_parent() -> None:
    """Have the kernel ask this process to end when the thread that started it ends; Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _watch_worker(mark: str) -> None:
    """Fork the process that outlives the worker by a moment, to end what it leaves; the server goes on here."""
    server = os.getpid()
    try:
        ending = os.pidfd_open(int(mark.partition("-")[0]))
    except ProcessLookupError:
        sys.exit("the worker that started this engine has ended")  # noqa: TID251  # a program of its own
    except OSError:  # the kernel is older than 5.3: only the signal is left
        return
    if os.fork():
        os.close(ending)
        return
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):  # the worker reads the server's output to its end
        os.dup2(nowhere, descriptor)
    select.select([ending], [], [])
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and (left := _marked(mark, server)):
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    os._exit(0)


def _marked(mark: str, session: int) -> list[int]:
    """Return the living processes, this one aside, that inherited the mark or belong to the server's session."""
    found, wanted = [], f"{_MARK}={mark}".encode()
    for process in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()):
        with contextlib.suppress(OSError):
            inherited = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if process != os.getpid() and (wanted in inherited or os.getsid(process) == session):
                found.append(process)
    return found


def _wait_for_flags() -> None:
    """Import what any server needs, then wait for the flags and the environment; end if none come."""
    for name in _NEEDED_ANYWAY:
        importlib.import_module(name)
    told = sys.stdin.buffer.read()
    if not told:
        sys.exit(0)  # noqa: TID251  # a program of its own
    start = json.loads(told)
    sys.argv[1:] = start["arguments"]
    os.environ.clear()  # noqa: TID251
    os.environ.update(start["environment"])  # noqa: TID251
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


if __name__ == "__main__":
    _end_with_parent()
    if sys.argv[1:] == ["--wait"]:
        _wait_for_flags()
    if _MARK in os.environ:  # noqa: TID251
        _watch_worker(os.environ[_MARK])  # noqa: TID251
    socket.socket.bind = _bind_on_loopback  # type: ignore[method-assign, assignment, unused-ignore]
    del sys.path[0]  # this script's folder, which `python -m` would not put there
    runpy.run_module("fastdeploy.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
