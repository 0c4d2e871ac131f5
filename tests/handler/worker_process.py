"""A real worker process, and the engines it can be given."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests import DEMO, ROOT

FALLBACKS = ("base_chat_basic", "base_chat_stream_usage", "base_cmpl_basic", "base_cmpl_stream")


ENGINE_VARIABLES = "REPLAY,FAULTS_PLAN,FAULTS_LEFT,TEST_RUN,COVERAGE_PROCESS_CONFIG,COVERAGE_PROCESS_START"
"""What the engines of the tests read, and no engine would."""


def cpu_engine(model: Path = DEMO) -> dict[str, str]:
    """Variables for the CPU engine, on one thread: tests share the machine."""
    return {"ENGINE": "cpu", "MODEL": str(model), "SERVED_MODEL_NAME": "demo", "OPENBLAS_NUM_THREADS": "1"}


def replayed_engine(*options: str, release: str = "2.3", fallbacks: tuple[str, ...] = FALLBACKS) -> dict[str, str]:
    """Variables for FastDeploy's server as it was recorded; options of `tests.twins.replay` add pace and faults."""
    fallback = [word for case in fallbacks for word in ("--fallback", case)]
    return {
        "ENGINE": "fastdeploy",
        "FASTDEPLOY_RELEASE": release,
        "ENGINE_PYTHON": sys.executable,
        "MODEL": str(DEMO),
        "SERVED_MODEL_NAME": "demo",
        "PATH": f"{ROOT / 'tests' / 'twins' / 'replayed_fastdeploy' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'tests' / 'twins' / 'replayed_fastdeploy'}{os.pathsep}{ROOT}",
        "REPLAY": shlex.join(["--release", release, *fallback, *options]),
    }


def environment(*parts: dict[str, str]) -> dict[str, str]:
    """The test's own environment without what would steer a worker, with the given parts."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "MODEL", "HF_", "PORT"))}
    own = {"ENGINE_STOP_TIMEOUT": "5", "ENGINE_VARIABLES": ENGINE_VARIABLES}
    return {key: value for part in (inherited, own, *parts) for key, value in part.items()}


class Worker:
    """`python -m handler` as an async context manager; leaving kills it and whatever it left behind."""

    def __init__(self, *parts: dict[str, str], arguments: tuple[str, ...] = (), cwd: Path = ROOT) -> None:
        self._environment, self._arguments, self._cwd = environment(*parts), arguments, cwd
        self.lines: list[str] = []
        self._grown = asyncio.Event()
        self.family: set[psutil.Process] = set()

    async def __aenter__(self) -> Worker:
        self.started = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "handler",
            *self._arguments,
            cwd=self._cwd,
            env=self._environment | {"PYTHONPATH": os.pathsep.join(filter(None, [self._environment.get("PYTHONPATH"), str(ROOT)]))},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [asyncio.create_task(self._read(stream)) for stream in (self.process.stdout, self.process.stderr)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.remember_family()
        if self.process.returncode is None:
            self.process.kill()
        for process in self.left_behind():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await self.process.wait()
        await asyncio.gather(*self._readers)

    @property
    def output(self) -> str:
        """Everything it printed so far."""
        return "\n".join(self.lines)

    @property
    def engine_url(self) -> str:
        """Where its engine answers."""
        ports = re.findall(r"--port (\d+)", self.output)
        assert ports, self.output
        return f"http://127.0.0.1:{ports[0]}"

    def engine(self) -> psutil.Process:
        """Its engine's process."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # what lists the GPUs is gone soon
                if any(name in " ".join(child.cmdline()) for name in ("serve_on_loopback.py", "cpu_engine")):
                    return child
        raise AssertionError(self.output)

    def remember_family(self) -> None:
        """Note every process it has now, to look for later."""
        if self.process.returncode is None:
            with contextlib.suppress(psutil.NoSuchProcess):  # asyncio learns of the end a moment after the kernel has forgotten it
                self.family |= set(psutil.Process(self.process.pid).children(recursive=True))

    def left_behind(self) -> list[psutil.Process]:
        """Processes that were noted and live on."""
        left = []
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        return left

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.remember_family()
        self.process.send_signal(number)

    async def wait_line(self, pattern: str, timeout: float = 20) -> str:
        """Return the first line that matches, now or later."""

        async def found() -> str:
            while True:
                for line in self.lines:
                    if re.search(pattern, line):
                        return line
                if self.process.returncode is not None and all(reader.done() for reader in self._readers):
                    raise AssertionError(f"the worker ended without a line like {pattern!r}:\n{self.output}")
                self._grown.clear()
                await asyncio.wait(
                    {asyncio.ensure_future(self._grown.wait()), asyncio.ensure_future(self.process.wait())}, return_when="FIRST_COMPLETED"
                )

        return await asyncio.wait_for(found(), timeout)

    async def wait(self, timeout: float = 20) -> int:
        """Return its exit code."""
        # Not `wait_for`, which would cancel the readers, and leaving would then raise that in place of what went wrong.
        ends = {asyncio.ensure_future(self.process.wait()), *self._readers}
        _, pending = await asyncio.wait(ends, timeout=timeout)
        assert not pending, f"it did not end within {timeout:g} s:\n{self.output}"
        assert self.process.returncode is not None
        return self.process.returncode

    async def _read(self, stream: Any) -> None:
        while line := await stream.readline():
            self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
            self._grown.set()
        self._grown.set()


async def aborted_at(engine_url: str) -> None:
    """Return once the replayed engine has seen its client leave before the end of an answer."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        ended = 0
        while True:
            async with session.get(f"{engine_url}/__seen/ended/{ended + 1}") as response:
                seen = await response.json()
            if any(entry["ended"] == "aborted-by-client" for entry in seen):
                return
            ended = sum(entry["ended"] is not None for entry in seen)
