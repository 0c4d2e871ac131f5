"""Routes, streaming, disconnects and shutdown: the only file that knows aiohttp.

A handler task lives as long as its client: when the connection closes, aiohttp cancels the task, and its
`finally` aborts the sequences. Leaving the process is the other way round: the tasks are cut, then the thread.
"""

from __future__ import annotations

import asyncio
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

from cpu_engine.forward import Transformer
from cpu_engine.gauges import CONTENT_TYPE, Counters
from cpu_engine.refusals import BadRequest, RequestKind, error_body
from cpu_engine.request import CHOICES_LIMIT, GenerationRequest, RequestReader
from cpu_engine.response import Answer, encode, error_frame
from cpu_engine.scheduler import Overloaded, Scheduler, Ticket
from cpu_engine.sequence import TokenEvent

# The worker takes 30 MiB and writes them anew in ASCII, where a character of two bytes takes six.
_BODY_LIMIT = 96 << 20
# How long a cut waits for handlers to notice, and for the step that is under way.
_CUT_SECONDS = 5.0
_SSE_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds of the server: sequences in the model at once, requests at once, seconds of grace at the end."""

    slots: int
    concurrency: int
    grace: float


class Server:
    """The HTTP face of one model."""

    def __init__(self, model: Transformer, reader: RequestReader, *, name: str, root: str, limits: ServerLimits) -> None:
        self._reader = reader
        self._name = name
        self._root = root
        self._limits = limits
        self._metrics = Counters()
        self._created = int(time.time())
        self._busy: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._stop = asyncio.Event()
        self._stopping = False
        self._failure: Exception | None = None
        self._inboxes: dict[Ticket, tuple[_Inbox, int]] = {}
        loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(
            model,
            reader.tokenizer,
            slots=limits.slots,
            queue_limit=limits.concurrency + CHOICES_LIMIT,
            deliver=lambda events: _call(loop, partial(self._dispatch, events)),
            failed=lambda error: _call(loop, partial(self._fail, error)),
        )

    def stop(self) -> None:
        """Begin to shut down; a second call cuts the grace short."""
        if self._stopping:
            self._idle.set()
        self._stopping = True
        self._stop.set()

    async def serve(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        """Answer on a bound socket until `stop`; `ready` is called once it listens.

        Raises whatever the model raised, when that ended the service, and OSError when the socket cannot listen.
        """
        runner = web.AppRunner(self._application(), handle_signals=False, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        self._scheduler.start()
        try:
            site = web.SockSite(runner, listener)
            await site.start()
            ready()
            await self._stop.wait()
            await site.stop()
            await self._drain()
        finally:
            await runner.cleanup()
            self._scheduler.close(_CUT_SECONDS)
            self._reader.close()
        if self._failure is not None:
            raise self._failure

    async def _drain(self) -> None:
        """Let running requests finish within the grace, then cut the rest."""
        if self._busy and self._failure is None and self._limits.grace > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self._limits.grace)
        # A failed model has told every request so: their answers are on the way out.
        cut = set(self._busy)
        for task in cut if self._failure is None else ():
            task.cancel()
        if cut:
            await asyncio.wait(cut, timeout=_CUT_SECONDS)

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[_plain_errors], client_max_size=_BODY_LIMIT)
        application.router.add_get("/health", _nothing)
        application.router.add_get("/ping", _nothing)
        application.router.add_post("/ping", _nothing)
        application.router.add_get("/metrics", self._show_metrics)
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", partial(self._generate, "chat"))
        application.router.add_post("/v1/completions", partial(self._generate, "completion"))
        return application

    def _dispatch(self, events: Sequence[tuple[Ticket, TokenEvent]]) -> None:
        for ticket, event in events:
            self._metrics.generation_tokens += event.token is not None
            if ticket in self._inboxes:
                inbox, index = self._inboxes[ticket]
                inbox.put(index, event)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self.stop()

    async def _show_metrics(self, _: web.Request) -> web.Response:
        text = self._metrics.render(running=self._scheduler.running, waiting=self._scheduler.waiting)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _models(self, _: web.Request) -> web.Response:
        permission = {"id": f"modelperm-{uuid.uuid4().hex}", "object": "model_permission", "created": self._created}
        permission |= {"allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True}
        permission |= {"allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False}
        model = {"id": self._name, "object": "model", "created": self._created, "owned_by": "FastDeploy"}
        model |= {"root": self._root, "parent": None, "max_model_len": self._reader.max_model_len}
        permission |= {"organization": "*", "group": None, "is_blocking": False}
        return _json({"object": "list", "data": [model | {"permission": [permission]}]})

    async def _generate(self, kind: RequestKind, http: web.Request) -> web.StreamResponse:
        if self._stopping:
            return _overloaded(503, "The server is shutting down")
        if len(self._busy) >= self._limits.concurrency:
            return _overloaded(429, f"Too many requests, current max concurrency is {self._limits.concurrency}")
        arrived = time.perf_counter()
        with self._occupied():
            try:
                request = await self._read(kind, await http.read())
                with self._submitted(request, arrived) as inbox:
                    answer = Answer(request, self._reader.tokenizer, model=self._name, created=int(time.time()))
                    if request.stream:
                        return await self._stream(http, answer, inbox)
                    return await self._whole(answer, inbox)
            except BadRequest as error:
                return _json(error_body(error.message, param=error.param, code=error.code), status=error.status)
            except Overloaded:
                return _overloaded(429, "Too many requests, too many sequences are waiting")

    async def _read(self, kind: RequestKind, body: bytes) -> GenerationRequest:
        """Check a body, off the loop: to render, tokenise or compile what it holds takes as long as others would have to wait."""
        return await asyncio.to_thread(self._reader.read, kind, body)

    @contextmanager
    def _occupied(self) -> Iterator[None]:
        """Count the running handler, and know its task, for as long as the block lasts."""
        task = asyncio.current_task()
        assert task is not None, "aiohttp runs handlers in tasks"  # noqa: S101 - for the type checker
        self._busy.add(task)
        try:
            yield
        finally:
            self._busy.discard(task)
            if self._stopping and not self._busy:
                self._idle.set()

    @contextmanager
    def _submitted(self, request: GenerationRequest, arrived: float) -> Iterator[_Inbox]:
        """Run the sequences of `request` for as long as the block lasts; what has not ended by then is aborted."""
        inbox = _Inbox(self._metrics, arrived)
        tickets = self._scheduler.submit(request.specs)
        self._inboxes.update({ticket: (inbox, index) for index, ticket in enumerate(tickets)})
        self._metrics.requests += 1
        self._metrics.prompt_tokens += sum(len(prompt.tokens) for prompt in request.prompts)
        try:
            yield inbox
        finally:
            self._scheduler.abort(tickets)
            for ticket in tickets:
                del self._inboxes[ticket]

    async def _stream(self, http: web.Request, answer: Answer, inbox: _Inbox) -> web.StreamResponse:
        response = web.StreamResponse(headers=_SSE_HEADERS)
        await response.prepare(http)
        try:
            if opening := answer.opening():
                await response.write(opening)
            while not answer.finished:
                frames = [answer.frame(index, event, inbox.elapsed) for index, event in await inbox.next()]
                await response.write(b"".join(frames))
            await response.write(answer.closing())
        except _EngineError as error:
            await response.write(error_frame(error.body))
            return response
        except ConnectionResetError:
            return response  # the client has left; _submitted aborts its sequences
        self._metrics.successes += 1
        return response

    async def _whole(self, answer: Answer, inbox: _Inbox) -> web.StreamResponse:
        try:
            while not answer.finished:
                for index, event in await inbox.next():
                    answer.take(index, event)
        except _EngineError as error:
            return _json(error.body, status=500)
        self._metrics.successes += 1
        return _json(answer.whole())


class _EngineError(Exception):
    """A sequence ended with an error event."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.body = error_body(message, kind="internal_error", code="engine_error")


class _Inbox:
    """The events of one request, as (index of the choice, event)."""

    def __init__(self, metrics: Counters, arrived: float) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._queue: asyncio.Queue[tuple[int, TokenEvent]] = asyncio.Queue()
        self._answered = False

    @property
    def elapsed(self) -> float:
        """Return the seconds since the request arrived."""
        return time.perf_counter() - self._arrived

    def put(self, index: int, event: TokenEvent) -> None:
        """Add an event."""
        if not self._answered:
            self._answered = True
            self._metrics.first_token(self.elapsed)
        self._queue.put_nowait((index, event))

    async def next(self) -> list[tuple[int, TokenEvent]]:
        """Wait for an event and return it with all that have come by then; raise _EngineError for an error."""
        batch = [await self._queue.get()]
        while not self._queue.empty():
            batch.append(self._queue.get_nowait())
        for _, event in batch:
            if event.finish == "error":
                raise _EngineError(event.text)
        return batch


async def _nothing(_: web.Request) -> web.Response:
    return web.Response()


@web.middleware
async def _plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every error a JSON body. An unexpected exception is a 500 without details, or breaks off an answer that has begun."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        message = f"The body is larger than {_BODY_LIMIT} bytes"
        return _json(error_body(message, param="body", code="request_too_large"), status=413)
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _json({"detail": error.reason}, status=error.status, headers=allow)
    except ConnectionError:
        # The client has gone between two writes; aiohttp ends the connection quietly.
        raise
    except Exception:  # noqa: BLE001 - the one place where the unforeseen becomes an answer
        traceback.print_exc()
        if request.writer.output_size and request.transport:
            # Another head would be taken for a part of the body; nothing more can be said to this client.
            request.transport.abort()
        return _json(error_body("Internal error", kind="internal_error", code="internal_error"), status=500)


def _json(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=encode(value), status=status, headers={"Content-Type": "application/json", **(headers or {})})


def _overloaded(status: int, message: str) -> web.Response:
    code = "rate_limit_exceeded" if status == 429 else "service_unavailable"
    body = error_body(message, kind="overloaded_error", code=code)
    return _json(body, status=status, headers={"Retry-After": "1"})


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Run `callback` on the loop; the model's thread may still be in a step when the loop has closed."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        if not loop.is_closed():
            raise
