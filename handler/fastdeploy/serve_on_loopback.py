"""Run FastDeploy's OpenAI server so that no socket it opens from Python listens beyond loopback.

Run by the interpreter that has FastDeploy, with the server's own flags. `--host` reaches only the HTTP server: the queues between engine,
workers and cache managers bind 0.0.0.0 whatever the flags say, and speak pickle under a key that stands in the source, so that whoever
reaches such a port runs code here. They are opened by this process and its forks, and their clients connect to 0.0.0.0, which is loopback.

It also ends when the worker is gone, even if that was killed: a server without its worker would hold the GPU for nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import runpy
import signal
import socket
import sys
from typing import Any

_bind = socket.socket.bind
_PR_SET_PDEATHSIG = 1
"""linux/prctl.h."""


def _bind_on_loopback(self: socket.socket, address: Any) -> None:
    """Bind as asked, with "every address" read as loopback."""
    if isinstance(address, tuple) and address and address[0] in ("", "0.0.0.0", "::"):  # noqa: S104  # what is being prevented
        address = ("::1" if self.family == socket.AF_INET6 else "127.0.0.1", *address[1:])
    _bind(self, address)


def _end_with_parent() -> None:
    """Have the kernel ask this process to end when the thread that started it ends; Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


if __name__ == "__main__":
    _end_with_parent()
    socket.socket.bind = _bind_on_loopback  # type: ignore[method-assign, assignment, unused-ignore]
    del sys.path[0]  # this script's folder, which `python -m` would not put there
    runpy.run_module("fastdeploy.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
