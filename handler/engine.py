"""The engine server as a child process: proved ready, watched for its whole life, started again, and ended with all its descendants.

launch.py has started it already. `supervised` watches it on an event loop of its own, in a thread, because the RunPod SDK owns the main
thread's loop and the engine's life must not depend on it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import anyio.from_thread

from handler.dialect import Exchange
from handler.errors import EngineDied, EngineFailedToStart
from handler.job import Request
from handler.launch import Child, Launcher
from handler.lifecycle import Event, Lifecycle, State
from handler.logs import Tail
from handler.processes import Family, Work
from handler.settings import EngineSettings

__all__ = ["EngineProcess", "SupervisedEngine", "supervised"]

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

_POLL = 0.02
"""Seconds between two questions whether the engine is ready; an open port answers within a millisecond."""


class EngineProcess:
    """One engine, as an async context manager: entering watches over its first start, leaving ends it and all it started.

    `url` is where it answers. `death` gets an EngineDied as its result when the engine ends unasked; it is a concurrent future, since
    whoever relays requests may run on another loop.
    """

    def __init__(self, launcher: Launcher, first: Child, settings: EngineSettings, lifecycle: Lifecycle) -> None:
        self._launcher, self._first, self._settings, self._lifecycle = launcher, first, settings, lifecycle
        self._engine, self.url = launcher.engine, launcher.url
        self.exchange = self._engine.exchange
        self.death: concurrent.futures.Future[EngineDied] = concurrent.futures.Future()
        self._verdict = ""
        self._stopping = False

    async def __aenter__(self) -> EngineProcess:
        self._attend(self._first)
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
                self._attend(self._launcher.start())
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

    def _attend(self, child: Child) -> None:
        """Follow one start of the engine."""
        child.watched = True
        self._stopping, self._process = False, child.process
        self._family = Family(pid=child.process.pid, mark=child.mark)
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._heard = 0
        self._relay = asyncio.create_task(self._relay_output())
        self._follow = asyncio.create_task(self._follow_logs(child.tail))
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
