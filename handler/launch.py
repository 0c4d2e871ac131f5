"""Start the engine's process: what one kind of engine needs for that, and nothing of what it takes to watch it.

One class per engine says how it is started: `CpuEngine` here, `FastDeployEngine` in fastdeploy/server.py. The worker never imports an
engine: it talks HTTP to a port on loopback. This file is small on purpose: the engine's start is the longest part of a cold start, and
what supervises it (engine.py, with asyncio and psutil) is imported while it runs.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import subprocess  # noqa: TID251
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from handler.early import Waiting, engine_environment, new_mark, start_process
from handler.errors import InvalidSettings
from handler.logs import Tail
from handler.settings import EngineSettings

if TYPE_CHECKING:
    from handler.dialect import Exchange
    from handler.job import Request

__all__ = ["Child", "CpuEngine", "Engine", "Launcher", "free_ports"]

_MOST_REQUESTS = 4096
"""Requests that the CPU engine holds at once: as many as MAX_CONCURRENCY may allow, so that only the worker's own limit turns one away."""

log = logging.getLogger(__name__)


class Engine(Protocol):
    """How one kind of engine is started."""

    @property
    def name(self) -> str:
        """What logs and errors call it."""

    def command(self, port: int) -> list[str]:
        """Return the argv that serves on 127.0.0.1:`port`."""

    def variables(self) -> dict[str, str]:
        """Return what the engine's environment needs beside the worker's own."""

    def exchange(self, request: Request) -> Exchange:
        """Return how to put a request to it; raises InvalidJob for one that it must not see."""

    def log_files(self) -> Tail | None:
        """Return the log files to follow beside its output, or None."""

    def explain(self, lines: Iterable[str]) -> str | None:
        """Return the cause of a failure that its last lines show, with what to do about it, or None."""

    def clear(self) -> None:
        """Remove what its processes left behind; called when none of them lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuEngine:
    """The embedded CPU engine, run by the interpreter that runs the worker."""

    model: Path
    served_name: str
    settings: EngineSettings
    put: Callable[[Request], Exchange]
    """How a request is put to it; raises InvalidJob for one that it must not see."""
    name: str = "cpu"

    def command(self, port: int) -> list[str]:
        """Return the argv of `cpu_engine`, which takes FastDeploy's own flags."""
        argv = [sys.executable, "-m", "cpu_engine", "--model", str(self.model), "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--served-model-name", self.served_name, "--max-num-seqs", str(self.settings.max_num_seqs)]
        argv += ["--max-concurrency", str(_MOST_REQUESTS)]
        if self.settings.max_model_len:
            argv += ["--max-model-len", str(self.settings.max_model_len)]
        return [*argv, "--timeout-graceful-shutdown", str(int(self.settings.stop_timeout))]

    def variables(self) -> dict[str, str]:
        """Return the path on which the interpreter finds the `handler` package."""
        return {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}

    def exchange(self, request: Request) -> Exchange:
        """Return how to put a request to it; raises InvalidJob for one that it must not see."""
        return self.put(request)

    def log_files(self) -> None:
        """It writes none."""

    def explain(self, lines: Iterable[str]) -> str | None:
        """Return its own last word: it ends every refusal with a line that says what is wrong."""
        return next((line.removeprefix("error: ") for line in reversed(list(lines)) if line.startswith("error: ")), None)

    def clear(self) -> None:
        """It leaves nothing."""


@dataclass(slots=True, kw_only=True)
class Child:
    """One start of an engine. As a context manager it ends, on leaving, a start that nobody has come to watch."""

    engine: Engine
    process: subprocess.Popen[bytes]
    mark: str
    tail: Tail | None
    """The log files of this start."""
    watched: bool = False
    """Whether somebody else sees to its end."""

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.watched:
            self.end()

    def end(self) -> None:
        """End it at once, with all that it started, and clear what it left."""
        from handler.processes import Family

        Family(pid=self.process.pid, mark=self.mark).kill()
        self.process.wait()
        self.engine.clear()


class Launcher:
    """Starts one engine, on every call of `start` anew and on the same port; the first time in an interpreter that waits, if any."""

    def __init__(self, engine: Engine, environment: Mapping[str, str], waiting: Waiting | None = None) -> None:
        self.engine, self._waiting = engine, waiting
        self._environment = engine_environment(environment) | engine.variables()
        [self._port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self.starts = 0
        self.last: Child | None = None
        """The newest start."""

    def start(self) -> Child:
        """Start the engine's process; it leads a session of its own, and ends with this process.

        Raises:
            InvalidSettings: its interpreter cannot be run.
        """
        tail = self.engine.log_files()
        if tail:
            tail.skip()
        argv = self.engine.command(self._port)
        self.starts += 1
        log.info("starting the %s engine: %s", self.engine.name, shlex.join(argv))
        if self._waiting and self._waiting.serve(argv, self._environment):
            process, mark = self._waiting.process, self._waiting.mark
        else:
            mark = new_mark()
            try:
                process = start_process(argv, self._environment, mark)
            except OSError as error:
                raise InvalidSettings([f"ENGINE_PYTHON: got {argv[0]!r}, which cannot be run ({error.strerror})"]) from None
        self.last = Child(engine=self.engine, process=process, mark=mark, tail=tail)
        return self.last


def free_ports(count: int) -> list[int]:
    """Return so many different ports of 127.0.0.1 that nobody holds at the moment."""
    with contextlib.ExitStack() as probes:
        found = []
        for _ in range(count):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found
