"""Start the replay server from a test, wait until it is ready, and leave nothing behind."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from typing import Any, Final

from tests import ROOT

HOST: Final = "127.0.0.1"
_EXIT_TIMEOUT_S: Final = 10


class Child:
    """A running replay server; its output is read in a thread, since an orphan may hold the pipe open after it died."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        """What it printed, stdout and stderr together."""
        self.loading: Final[Future[None]] = Future()
        """Done once it has begun to load."""
        self.port: Final[Future[int]] = Future()
        """Known once it listens."""
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """Where it listens; only once it does."""
        return f"http://{HOST}:{self.port.result(0)}"

    async def exit_code(self) -> int:
        """Wait for its end; negative for a signal."""
        return await asyncio.to_thread(self.process.wait, _EXIT_TIMEOUT_S)

    def orphans(self) -> list[int]:
        """Process ids it announced."""
        return [int(line.rpartition(" ")[2]) for line in self.lines if "orphan pid " in line]

    async def exchange(self, request: bytes) -> bytes:
        """Send raw bytes on a connection of its own and read until the server closes it, as the request must ask."""
        reader, writer = await asyncio.open_connection(HOST, self.port.result(0))
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def abandon(self, request: bytes, *, after_events: int = 0) -> bytes:
        """Send raw bytes, read until so many SSE events came, and close the connection; what was read."""
        reader, writer = await asyncio.open_connection(HOST, self.port.result(0))
        writer.write(request)
        received = b""
        while received.count(b"\n\n\r\n") < after_events:
            received += await reader.read(65536)
        writer.close()
        return received

    async def seen(self, *, ended: int = 0) -> list[dict[str, Any]]:
        """What the server saw so far (see `seen.Entry`), once so many requests have ended."""
        answer = await self.exchange(b"GET /__seen/ended/%d HTTP/1.1\r\nConnection: close\r\n\r\n" % ended)
        entries: list[dict[str, Any]] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return entries

    def _read(self) -> None:
        assert self.process.stdout, "started with a pipe"
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))
                if "Waiting for worker processes" in line:
                    self.loading.set_result(None)
                opened = re.search(r"completion service at http://[^/]*:(\d+)/v1/completions", line)
                if opened:
                    self.port.set_result(int(opened[1]))
        if not self.port.done():
            self.port.set_exception(ChildProcessError("the replay server ended before it listened:\n" + "\n".join(self.lines)))


def start(release: str, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
    """Start `python -m tests.twins.replay` on a free port, without waiting; end it with `stop`."""
    command = [sys.executable, "-m", "tests.twins.replay", "--release", release, "--port", "0", *arguments]
    environment = {**os.environ, **(env or {})}
    return Child(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment))


def stop(child: Child) -> None:
    """End it now, and the orphan it may have left."""
    child.process.kill()
    child.process.wait(_EXIT_TIMEOUT_S)
    for pid in child.orphans():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.thread.join(_EXIT_TIMEOUT_S)


@contextlib.asynccontextmanager
async def running(release: str, *arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """A server that listens; raises ChildProcessError with its output if it ends before."""
    child = start(release, *arguments, env=env)
    try:
        await asyncio.wait_for(asyncio.wrap_future(child.port), _EXIT_TIMEOUT_S)
        yield child
    finally:
        await asyncio.to_thread(stop, child)
