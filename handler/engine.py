"""The engine server as a child process: started, proved ready, watched for its whole life, and ended with all its descendants.

One class per engine says how it is started (`CpuEngine`, `FastDeployEngine`); `EngineProcess` does the rest for any of them. The
worker never imports an engine: it talks HTTP to a port on loopback. `supervised` runs the process on an event loop of its own, in a
thread, because the RunPod SDK owns the main thread's loop and the engine's life must not depend on it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess  # noqa: TID251
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import aiohttp
import anyio.from_thread
import psutil

from handler.errors import EngineDied, EngineFailedToStart, InvalidSettings
from handler.lifecycle import Event, Lifecycle, State
from handler.settings import EngineSettings

__all__ = [
    "CpuEngine",
    "Engine",
    "EngineProcess",
    "FastDeployEngine",
    "SupervisedEngine",
    "choose_engine",
    "engine_environment",
    "supervised",
]

log = logging.getLogger(__name__)
output = logging.getLogger("engine")

LAST_LINES = 20
"""How many of the engine's last lines of output an error carries."""

MAX_LINE = 65536
"""Bytes after which a line of the engine's output is cut: a progress bar may never end its line."""

_LAST_WORDS = 0.5
"""Seconds that the output of an engine that has ended may take to arrive."""

_MARK = "WORKER_ENGINE"
"""The variable by which the processes of one engine are known."""

_POLL = 0.05
"""Seconds between two questions whether the engine is ready; an open port answers within a millisecond."""


class Engine(Protocol):
    """How one kind of engine is started."""

    @property
    def name(self) -> str:
        """What logs and errors call it."""

    def command(self, port: int) -> list[str]:
        """Return the argv that serves on 127.0.0.1:`port`."""

    def variables(self) -> dict[str, str]:
        """Return what the engine's environment needs beside the worker's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuEngine:
    """The embedded CPU engine, run by the interpreter that runs the worker."""

    model: Path
    served_name: str
    settings: EngineSettings
    name: str = "cpu"

    def command(self, port: int) -> list[str]:
        """Return the argv of `handler.cpu`, which takes FastDeploy's own flags."""
        argv = [sys.executable, "-m", "handler.cpu", "--model", str(self.model), "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--served-model-name", self.served_name, "--max-num-seqs", str(self.settings.max_num_seqs)]
        if self.settings.max_model_len:
            argv += ["--max-model-len", str(self.settings.max_model_len)]
        return [*argv, "--timeout-graceful-shutdown", str(int(self.settings.stop_timeout))]

    def variables(self) -> dict[str, str]:
        """Return the path on which the interpreter finds the `handler` package."""
        return {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FastDeployEngine:
    """FastDeploy's OpenAI server, run by the interpreter that has it: never the worker's own, their packages do not mix."""

    model: Path
    served_name: str
    settings: EngineSettings
    name: str = "fastdeploy"

    def command(self, port: int) -> list[str]:
        """Return the argv of FastDeploy's server, with flags that every release from 2.3 on has."""
        argv = [self.settings.python, "-m", "fastdeploy.entrypoints.openai.api_server", "--model", str(self.model)]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        argv += ["--served-model-name", self.served_name, "--max-num-seqs", str(self.settings.max_num_seqs)]
        if self.settings.max_model_len:
            argv += ["--max-model-len", str(self.settings.max_model_len)]
        return [*argv, "--timeout-graceful-shutdown", str(int(self.settings.stop_timeout))]

    def variables(self) -> dict[str, str]:
        """Return what keeps FastDeploy from reporting its use to its makers (2.4 and newer do)."""
        return {"DO_NOT_TRACK": "1"}


def choose_engine(settings: EngineSettings, model: Path, served_name: str) -> Engine:
    """Return the engine that ENGINE names; auto means FastDeploy where its interpreter finds it, else the CPU engine."""
    kind = settings.kind
    if kind == "auto":
        kind = "fastdeploy" if _has_fastdeploy(settings.python) else "cpu"
    maker = FastDeployEngine if kind == "fastdeploy" else CpuEngine
    return maker(model=model, served_name=served_name, settings=settings)


def _has_fastdeploy(python: str) -> bool:
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('fastdeploy') is None)"
    try:
        return subprocess.run([python, "-c", question], check=False, capture_output=True).returncode == 0  # noqa: S603
    except OSError:
        return False


_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "ACCESS_KEY", "CREDENTIAL")


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the worker's environment without what the engine, or code in a checkpoint, has no business with.

    RUNPOD_AI_API_KEY takes jobs in the endpoint's name, and hub tokens read private repositories.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("RUNPOD_") and not any(part in name.upper() for part in _SECRETS)
    }


class EngineProcess:
    """One engine process, as an async context manager: entering starts it, leaving ends it and all it started.

    `url` is where it answers. `death` gets an EngineDied as its result when the engine ends unasked; it is a concurrent future, since
    whoever relays requests may run on another loop.
    """

    def __init__(self, engine: Engine, settings: EngineSettings, lifecycle: Lifecycle, environment: Mapping[str, str]) -> None:
        self._engine, self._settings, self._lifecycle = engine, settings, lifecycle
        self._mark = uuid.uuid4().hex
        self._environment = engine_environment(environment) | engine.variables() | {_MARK: self._mark}
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._stopping = False
        port = _free_port()
        self._argv = engine.command(port)
        self.url = f"http://127.0.0.1:{port}"
        self.death: concurrent.futures.Future[EngineDied] = concurrent.futures.Future()

    async def __aenter__(self) -> EngineProcess:
        log.info("starting the %s engine: %s", self._engine.name, " ".join(self._argv))
        try:
            # Not asyncio's own: its wait() waits for the end of the output too, which an orphan of the engine holds open.
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220  # starting takes a millisecond
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise InvalidSettings([f"ENGINE_PYTHON: got {self._argv[0]!r}, which cannot be run ({error.strerror})"]) from None
        self._relay = asyncio.create_task(self._relay_output())
        self._watch = asyncio.create_task(self._watch_exit())
        return self

    async def ready(self) -> None:
        """Wait until the engine has given a real answer.

        Raises:
            EngineFailedToStart: with the cause and the engine's last lines, when it ends or the start-up time is over first.
        """
        asked = asyncio.create_task(self._ask_until_answered())
        await asyncio.wait({asked, self._watch}, timeout=self._settings.startup_timeout, return_when=asyncio.FIRST_COMPLETED)
        if asked.done() and not self._watch.done():
            asked.result()
            self._lifecycle.report(Event.ENGINE_READY)
            return
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        if self._watch.done():
            raise EngineFailedToStart(self._story(f"the {self._engine.name} engine {self._exit()} before it was ready"))
        waited = f"{self._settings.startup_timeout:g} s (ENGINE_STARTUP_TIMEOUT)"
        raise EngineFailedToStart(self._story(f"the {self._engine.name} engine was not ready within {waited}"))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping = True
        self._lifecycle.report(Event.TERM)
        with anyio.CancelScope(shield=True):
            await self._stop()
        self._lifecycle.report(Event.ENDED)

    async def _ask_until_answered(self) -> None:
        """Return once /health says 200 and one token has been generated: a server that listens is not yet an engine that answers."""
        question = {"prompt": "Hello", "max_tokens": 1}
        async with aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=None, sock_connect=1)) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    async with session.get("/health") as health:
                        healthy = health.status == 200
                    if healthy:
                        async with session.post("/v1/completions", json=question) as answer:
                            if answer.status == 200 and (await answer.json()).get("choices"):
                                return
                await asyncio.sleep(_POLL)

    async def _relay_output(self) -> None:
        """Log the engine's output line by line, and keep the last lines for errors."""
        stream = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(stream)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, self._process.stdout)
        rest = b""
        try:
            while chunk := await stream.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_LINE:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._log_line(line)
        finally:
            if rest:
                self._log_line(rest)
            transport.close()

    def _log_line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        self._last.append(text)
        output.info("%s", text)

    async def _watch_exit(self) -> None:
        """Wait for the engine's end, whatever it is; unasked, any exit code is a failure (FastDeploy ends with 0 after a crash)."""
        await asyncio.to_thread(self._process.wait)
        if self._stopping:
            return
        served = self._lifecycle.state is not State.STARTING
        self._lifecycle.report(Event.ENGINE_DIED)
        await asyncio.wait({self._relay}, timeout=_LAST_WORDS)
        died = EngineDied(f"the {self._engine.name} engine {self._exit()} while it was needed")
        if served:  # before that, `ready` tells the story
            log.error("%s", self._story(str(died)))
        self.death.set_result(died)
        self._kill_family()  # what it started may live on, hold the GPU's memory and even answer /health

    async def _stop(self) -> None:
        """TERM, wait, KILL, reap: the process and everything that it started."""
        if self._process.poll() is None:
            self._process.terminate()
            await asyncio.wait({self._watch}, timeout=self._settings.stop_timeout)
        self._kill_family()
        await self._watch
        await asyncio.wait({self._relay}, timeout=_LAST_WORDS)
        self._relay.cancel()
        await asyncio.gather(self._relay, return_exceptions=True)

    def _kill_family(self) -> None:
        """End every process of the engine and reap those that became ours."""
        family = _family(self._process.pid, self._mark)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([process for process in family if process.pid != self._process.pid], timeout=1)

    def _exit(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"

    def _story(self, what: str) -> str:
        lines = "\n".join(f"    {line}" for line in self._last)
        return f"{what}; its last lines:\n{lines}" if lines else f"{what}; it printed nothing"


@dataclass(frozen=True, slots=True)
class SupervisedEngine:
    """A started engine, as the threads that relay requests see it."""

    url: str
    death: concurrent.futures.Future[EngineDied]
    wait_ready: Callable[[], None]
    """Block until the engine has answered; raises EngineFailedToStart."""


@contextlib.contextmanager
def supervised(process: EngineProcess) -> Iterator[SupervisedEngine]:
    """Run an engine process on an event loop in a thread of its own, from entering until leaving."""
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(process):
        yield SupervisedEngine(process.url, process.death, functools.partial(portal.call, process.ready))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _family(pid: int, mark: str) -> list[psutil.Process]:
    """Return the processes of an engine that live: its session, and those that left it.

    FastDeploy's launcher calls setsid, and after a crash its children belong to nobody; but they inherited the environment with the mark.
    Those that gave themselves another title (gunicorn's workers) have lost their environment's text, but not their session.
    """
    family = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if process.pid != os.getpid() and (os.getsid(process.pid) == pid or process.environ().get(_MARK) == mark):
                family.append(process)
    return family
