"""Run FastDeploy's OpenAI server so that no socket it opens from Python listens beyond loopback.

Run by the interpreter that has FastDeploy, with the server's own flags. `--host` reaches only the HTTP server: the queues between engine,
workers and cache managers bind 0.0.0.0 whatever the flags say, and speak pickle under a key that stands in the source, so that whoever
reaches such a port runs code here. They are opened by this process and its forks, and their clients connect to 0.0.0.0, which is loopback.
"""

from __future__ import annotations

import runpy
import socket
import sys
from typing import Any

_bind = socket.socket.bind


def _bind_on_loopback(self: socket.socket, address: Any) -> None:
    """Bind as asked, with "every address" read as loopback."""
    if isinstance(address, tuple) and address and address[0] in ("", "0.0.0.0", "::"):  # noqa: S104  # what is being prevented
        address = ("::1" if self.family == socket.AF_INET6 else "127.0.0.1", *address[1:])
    _bind(self, address)


if __name__ == "__main__":
    socket.socket.bind = _bind_on_loopback  # type: ignore[method-assign, assignment, unused-ignore]
    del sys.path[0]  # this script's folder, which `python -m` would not put there
    runpy.run_module("fastdeploy.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
