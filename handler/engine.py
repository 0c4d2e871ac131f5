"""The engine's server as a child process: started, proved ready, watched for its whole life, and ended with all its descendants.

`Engine` is the one owner of that process, on the worker's one event loop, and `_end` the one way to end it. How a kind of engine is
started and spoken to is an `EngineKind`: `CpuEngine` in cpu.py, `FastDeployEngine` in fastdeploy/start.py. The worker never imports an
engine: it talks HTTP to a port on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from handler.errors import EngineDied, EngineFailedToStart, InvalidSettings
from handler.exchange import Exchange
from handler.http1 import Broken, Client, Target
from handler.job import COMPLETIONS, Request
from handler.lifecycle import Event, Lifecycle, State
from handler.liveness import Pulse, Signs, gets_on
from handler.logs import Tail
from handler.prestart import Prestarted, engine_environment, new_mark, start_process
from handler.processes import Family
from handler.settings import EngineSettings

__all__ = ["Engine", "EngineKind", "free_ports"]

log = logging.getLogger(__name__)
output = logging.getLogger("engine")

LAST_LINES = 200
"""How many of the engine's last lines are searched for the cause of a failure."""

SHOWN_LINES = 20
"""How many of them an error shows."""

_LOOK = 1.0
"""Seconds between two looks at whether a starting engine makes progress."""

_CARE = 5.0
"""Seconds between two looks at an engine that serves."""

MAX_LINE = 65536
"""Bytes after which a line of the engine's output is cut: a progress bar may never end its line."""

_LAST_WORDS = 0.5
"""Seconds that the output of an engine that has ended may take to arrive."""

_POLL = 0.02
"""Seconds between two questions whether the engine is ready; an open port answers within a millisecond."""

# A stream, because FastDeploy's whole answers are empty with some reasoning parsers.
_QUESTION = b'{"prompt": "Hello", "max_tokens": 1, "stream": true}'
_QUESTION_TIMEOUT = 600.0
"""Seconds for the first answer, which may compile kernels; the start's own limits are checked beside it."""


class EngineKind(Protocol):
    """How one kind of engine is started and spoken to."""

    @property
    def name(self) -> str:
        """What logs and errors call it."""

    @property
    def polls(self) -> bool:
        """Whether its main process polls, so that one which uses no processor time is frozen (`liveness.Pulse`)."""

    def command(self, port: int) -> list[str]:
        """Return the argv that serves on 127.0.0.1:`port`."""

    def variables(self) -> dict[str, str]:
        """Return what the engine's environment needs beside the worker's own."""

    def exchange(self, request: Request) -> Exchange:
        """Return how to put a request to it; raises InvalidJob for one that it must not see."""

    def log_files(self) -> Tail | None:
        """Return the log files to follow beside its output, or None."""

    def examine(self) -> None:
        """Look whether the machine can hold it, beside its start; raises EngineFailedToStart when it cannot."""

    def gpu_memory(self) -> int | None:
        """Return the bytes in use on its GPUs, a sign of life while it loads; None where that is not known."""

    def fatal(self, line: str) -> bool:
        """Tell whether a line of its output or its logs (`name: line`) means its end, also where its process goes on."""

    def bound_logs(self) -> None:
        """Keep its logs small; called now and then while it serves."""

    def explain(self, lines: Iterable[str]) -> str | None:
        """Return the cause of a failure that its last lines show, with what to do about it, or None."""

    def clear(self) -> None:
        """Remove what its processes left behind; called when none of them lives."""


class Engine:
    """One engine, as an async context manager: entering starts its process, leaving ends it and everything that it started.

    `url` is where it answers, and may change until `ready` returns. `died` gets an EngineDied when the engine ends unasked after that.
    """

    def __init__(
        self,
        kind: EngineKind,
        environment: Mapping[str, str],
        settings: EngineSettings,
        lifecycle: Lifecycle,
        prestarted: Prestarted | None = None,
    ) -> None:
        self._kind, self._settings, self._lifecycle, self._prestarted = kind, settings, lifecycle, prestarted
        self._environment = engine_environment(environment) | kind.variables()
        self.exchange = kind.exchange
        self.url = ""
        self.starts = 0
        self.when_ready: Callable[[], None] = lambda: None
        """Called once, at the first answer."""
        self._verdict = ""
        self._ending = False

    async def __aenter__(self) -> Engine:
        self.died: asyncio.Future[EngineDied] = asyncio.get_running_loop().create_future()
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._lifecycle.report(Event.TERM)
        await self._end()
        self._lifecycle.report(Event.ENDED)

    def _start(self) -> None:
        """Start the process; it leads a session of its own, and ends with this one.

        Raises:
            InvalidSettings: its interpreter cannot be run.
        """
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        tail = self._kind.log_files()
        if tail:
            tail.skip()
        argv = self._kind.command(port)
        self.starts += 1
        log.info("starting the %s engine: %s", self._kind.name, shlex.join(argv))
        if self._prestarted and self._prestarted.hand_over(argv, self._environment):
            self._process, mark = self._prestarted.process, self._prestarted.mark
        else:
            mark = new_mark()
            try:
                self._process = start_process(argv, self._environment, mark)
            except OSError as error:
                raise InvalidSettings([f"ENGINE_PYTHON: got {argv[0]!r}, which cannot be run ({error.strerror})"]) from None
        self._family = Family(pid=self._process.pid, mark=mark)
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._heard, self._ending = 0, False
        self._fatal = ""
        self._listening = {asyncio.create_task(self._relay_output()), asyncio.create_task(self._follow_logs(tail))}
        self._watching = asyncio.create_task(self._watch())

    async def _end(self) -> None:
        """TERM, wait, KILL, reap: the first process and everything that it started; then clear what they left."""
        self._ending = True
        if self._process.poll() is None:
            self._process.terminate()
            await asyncio.wait({self._watching}, timeout=self._settings.stop_timeout)
        await asyncio.to_thread(self._family.kill)
        await self._watching
        self._kind.clear()

    async def ready(self) -> None:
        """Wait until the engine has given a real answer, starting it again after an unexplained failure as often as is allowed.

        Raises:
            EngineFailedToStart: with the cause and the engine's last lines, when it ended, stood still, or took too long.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.startup_timeout
        for left in reversed(range(self._settings.restarts + 1)):
            try:
                await self._first_answer(deadline)
            except EngineFailedToStart as error:
                # A cause that was recognised would only come again, and cost the same time.
                late = asyncio.get_running_loop().time() >= deadline
                if not left or late or self._kind.explain(self._last):
                    self._lifecycle.report(Event.ENGINE_DIED)
                    raise
                log.warning("%s\nstarting it again (ENGINE_RESTARTS)", error)
                await self._end()
                self._start()
            else:
                self._lifecycle.report(Event.ENGINE_READY)
                self.when_ready()
                return

    def condemn(self, reason: str) -> None:
        """End an engine that is alive but of no use; its death is then news with this reason, such as "stood still"."""
        self._verdict = self._verdict or reason
        self._process.kill()

    async def _first_answer(self, deadline: float) -> None:
        """Return once the engine has answered; raise when it ends, stands still for the stall time, or the deadline is over."""
        loop, asked = asyncio.get_running_loop(), asyncio.create_task(self._ask_until_answered())
        signs, looked = await self._signs(), loop.time()
        moved = looked
        try:
            while not asked.done() and not self._watching.done():
                now = loop.time()
                if now >= deadline:
                    raise self._failed(f"was not ready within {self._settings.startup_timeout:g} s (ENGINE_STARTUP_TIMEOUT)")
                if self._fatal:
                    await asyncio.wait({self._watching}, timeout=_LOOK)  # most often it ends by itself, and its exit code tells more
                    if self._watching.done():
                        break
                    raise self._failed(f"cannot start, as its log says ({self._fatal})")
                if now - moved > self._settings.startup_stall_timeout:
                    limit = f"{self._settings.startup_stall_timeout:g} s (ENGINE_STARTUP_STALL_TIMEOUT)"
                    raise self._failed(f"stood still for {limit}: it wrote nothing, read nothing and computed nothing")
                await asyncio.wait({asked, self._watching}, timeout=min(_LOOK, deadline - now), return_when=asyncio.FIRST_COMPLETED)
                before, signs, since, looked = signs, await self._signs(), looked, loop.time()
                if gets_on(before, signs, looked - since):
                    moved = looked
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        # Nothing is awaited between this and the report that it is ready: from then on `_watch` reports its end.
        if self._watching.done():
            raise self._failed(f"{self._exit()} before it was ready")
        asked.result()

    async def _signs(self) -> Signs:
        """Return the signs of life of a starting engine."""
        work, gpu = await asyncio.to_thread(self._family.work), await asyncio.to_thread(self._kind.gpu_memory)
        return Signs(heard=self._heard, read=work.read, resident=work.resident, gpu=gpu, cpu=work.cpu)

    async def _ask_until_answered(self) -> None:
        """Return once /health says 200 and one token has been generated: a server that listens is not yet an engine that answers.

        What answers must be the engine: another program may have been given its port before it opened it.
        """
        client = Client(Target.parse(self.url), idle=0, headers={"Content-Type": "application/json"})
        try:
            while True:
                healthy = False
                with contextlib.suppress(Broken, asyncio.TimeoutError):
                    healthy = (await self._ask(client, "GET", "/health", b""))[0] == 200
                    if healthy:
                        status, answer = await self._ask(client, "POST", COMPLETIONS, _QUESTION)
                        # A model for embeddings has no completions, and says so.
                        answered = 400 <= status < 500 or b'"choices":[{' in answer
                        if answered and await asyncio.to_thread(self._family.holds, int(self.url.rpartition(":")[2])):
                            return
                await asyncio.sleep(_LOOK if healthy else _POLL)  # questions that it answers badly would count as work
        finally:
            client.close()

    async def _ask(self, client: Client, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        answer = await client.send(method, path, body, timeout=_QUESTION_TIMEOUT)
        try:
            return answer.status, await answer.all()
        finally:
            answer.close()

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
        if not self._ending and not self._fatal and self._kind.fatal(line):
            self._fatal = line[:200]
            if self._lifecycle.state is not State.STARTING:  # else `ready` ends the start
                self.condemn(f"cannot go on, as its log says ({self._fatal}),")

    async def _watch(self) -> None:
        """Wait for the engine's end, whatever it is; unasked, any exit code is a failure (FastDeploy ends with 0 after a crash)."""
        caring = asyncio.create_task(self._care())
        await asyncio.to_thread(self._process.wait)
        caring.cancel()
        await asyncio.gather(caring, return_exceptions=True)
        await self._last_words()
        if self._ending or self._lifecycle.state is State.STARTING:
            return  # asked for, or reported by `ready`
        self._lifecycle.report(Event.ENGINE_DIED)
        died = EngineDied(f"the {self._kind.name} engine {self._verdict or self._exit()} while it was needed")
        log.error("%s", self._story(str(died)))
        self.died.set_result(died)
        await asyncio.to_thread(self._family.kill)  # what it started may live on, hold the GPU's memory and even answer /health

    async def _care(self) -> None:
        """Bound the engine's logs while it serves, and end one whose main process is frozen: its HTTP server may answer for ever."""
        pulse, now = Pulse(), asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_CARE)
            if self._lifecycle.state is State.STARTING:
                continue
            await asyncio.to_thread(self._kind.bound_logs)
            if self._kind.polls and pulse.frozen(now(), self._family.cpu_of_first()):
                self.condemn("stood still: its main process used no processor time for 30 s")

    async def _last_words(self) -> None:
        """Give the output and the logs of an engine that has ended a moment to arrive, then stop listening."""
        await asyncio.wait(self._listening, timeout=_LAST_WORDS)
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    def _exit(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"

    def _failed(self, how: str) -> EngineFailedToStart:
        return EngineFailedToStart(self._story(f"the {self._kind.name} engine {how}"))

    def _story(self, what: str) -> str:
        """Return what happened, why if that is known, and the engine's last lines."""
        cause = self._kind.explain(self._last)
        lines = "\n".join(f"    {line}" for line in list(self._last)[-SHOWN_LINES:])
        because = f": {cause}" if cause else ""
        return f"{what}{because}; its last lines:\n{lines}" if lines else f"{what}{because}; it printed nothing"


def free_ports(count: int) -> list[int]:
    """Return so many different ports of 127.0.0.1 that nothing listens on at the moment."""
    with contextlib.ExitStack() as probes:
        found = []
        for _ in range(count):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found
