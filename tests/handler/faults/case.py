"""One worker over the misbehaving engine, and the look at what is left when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests import ROOT
from tests.handler.test_http import free_port
from tests.handler.worker_process import Worker, replayed_engine
from tests.twins.faulty_engine import Left, Plan, variables
from tools.serve.platform_job import Job

__all__ = ["Case", "Row", "error_of"]

_QUEUES = Path("/proc/sysvipc/msg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a fault, what FastDeploy does by itself (as measured), what the worker does, and in how many seconds."""

    fault: str
    alone: str
    worker: str
    seconds: float


class Case(Worker):
    """A worker whose engine fails as planned; entering starts it, leaving ends everything, also what a failed test has left."""

    def __init__(self, folder: Path, plan: Plan, *parts: dict[str, str], replay: tuple[str, ...] = ()) -> None:
        self.left, self._mark, self.port = Left(folder / "left"), uuid.uuid4().hex, free_port()
        engine = replayed_engine(*replay) | {"PYTHONPATH": f"{ROOT / 'tests' / 'twins' / 'faulty_fastdeploy'}{os.pathsep}{ROOT}"}
        http = {"PORT": str(self.port), "ENGINE_STOP_TIMEOUT": "1", "TEST_RUN": self._mark}
        super().__init__(engine, variables(plan, self.left.path), http, *parts)

    async def __aenter__(self) -> Case:
        await super().__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        while living := self.living():
            for process in living:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            await asyncio.sleep(0.02)
        await super().__aexit__(*raised)
        for path in map(Path, self.left.noted("file")):
            path.unlink(missing_ok=True)
        for queue in self.left.noted("queue"):
            ctypes.CDLL(None).msgctl(int(queue), 0, None)

    @property
    def url(self) -> str:
        """Where its HTTP face answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def starts(self) -> int:
        """How often its engine was started."""
        return len(self.left.noted("server"))

    def pid(self, role: str) -> int:
        """The process that the engine started last in this role."""
        return int(self.left.noted(role)[-1])

    def living(self) -> list[psutil.Process]:
        """Processes that its engine started, or that inherited its environment, and that live; the worker itself is none of them."""
        noted = {int(pid) for pid in self.left.noted("server", "queue-manager", "launcher", "rank", "gunicorn")}
        return [one for one in psutil.process_iter() if one.pid != self.process.pid and self._is_ours(one, noted)]

    def _is_ours(self, process: psutil.Process, noted: set[int]) -> bool:
        try:
            marked = process.environ().get("TEST_RUN") == self._mark
            return (marked or process.pid in noted) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def remains(self) -> list[str]:
        """What its engine left: processes, files in shared memory, message queues."""
        queues = {line.split()[1] for line in _QUEUES.read_text().splitlines()[1:]}
        processes = []
        for one in self.living():
            with contextlib.suppress(psutil.Error):  # it may end at this moment
                processes.append(f"{one.pid} {' '.join(one.cmdline())}")
        files = [path for path in self.left.noted("file") if Path(path).exists()]
        return [*processes, *files, *queues.intersection(self.left.noted("queue"))]

    async def serves(self) -> None:
        """Return once its HTTP face says that it is ready."""
        await self.wait_line("answering on port")
        async with aiohttp.ClientSession() as session:
            for _ in range(600):
                async with session.get(self.url + "/ping") as ping:
                    if ping.status == 200:
                        return
                    assert ping.status == 204, self.output
                await asyncio.sleep(0.05)
        raise AssertionError(f"not ready within 30 s:\n{self.output}")

    async def ask(self, session: aiohttp.ClientSession, path: str = "/v1/chat/completions", **body: Any) -> tuple[int, dict[str, Any]]:
        """Put a chat to its HTTP face; return status and body."""
        question = {"messages": [{"role": "user", "content": "What is FastDeploy?"}], **body}
        async with session.post(self.url + path, json=question) as answer:
            return answer.status, json.loads(await answer.text())

    async def ended(self, within: float, *, code: int = 1) -> float:
        """Wait for its end, look at exit code and remains, and return how many seconds it took from now."""
        began = time.monotonic()
        assert await self.wait(within + 15) == code, self.output
        took = time.monotonic() - began
        assert not self.remains(), self.output
        assert not [line for line in self.lines if line.startswith("Traceback")], self.output
        assert took < within, self.output
        return took

    async def seen(self, count: int) -> None:
        """Return once its engine has been sent so many requests beside the worker's own."""
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{self.engine_url}/__seen") as answer:
                    if len([one for one in await answer.json() if one["path"].startswith("/v1/")]) > count:
                        return
                await asyncio.sleep(0.02)

    def kill(self, role: str) -> None:
        """End one process of its engine as the kernel would."""
        os.kill(self.pid(role), signal.SIGKILL)


def error_of(job: Job) -> dict[str, Any]:
    """The OpenAI error with which a job ended, once."""
    assert job.done_count == 1
    assert job.result is not None
    error: dict[str, Any] = json.loads(job.result["error"])["error"]
    assert error["message"]
    assert "Traceback" not in job.result["error"]
    return error
