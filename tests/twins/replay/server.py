"""The sockets: requests on kept connections, each answered from a recording (or made-up tokens) step by step."""

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from . import synthetic
from .recordings import PROBES, Library, Miss, Recording, json_object
from .script import REQUEST_FAULTS, Close, Die, Drop, Fault, Pacing, Pause, Restart, Send, Silence, script
from .seen import Entry, Seen
from .wire import Answer, BadRequest, Request, json_answer, read_request, split, text_answer

GENERATION = synthetic.ROUTES
SEEN = "/__seen"  # what was seen so far; `/__seen/ended/3` waits until three requests have ended
UNHEALTHY = text_answer("404 Not Found", "Worker Service Not Healthy")
UNAUTHORIZED = json_answer("401 Unauthorized", {"error": "Unauthorized"})
IDLE_S = 2.0
"""After so long without a request a connection is closed: gunicorn's default, which FastDeploy leaves as it is."""
RESTART_S = 2.0
"""How long nothing is answered after a `Restart`; with the real server it was under five seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the server answers, beside what was recorded."""

    pacing: Pacing = field(default_factory=Pacing)
    faults: tuple[Fault, ...] = ()
    spared: int = 0
    """So many requests for an answer come before the first fault: a worker's own question whether the engine is ready."""
    api_keys: tuple[str, ...] = ()
    """If any: routes below /v1 want one of them as a bearer."""
    synthetic_rate: float = 0.0
    """Tokens per second of made-up answers; 0 answers from recordings."""
    synthetic_tokens: int = 0
    graceful_s: float = 0.0
    """How long SIGTERM lets running requests finish (`--timeout-graceful-shutdown`)."""
    term_delay_s: float = 0.0
    """How long an orderly end takes beyond that (2 to 13 s were measured)."""
    heartbeat_s: float = 30.0
    """How long a frozen server is still healthy."""

    def fault(self, kind: str) -> Fault | None:
        """The fault of that kind, if it was asked for."""
        return next((fault for fault in self.faults if fault.kind == kind), None)


class Server:
    """Serves one listening socket until SIGTERM or SIGINT."""

    def __init__(self, library: Library, behaviour: Behaviour) -> None:
        self._asked = 0
        self._library = library
        self._behaviour = behaviour
        self._seen = Seen()
        self._connections: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        """Those of the connections that have a request."""
        self._opened = math.inf
        """When it opened, or had answered the last request that is spared; a freeze counts from then."""
        self._restart = asyncio.Event()
        self._restarted = self._stopping = False

    async def run(self, listener: socket.socket) -> None:
        """Serve until told to stop, then end running requests as uvicorn does: cut at once, or after the graceful time."""
        self._open_if_spared()
        serving = asyncio.ensure_future(self._serve(listener))
        for number in (signal.SIGINT, *(() if self._behaviour.fault("ignore-term") else (signal.SIGTERM,))):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        listener.close()
        self._stopping = True
        for task in self._connections - self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering, timeout=self._behaviour.graceful_s)
        await self._cut()
        await asyncio.sleep(self._behaviour.term_delay_s)

    async def _serve(self, listener: socket.socket) -> None:
        """Accept connections; after a restart nothing is accepted for a while, though the socket still listens."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(_Reader(), self._connection)

        while True:
            server = await loop.create_server(protocol, sock=listener.dup(), backlog=1024)
            try:
                await self._restart.wait()
            finally:
                server.close()
            self._restart.clear()
            await self._cut()
            await asyncio.sleep(RESTART_S)

    async def _cut(self) -> None:
        """End all connections at once."""
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or not isinstance(reader, _Reader):
            raise AssertionError("the protocol of `_serve` runs this in a task")
        self._connections.add(task)
        idle: float | None = None  # the first request may take its time
        try:
            while await self._exchange(reader, writer, task, idle) and not self._stopping:
                idle = IDLE_S
        finally:
            writer.close()
            self._connections.discard(task)

    async def _exchange(self, reader: "_Reader", writer: asyncio.StreamWriter, task: "asyncio.Task[None]", idle: float | None) -> bool:
        """Answer one request; returns whether the connection is kept for another."""
        try:
            request = await read_request(reader, idle)
        except (BadRequest, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError, ValueError, OSError):
            return False
        entry = Entry.of(request)
        if not request.path.startswith(SEEN):
            self._seen.add(entry)
        self._answering.add(task)
        try:
            return await self._act(request, entry, writer, reader.gone)
        except _Gone:
            entry.end("finished" if entry.is_whole else "aborted-by-client")
        except asyncio.CancelledError:
            entry.end("stopped")
            writer.transport.abort()
        finally:
            self._answering.discard(task)
            if request.path in GENERATION:
                self._open_if_spared()
            self._seen.ring()
        return False

    def _open_if_spared(self) -> None:
        if self._opened == math.inf and self._asked >= self._behaviour.spared:
            self._opened = time.monotonic()

    def _fault(self, request: Request) -> Fault | None:
        if request.path not in GENERATION:
            return None
        self._asked += 1
        if self._asked <= self._behaviour.spared or self._restarted:
            return None
        return next((one for one in self._behaviour.faults if one.kind in REQUEST_FAULTS), None)

    async def _act(self, request: Request, entry: Entry, writer: asyncio.StreamWriter, gone: "asyncio.Future[None]") -> bool:
        behaviour, pacing = self._behaviour, self._behaviour.pacing
        keeps = request.headers.get("connection", "").lower() != "close"
        ended = request.path.partition(f"{SEEN}/ended/")[2]
        if ended.isdigit():
            await _unless(gone, self._seen.until_ended(int(ended)))
        answer = self._own_answer(request)
        fault = self._fault(request)
        if answer is None and behaviour.synthetic_rate and request.path in GENERATION and request.method == "POST":
            entry.case = "synthetic"
            if fault is None and json_object(request.body).get("stream") is True:
                await self._tokens(request, entry, writer, gone, keeps=keeps)
                return keeps
            answer, pacing = synthetic.whole(request, behaviour.synthetic_tokens), Pacing(event_delay=1 / behaviour.synthetic_rate)
        answer = answer or self._recorded(request, entry)
        steps = script(answer, pacing=pacing, fault=fault, keeps=keeps) if answer else [Silence()]
        entry.events_total = len(answer.pieces) if answer and answer.chunked else 0
        for step in steps:
            await self._frozen_until_gone(request, gone)
            if isinstance(step, Send):
                writer.write(step.data)
                entry.wrote(len(step.data), step.events)
                await _unless(gone, writer.drain())
            elif isinstance(step, Pause):
                await _unless(gone, asyncio.sleep(step.seconds))
            elif isinstance(step, Silence):
                await _unless(gone, asyncio.Future())
            elif isinstance(step, Drop):
                entry.end("dropped")
                return False
            elif isinstance(step, Close):
                entry.end("finished")
                await asyncio.sleep(step.after_s)
                return False
            elif isinstance(step, Die):
                os.kill(os.getpid(), signal.SIGKILL)
            elif isinstance(step, Restart):
                self._restarted = True
                self._restart.set()
                await asyncio.Future()  # cut with all the others
        entry.end("finished")
        return True

    def _own_answer(self, request: Request) -> Answer | None:
        """What the server says by itself: what it saw, that it is frozen, that the key is wrong."""
        if request.path.startswith(SEEN):
            return json_answer("200 OK", self._seen.listed())
        if request.path in PROBES[:2] and self._is_frozen(for_s=self._behaviour.heartbeat_s):
            return UNHEALTHY
        keys = self._behaviour.api_keys
        if keys and request.path.startswith("/v1") and request.headers.get("authorization") not in [f"Bearer {key}" for key in keys]:
            found = self._library.find(request, checks_keys=True)
            return split(found.raw) if isinstance(found, Recording) and found.refused_key else UNAUTHORIZED
        return None

    def _recorded(self, request: Request, entry: Entry) -> Answer | None:
        """The recorded answer; None where the server never answered; a 501 where nothing was recorded."""
        wanted = request.headers.get("x-replay-case") or json_object(request.body).get("x_replay_case")
        found = self._library.case(str(wanted)) if wanted else self._library.find(request, checks_keys=bool(self._behaviour.api_keys))
        if found is None:
            found = Miss(closest=None, differences=())
        if isinstance(found, Miss):
            message = f"{request.method} {request.path}: no such case: {wanted}" if wanted else f"{request.method} {request.path}: {found}"
            print(f"replay miss: {message}", file=sys.stderr, flush=True)
            error = {"message": message, "type": "replay_miss", "param": None, "code": "replay_miss"}
            return json_answer("501 Not Implemented", {"error": {**error, "closest": found.closest, "differences": found.differences}})
        entry.case, entry.by = found.case, found.by
        return split(found.raw) if found.raw else None

    async def _tokens(
        self, request: Request, entry: Entry, writer: asyncio.StreamWriter, gone: "asyncio.Future[None]", *, keeps: bool
    ) -> None:
        stream = synthetic.Stream(request, self._behaviour.synthetic_tokens, rate=self._behaviour.synthetic_rate, keeps=keeps)
        entry.events_total = stream.events
        pump = synthetic.Pump(writer.transport, stream, entry)
        try:
            await _unless(gone, pump.done)
            await _unless(gone, writer.drain())
        finally:
            pump.stop()
        entry.end("finished")

    def _is_frozen(self, *, for_s: float = 0.0) -> bool:
        freeze = self._behaviour.fault("freeze")
        return freeze is not None and time.monotonic() - self._opened >= freeze.number(0.0) + for_s

    async def _frozen_until_gone(self, request: Request, gone: "asyncio.Future[None]") -> None:
        if request.path in GENERATION and self._is_frozen():
            await _unless(gone, asyncio.Future())


class _Gone(Exception):
    """The client closed the connection before the answer was out."""


class _Reader(asyncio.StreamReader):
    """A reader that tells when the client is gone without reading what it has sent, which may be the next request."""

    def __init__(self) -> None:
        super().__init__(limit=1 << 26)
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def feed_eof(self) -> None:
        super().feed_eof()
        self._tell()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._tell()

    def _tell(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


async def _unless(gone: "asyncio.Future[None]", waiting: Awaitable[Any]) -> None:
    """Wait for `waiting`, or raise `_Gone` as soon as the client is gone."""
    task: asyncio.Future[Any] = asyncio.ensure_future(waiting)
    both: set[asyncio.Future[Any]] = {task, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() or isinstance(task.exception(), OSError):
            raise _Gone
        task.result()
    finally:
        task.cancel()
