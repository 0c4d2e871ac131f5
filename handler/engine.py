"""The engine server as a child process: started, proved ready, watched for its whole life, and ended with all its descendants.

One class per engine says how it is started (`CpuEngine` here,
`FastDeployEngine` in fastdeploy/server.py); `EngineProcess` does the rest for any of them. The
worker never imports an engine: it talks HTTP to a port on loopback. `supervised` runs the process on an event loop of its own, in a
thread, because the RunPod SDK owns the main thread's loop and the engine's life must not depend on it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import re
import shlex
import signal
import socket
import subprocess  # noqa: TID251
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio.from_thread

from handler.dialect import Exchange
from handler.errors import EngineDied, EngineFailedToStart, InvalidSettings
from handler.job import Request
from handler.lifecycle import Event, Lifecycle, State
from handler.logs import Tail
from handler.processes import Family, Work
from handler.settings import EngineSettings

__all__ = [
    "CpuEngine",
    "Engine",
    "EngineProcess",
    "SupervisedEngine",
    "engine_environment",
    "free_ports",
    "supervised",
]

log = logging.getLogger(__name__)
output = logging.getLogger("engine")

LAST_LINES = 200
"""How many of the engine's last lines are searched for the cause of a failure."""

SHOWN_LINES = 20
"""How many of them an error shows."""

_LOOK = 1.0
"""Seconds between two looks at whether a starting engine makes progress."""

_IDLE = 0.05
"""Cores that processes use while they only wait: the polling loops of FastDeploy's main process take 1 to 3 % of one."""

MAX_LINE = 65536
"""Bytes after which a line of the engine's output is cut: a progress bar may never end its line."""

_LAST_WORDS = 0.5
"""Seconds that the output of an engine that has ended may take to arrive."""

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

    def exchange(self, request: Request) -> Exchange:
        """Put it as it is."""
        return Exchange(request)

    def log_files(self) -> None:
        """It writes none."""

    def explain(self, lines: Iterable[str]) -> str | None:
        """Return its own last word: it ends every refusal with a line that says what is wrong."""
        return next((line.removeprefix("error: ") for line in reversed(list(lines)) if line.startswith("error: ")), None)

    def clear(self) -> None:
        """It leaves nothing."""


_SECRETS = re.compile(r"SECRET|PASSWORD|PASSWD|CREDENTIAL|(?:^|_)(?:TOKEN|KEY)$")


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the worker's environment without what the engine, or code in a checkpoint, has no business with.

    RUNPOD_AI_API_KEY takes jobs in the endpoint's name, and hub tokens read private repositories. Empty FD_ switches go too: FastDeploy
    reads them with int().
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("RUNPOD_") and not _SECRETS.search(name.upper()) and (value or not name.startswith("FD_"))
    }


class EngineProcess:
    """One engine, as an async context manager: entering starts it, leaving ends it and all it started.

    `url` is where it answers. `death` gets an EngineDied as its result when the engine ends unasked; it is a concurrent future, since
    whoever relays requests may run on another loop.
    """

    def __init__(self, engine: Engine, settings: EngineSettings, lifecycle: Lifecycle, environment: Mapping[str, str]) -> None:
        self._engine, self._settings, self._lifecycle = engine, settings, lifecycle
        self._environment = engine_environment(environment) | engine.variables()
        [self._port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self.exchange = engine.exchange
        self.death: concurrent.futures.Future[EngineDied] = concurrent.futures.Future()
        self._verdict = ""
        self._stopping = False

    async def __aenter__(self) -> EngineProcess:
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._lifecycle.report(Event.TERM)
        with anyio.CancelScope(shield=True):
            await self._stop()
        self._lifecycle.report(Event.ENDED)

    async def ready(self) -> None:
        """Wait until the engine has given a real answer, starting it again after an unexplained failure as often as is allowed.

        Raises:
            EngineFailedToStart: with the cause and the engine's last lines, when it ended, stood still, or took too long; also when the
                worker was asked to stop before.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.startup_timeout
        for left in reversed(range(self._settings.restarts + 1)):
            try:
                await self._first_answer(deadline)
            except EngineFailedToStart as error:
                # A cause that was recognised would only come again, and cost the same time.
                late = asyncio.get_running_loop().time() >= deadline
                again = left and not late and not self._engine.explain(self._last)
                if again and self._is_wanted():
                    log.warning("%s\nstarting it again (ENGINE_RESTARTS)", error)
                    await self._stop()
                if not self._is_wanted():
                    raise
                if not again:
                    self._lifecycle.report(Event.ENGINE_DIED)
                    raise
                self._start()
            else:
                self._lifecycle.report(Event.ENGINE_READY)
                return

    def condemn(self, reason: str) -> None:
        """End an engine that is alive but of no use; its death is then news with this reason. May be called from any thread."""
        self._verdict = self._verdict or reason
        self._process.kill()

    def _is_wanted(self) -> bool:
        """Whether the worker still waits for the engine: it may be asked to stop at any time, also between two starts."""
        return self._lifecycle.state is State.STARTING

    def _start(self) -> None:
        self._family, self._stopping = Family(), False
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._heard = 0
        tail = self._engine.log_files()
        if tail:
            tail.skip()
        argv = self._engine.command(self._port)
        log.info("starting the %s engine: %s", self._engine.name, shlex.join(argv))
        try:
            # Not asyncio's own: its wait() waits for the end of the output too, which an orphan of the engine holds open.
            self._process = subprocess.Popen(  # noqa: S603  # starting takes a millisecond
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment | self._family.variables(),
                start_new_session=True,
            )
        except OSError as error:
            raise InvalidSettings([f"ENGINE_PYTHON: got {argv[0]!r}, which cannot be run ({error.strerror})"]) from None
        self._family.pid = self._process.pid
        self._relay = asyncio.create_task(self._relay_output())
        self._follow = asyncio.create_task(self._follow_logs(tail))
        self._watch = asyncio.create_task(self._watch_exit())

    async def _stop(self) -> None:
        """TERM, wait, KILL, reap: the first process and everything that it started."""
        self._stopping = True
        if self._process.poll() is None:
            self._process.terminate()
            await asyncio.wait({self._watch}, timeout=self._settings.stop_timeout)
        await asyncio.to_thread(self._family.kill)
        await self._watch
        await self._last_words()
        self._engine.clear()

    async def _first_answer(self, deadline: float) -> None:
        """Return once the engine has answered; raise when it ends, stands still for the stall time, or the deadline is over."""
        loop, asked = asyncio.get_running_loop(), asyncio.create_task(self._ask_until_answered())
        heard, work, moved = 0, Work(cpu=0, read=0), loop.time()
        try:
            while not asked.done() and not self._watch.done():
                now = loop.time()
                if not self._is_wanted():
                    raise self._failed("was asked to stop before it was ready")
                if now >= deadline:
                    raise self._failed(f"was not ready within {self._settings.startup_timeout:g} s (ENGINE_STARTUP_TIMEOUT)")
                if now - moved > self._settings.startup_stall_timeout:
                    limit = f"{self._settings.startup_stall_timeout:g} s (ENGINE_STARTUP_STALL_TIMEOUT)"
                    raise self._failed(f"stood still for {limit}: it wrote nothing, read nothing and computed nothing")
                step = min(_LOOK, deadline - now)
                await asyncio.wait({asked, self._watch}, timeout=step, return_when=asyncio.FIRST_COMPLETED)
                before, work = work, await asyncio.to_thread(self._family.work)
                if self._heard > heard or work.read > before.read or work.cpu - before.cpu > _IDLE * step:
                    heard, moved = self._heard, loop.time()
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        # Nothing is awaited between this and the report that it is ready: from then on its end is told by who watches it.
        if self._watch.done():
            raise self._failed(f"{self._exit()} before it was ready")
        asked.result()

    async def _ask_until_answered(self) -> None:
        """Return once /health says 200 and one token has been generated: a server that listens is not yet an engine that answers."""
        import aiohttp  # takes 0.2 s, which the engine uses

        # A stream, because FastDeploy's whole answers are empty with some reasoning parsers.
        question = {"prompt": "Hello", "max_tokens": 1, "stream": True}
        async with aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=None, sock_connect=1)) as session:
            while True:
                healthy = False
                with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    async with session.get("/health") as health:
                        healthy = health.status == 200
                    if healthy:
                        async with session.post("/v1/completions", json=question) as answer:
                            # A model for embeddings has no completions, and says so.
                            if 400 <= answer.status < 500 or b'"choices":[{' in await answer.read():
                                return
                await asyncio.sleep(_LOOK if healthy else _POLL)  # questions that it answers badly would count as work

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
                    self._hear(line.decode("utf-8", "replace").rstrip())
        finally:
            if rest:
                self._hear(rest.decode("utf-8", "replace").rstrip())
            transport.close()

    async def _follow_logs(self, tail: Tail | None) -> None:
        """Log what the engine writes into its own log files."""
        last = tail is None
        while not last:
            last = self._process.poll() is not None
            for name, line in tail.lines(last=last) if tail else ():
                self._hear(f"{name}: {line}")
            await asyncio.sleep(0 if last else _LOOK / 4)

    def _hear(self, line: str) -> None:
        self._heard += 1
        self._last.append(line)
        output.info("%s", line)

    async def _watch_exit(self) -> None:
        """Wait for the engine's end, whatever it is; unasked, any exit code is a failure (FastDeploy ends with 0 after a crash)."""
        await asyncio.to_thread(self._process.wait)
        await self._last_words()
        if self._stopping or self._lifecycle.state is State.STARTING:
            return  # asked for, or told by `ready`
        self._lifecycle.report(Event.ENGINE_DIED)
        died = EngineDied(f"the {self._engine.name} engine {self._verdict or self._exit()} while it was needed")
        log.error("%s", self._story(str(died)))
        self.death.set_result(died)
        await asyncio.to_thread(self._family.kill)  # what it started may live on, hold the GPU's memory and even answer /health

    async def _last_words(self) -> None:
        """Give the output and the logs of an engine that has ended a moment to arrive, then stop listening."""
        listening = {self._relay, self._follow}
        await asyncio.wait(listening, timeout=_LAST_WORDS)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)

    def _exit(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"

    def _failed(self, how: str) -> EngineFailedToStart:
        return EngineFailedToStart(self._story(f"the {self._engine.name} engine {how}"))

    def _story(self, what: str) -> str:
        """Return what happened, why if that is known, and the engine's last lines."""
        cause = self._engine.explain(self._last)
        lines = "\n".join(f"    {line}" for line in list(self._last)[-SHOWN_LINES:])
        because = f": {cause}" if cause else ""
        return f"{what}{because}; its last lines:\n{lines}" if lines else f"{what}{because}; it printed nothing"


@dataclass(frozen=True, slots=True)
class SupervisedEngine:
    """A started engine, as the threads that relay requests see it."""

    url: str
    death: concurrent.futures.Future[EngineDied]
    wait_ready: Callable[[], None]
    """Block until the engine has answered; raises EngineFailedToStart."""
    condemn: Callable[[str], None]
    """End an engine that is of no use any more; the words say what it did: "stood still"."""
    exchange: Callable[[Request], Exchange]
    """How a request is put to it."""


@contextlib.contextmanager
def supervised(process: EngineProcess, when_ready: Callable[[], object] = lambda: None) -> Iterator[SupervisedEngine]:
    """Run an engine process on an event loop in a thread of its own, from entering until leaving; `when_ready` follows its first answer."""

    def wait_ready() -> None:
        portal.call(process.ready)
        when_ready()

    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(process):
        yield SupervisedEngine(process.url, process.death, wait_ready, process.condemn, process.exchange)


def free_ports(count: int) -> list[int]:
    """Return so many different ports of 127.0.0.1 that nobody holds at the moment."""
    with contextlib.ExitStack() as probes:
        found = []
        for _ in range(count):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found
