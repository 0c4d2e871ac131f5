"""The HTTP face: the engine's routes on a port of the worker's own, for load-balancing endpoints and local use.

`/v1/...` and `/openai/v1/...` go through the same jobs and the same proxy as the queue's, with HTTP statuses and real SSE. A client that
reads slowly holds the engine back; one that leaves ends the engine's work. Whoever comes too early, too often or with too much gets an
error in OpenAI's shape, with Retry-After where the same request may be sent again. On SIGTERM no request is taken any more, the health
check says so, and those that run are given HTTP_DRAIN_TIMEOUT to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from typing import Any

from aiohttp import web

from handler.body import check_content_type, read_object
from handler.engine import SupervisedEngine
from handler.errors import InvalidJob, Unavailable, WorkerError, for_log, to_openai
from handler.health import add_routes, application, error_response, listening, method_not_allowed
from handler.job import ROUTES, Request, methods_of, read_job
from handler.ledger import Ledger
from handler.lifecycle import Event, Lifecycle, State
from handler.limits import Gate
from handler.metrics import LEFT, MeteredProxy, Metrics
from handler.proxy import Piece, Proxy
from handler.settings import Settings

__all__ = ["serve"]

log = logging.getLogger(__name__)

MAX_BODY = 30 * 1024 * 1024
"""RunPod's own limit for a request to a load-balancing endpoint."""

BODY_TIMEOUT = 60.0
"""Seconds for a whole body to arrive: 30 MB at 4 Mbit/s."""

DEFAULT_PORT = 80
"""What RunPod takes for the port of a load-balancing endpoint that names none."""

_LAST_WORDS = 1.0
"""Seconds that a client which reads nothing has to take the last frame of a stream that failed, and all get when the engine died."""

_NOT_READY = {
    State.STARTING: ("not_ready", "the worker is loading the model", 5),
    State.DEAD: ("engine_died", "the engine of this worker has died; another worker can answer", 1),
}
_LEAVING = ("shutting_down", "the worker is shutting down; another one can answer", 1)


class Face:
    """The routes, on the loop that enters the proxy."""

    def __init__(self, proxy: Proxy, settings: Settings, lifecycle: Lifecycle, metrics: Metrics, gate: Gate) -> None:
        self._proxy, self._settings, self._lifecycle, self._metrics, self._gate = proxy, settings, lifecycle, metrics, gate

    def application(self) -> web.Application:
        """Return the routes as an application."""
        app = application(MAX_BODY)
        add_routes(app, self._settings, self._lifecycle, self._metrics)
        for prefix in ("/openai/v1", "/v1"):
            app.router.add_route("*", prefix + "/{route:.*}", self.relay)
        return app

    async def relay(self, http: web.Request) -> web.StreamResponse:
        """Answer one request as the engine does."""
        answer = _Answer(http)
        with self._metrics.request() as asked:
            asked.path = "/" + http.path.removeprefix("/openai").strip("/")
            allowed = _allowed(asked.path)
            try:
                if http.method == "OPTIONS" and allowed:
                    return web.Response(status=204, headers={"Allow": ", ".join(allowed)})
                self._check(http, asked.path, allowed)
                with self._gate.admitted():
                    await self._answer(http, answer)
            except ConnectionResetError:  # the client has left; closing the pieces told the engine
                asked.status = LEFT
            except Exception as error:  # whatever happens, the client gets an error object
                if not isinstance(error, WorkerError):
                    log.exception("%s %s", http.method, http.rel_url.raw_path[:200])
                log.warning("%s %s failed: %s", http.method, http.rel_url.raw_path[:200], for_log(error))
                asked.status = await answer.fail(error, allowed)
        if self._lifecycle.state is not State.READY:
            answer.response.force_close()
        return answer.response

    def _check(self, http: web.Request, path: str, allowed: tuple[str, ...]) -> None:
        """Refuse what needs no look at the body."""
        if not allowed:
            message = f"{path[:200]}: no such route, expected one of {', '.join(path for path in ROUTES if _allowed(path))}"
            raise InvalidJob(message, param="path", code="unknown_route", status=404)
        if http.method not in allowed:
            raise method_not_allowed(http.method, path, allowed)
        if self._lifecycle.state is not State.READY:
            code, message, seconds = _NOT_READY.get(self._lifecycle.state, _LEAVING)
            raise Unavailable(message, code=code, retry_after=seconds)

    async def _answer(self, http: web.Request, answer: _Answer) -> None:
        request = await self._read(http)
        async with contextlib.aclosing(self._proxy.relay(request)) as pieces:
            async for piece in pieces:
                await answer.send(piece, stream=request.stream)
        await answer.end()

    async def _read(self, http: web.Request) -> Request:
        if http.method in {"GET", "HEAD"}:
            return read_job({"route": http.path_qs.removeprefix("/openai"), "method": "GET"}, self._settings.batch)
        check_content_type(http.headers.get("Content-Type"))
        if (http.content_length or 0) > MAX_BODY:
            raise _too_large()
        try:
            body = await asyncio.wait_for(http.read(), BODY_TIMEOUT)
        except asyncio.TimeoutError:
            raise Unavailable(f"body: did not arrive within {BODY_TIMEOUT:g} s", status=408, code="body_timeout") from None
        except web.HTTPRequestEntityTooLarge:
            raise _too_large() from None
        except web.RequestPayloadError as error:
            raise InvalidJob(f"body: cannot be read ({error})", param="body") from None
        return read_job({"openai_route": http.path_qs, "openai_input": read_object(body)}, self._settings.batch)


class _Answer:
    """What one client gets, as it goes out."""

    def __init__(self, http: web.Request) -> None:
        self._http = http
        self._headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
        self.response: web.StreamResponse = web.Response()

    async def send(self, piece: Piece, *, stream: bool) -> None:
        """Send frames, and wait while the client has too many unread; keep a whole answer until `end`."""
        if not stream:
            self.response = web.Response(text=piece) if isinstance(piece, str) else web.json_response(piece)
            return
        if not self.response.prepared:
            self.response = web.StreamResponse(headers=self._headers)
            await self.response.prepare(self._http)
        await self.response.write(piece.encode())

    async def end(self) -> None:
        """Send what is left."""
        await self.response.prepare(self._http)
        await self.response.write_eof()

    async def fail(self, error: Exception, allowed: tuple[str, ...]) -> int:
        """Send an error instead of an answer, or as the last frame of one that has begun; return its status."""
        status, body = to_openai(error)
        if not self.response.prepared:
            self.response = error_response(error, allowed if status == 405 else ())
            return status
        try:
            await asyncio.wait_for(self._last_frame(body), _LAST_WORDS)
        except (asyncio.TimeoutError, ConnectionResetError):
            if self._http.transport is not None:
                self._http.transport.abort()
        return status

    async def _last_frame(self, body: Any) -> None:
        await self.response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        await self.response.write_eof()


def _allowed(path: str) -> tuple[str, ...]:
    """Return the methods that a route takes here; none for one that is not there."""
    methods = methods_of(path) if path.startswith("/v1/") else ()
    return methods and (*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS")


def _too_large() -> InvalidJob:
    return InvalidJob(f"body: expected at most {MAX_BODY} bytes", param="body", code="request_too_large", status=413)


def serve(engine: SupervisedEngine, settings: Settings, lifecycle: Lifecycle, ledger: Ledger, metrics: Metrics) -> None:
    """Answer HTTP on PORT of every interface until SIGTERM or SIGINT, or until the engine dies.

    Raises:
        EngineFailedToStart: when the engine never became ready.
        InvalidSettings: when a port is taken.
    """
    try:
        asyncio.run(_serve(engine, settings, lifecycle, ledger, metrics))
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the engine is being stopped, within a bound; one more signal must not orphan it


async def _serve(engine: SupervisedEngine, settings: Settings, lifecycle: Lifecycle, ledger: Ledger, metrics: Metrics) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    gate = Gate(settings.limits.max_concurrency, settings.limits.http_timeout)

    def stop() -> None:
        if asked.is_set():
            gate.cut()  # asked twice: at once
        asked.set()

    def asked_by_signal(*_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so has what could be stopped
            loop.call_soon_threadsafe(stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked_by_signal)  # not the loop's own handlers: with those, a signal at the loop's end kills the process
    if lifecycle.asked_to_leave:
        stop()
    port = settings.port or DEFAULT_PORT
    async with MeteredProxy(engine, settings.limits, metrics) as proxy, contextlib.AsyncExitStack() as ports:
        await ports.enter_async_context(listening(Face(proxy, settings, lifecycle, metrics, gate).application(), "PORT", port))
        if settings.health_port not in {0, port}:
            beside = application()
            add_routes(beside, settings, lifecycle, metrics)
            await ports.enter_async_context(listening(beside, "PORT_HEALTH", settings.health_port))
        log.info("answering on port %d", port)
        died = asyncio.ensure_future(proxy.engine_died())
        try:
            await _until_over(engine, ledger, {asyncio.ensure_future(asked.wait()), died})
        finally:
            lifecycle.report(Event.TERM)
            await gate.drain(_LAST_WORDS if died.done() else settings.limits.http_drain)


async def _until_over(engine: SupervisedEngine, ledger: Ledger, events: set[asyncio.Future[Any]]) -> None:
    ready = asyncio.ensure_future(asyncio.to_thread(engine.wait_ready))
    ready.add_done_callback(_note_failure)
    await asyncio.wait({*events, ready}, return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        ready.result()
        ledger.close()
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)


def _note_failure(ready: asyncio.Future[None]) -> None:
    """Take the failure of an engine that was asked to stop before it was ready: nobody waits for it, and asyncio would complain."""
    if not ready.cancelled():
        ready.exception()
