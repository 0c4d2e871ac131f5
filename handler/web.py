"""The HTTP face: the engine's routes on a port of the worker's own, for load-balancing endpoints and local use; health and metrics.

`/v1/...` and `/openai/v1/...` go through the same jobs and the same proxy as the queue's, with HTTP statuses and real SSE. A stream goes
from the engine's connection to the client's in one call; a client that reads slowly holds the engine back, one that leaves ends the
engine's work. A request that comes too early, too often or with too much gets an error in OpenAI's shape, with Retry-After where the same
request may be sent again. On SIGTERM no request is taken any more, the health check says so, and those that run get HTTP_DRAIN_TIMEOUT.

The health check answers as RunPod's load balancer reads it: 204 while the engine loads, 200 when it is ready, 503 when it is dead or the
worker leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Collection
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from handler.engine import Engine
from handler.errors import InvalidJob, InvalidSettings, Unavailable, WorkerError, for_log, last_frames, to_openai
from handler.gate import Gate
from handler.job import ROUTES, Request, methods_of, read_job
from handler.json_text import check_content_type, read_object
from handler.lifecycle import Event, Lifecycle, State
from handler.metrics import LEFT, Metrics
from handler.observer import Observation
from handler.proxy import Proxy, Stream
from handler.settings import Settings
from handler.shutdown import Shutdown
from handler.timeouts import timeout
from handler.translation.exchange import error_of

__all__ = ["Routes", "application", "listening", "serve", "watched_beside"]

log = logging.getLogger(__name__)

MAX_BODY = 30 * 1024 * 1024
"""RunPod's own limit for a request to a load-balancing endpoint."""

BODY_TIMEOUT = 60.0
"""Seconds for a whole body to arrive: 30 MB at 4 Mbit/s."""

DEFAULT_PORT = 80
"""What RunPod takes for the port of a load-balancing endpoint that names none."""

_MAX_UNREAD = 256 * 1024
"""Bytes that a client has not read, above which the engine's connection is paused."""

_IDLE = 75.0
"""Seconds that a connection may be open without a request on it, or with headers that do not end: more than proxies keep theirs."""

_LAST_WORDS = 1.0
"""Seconds that a client which reads nothing has to take the last frame of a stream that failed, and all get when the engine died."""

_STATUS = {State.STARTING: 204, State.READY: 200}
_NOT_READY = {
    State.STARTING: ("not_ready", "the worker is loading the model", 5),
    State.DEAD: ("engine_died", "the engine of this worker has died; another worker can answer", 1),
}
_LEAVING = ("shutting_down", "the worker is shutting down; another one can answer", 1)


async def serve(engine: Engine, settings: Settings, lifecycle: Lifecycle, shutdown: Shutdown, metrics: Metrics) -> None:
    """Answer HTTP on PORT of every interface until the worker is asked to stop, or until the engine dies.

    Raises:
        EngineFailedToStart: when the engine never became ready.
        InvalidSettings: when a port is taken.
    """
    gate = Gate(settings.limits.max_concurrency, settings.limits.http_timeout)
    shutdown.when_asked_again(gate.cut)
    port = settings.port or DEFAULT_PORT
    async with Proxy(engine, settings.limits) as proxy, contextlib.AsyncExitStack() as ports:
        routes = Routes(proxy, settings, lifecycle, metrics, gate)
        await ports.enter_async_context(listening(routes.application(), "PORT", port))
        if settings.health_port not in {0, port}:
            await ports.enter_async_context(listening(_health(settings, lifecycle, metrics), "PORT_HEALTH", settings.health_port))
        log.info("answering on port %d", port)
        died = asyncio.ensure_future(proxy.engine_died())
        asked = asyncio.ensure_future(shutdown.requested.wait())
        ready = asyncio.ensure_future(engine.ready())
        try:
            await asyncio.wait({asked, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                lifecycle.cold_start.show()
                await asyncio.wait({asked, died}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lifecycle.report(Event.TERM)
            await gate.drain(_LAST_WORDS if died.done() else settings.limits.http_drain)
            for task in (asked, ready, died):
                task.cancel()
            await asyncio.gather(asked, ready, died, return_exceptions=True)


@contextlib.asynccontextmanager
async def watched_beside(settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> AsyncIterator[None]:
    """Answer health and metrics on PORT_HEALTH, or PORT, while the block runs.

    A port that cannot be had is only logged: a worker that takes jobs is worth more than its figures.
    """
    variable, port = ("PORT_HEALTH", settings.health_port) if settings.health_port else ("PORT", settings.port)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(listening(_health(settings, lifecycle, metrics), variable, port))
        except InvalidSettings as error:
            log.warning("%s; /metrics is not offered", error)
        yield


@contextlib.asynccontextmanager
async def listening(app: web.Application, variable: str, port: int) -> AsyncIterator[None]:
    """Answer on a port of every interface while the block runs; `variable` is who named the port.

    Raises:
        InvalidSettings: when the port is taken or not allowed.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_server_log,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=1,
        keepalive_timeout=_IDLE,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104  # the platform reaches it from outside
        except OSError as error:
            raise InvalidSettings([f"{variable}: got {port}, which is taken or not allowed ({os.strerror(error.errno or 0)})"]) from None
        yield
    finally:
        await runner.cleanup()


def application(max_body: int = 0) -> web.Application:
    """Return an application without routes, whose errors are in OpenAI's shape."""
    return web.Application(middlewares=[_in_openais_shape], client_max_size=max_body)


def _health(settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> web.Application:
    app = application()
    _add_health(app, settings, lifecycle, metrics)
    return app


def _add_health(to: web.Application, settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> None:
    """Add the health check and /metrics."""

    async def ping(_: web.Request) -> web.Response:
        return web.Response(status=_STATUS.get(lifecycle.state, 503))

    async def show(http: web.Request) -> web.Response:
        text, content_type = metrics.shown(http.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    for path in sorted({"/ping", settings.health_path}):
        to.router.add_get(path, ping)
    to.router.add_get("/metrics", show)


class Routes:
    """The engine's routes, on the loop that enters the proxy."""

    def __init__(self, proxy: Proxy, settings: Settings, lifecycle: Lifecycle, metrics: Metrics, gate: Gate) -> None:
        self._proxy, self._settings, self._lifecycle, self._metrics, self._gate = proxy, settings, lifecycle, metrics, gate

    def application(self) -> web.Application:
        """Return the routes as an application."""
        app = application(MAX_BODY)
        _add_health(app, self._settings, self._lifecycle, self._metrics)
        for prefix in ("/openai/v1", "/v1"):
            app.router.add_route("*", prefix + "/{route:.*}", self.relay)
        return app

    async def relay(self, http: web.Request) -> web.StreamResponse:
        """Answer one request as the engine does."""
        answer = _Response(http)
        with self._metrics.request() as seen:
            seen.path = "/" + http.path.removeprefix("/openai").strip("/")
            allowed = _allowed(seen.path)
            try:
                if http.method == "OPTIONS" and allowed:
                    return web.Response(status=204, headers={"Allow": ", ".join(allowed)})
                self._check(http, seen.path, allowed)
                with self._gate.admitted():
                    await self._answer(http, answer, seen)
            except ConnectionResetError:  # the client has left; leaving the stream told the engine
                seen.status = LEFT
            except Exception as error:  # whatever happens, the client gets an error object
                if not isinstance(error, WorkerError):
                    log.exception("%s %s", http.method, http.rel_url.raw_path[:200])
                log.warning("%s %s failed: %s", http.method, http.rel_url.raw_path[:200], for_log(error))
                seen.status = await answer.fail(error, seen.path, allowed)
        if self._lifecycle.state is not State.READY:
            answer.response.force_close()
        return answer.response

    def _check(self, http: web.Request, path: str, allowed: tuple[str, ...]) -> None:
        """Refuse what needs no look at the body."""
        if not allowed:
            message = f"{path[:200]}: no such route, expected one of {', '.join(path for path in ROUTES if _allowed(path))}"
            raise InvalidJob(message, param="path", code="unknown_route", status=404)
        if http.method not in allowed:
            raise _method_not_allowed(http.method, path, allowed)
        if self._lifecycle.state is not State.READY:
            code, message, seconds = _NOT_READY.get(self._lifecycle.state, _LEAVING)
            raise Unavailable(message, code=code, retry_after=seconds)

    async def _answer(self, http: web.Request, answer: _Response, seen: Observation) -> None:
        request = await self._read(http)
        if request.stream:
            async with self._proxy.stream(request, seen) as stream:
                await answer.relay(stream)
        else:
            await answer.whole(await self._proxy.whole(request, seen))

    async def _read(self, http: web.Request) -> Request:
        if http.method in {"GET", "HEAD"}:
            return read_job({"route": http.path_qs.removeprefix("/openai"), "method": "GET"}, self._settings.batch)
        check_content_type(http.headers.get("Content-Type"))
        if (http.content_length or 0) > MAX_BODY:
            raise _too_large()
        try:
            async with timeout(BODY_TIMEOUT):
                body = await http.read()
        except asyncio.TimeoutError:
            raise Unavailable(f"body: did not arrive within {BODY_TIMEOUT:g} s", status=408, code="body_timeout") from None
        except web.HTTPRequestEntityTooLarge:
            raise _too_large() from None
        except web.RequestPayloadError as error:
            raise InvalidJob(f"body: cannot be read ({error})", param="body") from None
        return read_job({"openai_route": http.path_qs, "openai_input": read_object(body)}, self._settings.batch)


class _Response:
    """What one client gets, as it goes out."""

    def __init__(self, http: web.Request) -> None:
        self._http = http
        self.response: web.StreamResponse = web.Response()

    async def whole(self, value: Any) -> None:
        """Send a whole answer."""
        self.response = web.Response(text=value) if isinstance(value, str) else web.json_response(value)
        await self._end()

    async def relay(self, stream: Stream) -> None:
        """Send a stream to its end; what breaks it before its first frame is raised while the status is still open."""
        sink = _Sink(stream)
        stream.pour(sink.put, sink.close)
        await sink.changed()
        sink.raise_error()
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"})
        writer = await self.response.prepare(self._http)
        assert writer is not None  # noqa: S101  # for the type checker: it is None for an answer that was sent before
        sink.open(self._http)
        while not sink.ended:
            await sink.changed()
            if sink.full:
                await writer.drain()
                sink.drained()
        sink.raise_error()
        await self._end()

    async def _end(self) -> None:
        await self.response.prepare(self._http)
        await self.response.write_eof()

    async def fail(self, error: Exception, path: str, allowed: tuple[str, ...]) -> int:
        """Send an error of a route instead of an answer, or at the end of one that has begun; return its status."""
        status, _ = to_openai(error)
        if not self.response.prepared:
            self.response = _error_response(error, path, allowed if status == 405 else ())
            return status
        try:
            async with timeout(_LAST_WORDS):
                await self.response.write(last_frames(error))
                await self.response.write_eof()
        except (asyncio.TimeoutError, ConnectionResetError):
            if self._http.transport is not None:
                self._http.transport.abort()
        return status


class _Sink:
    """Writes runs of frames to a client's connection in the call that received them from the engine's."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._kept: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._chunked = True
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._changed = False
        self.ended = self.full = False
        """Whether the stream is over; whether the client has too much unread, so that the engine is held."""

    def put(self, run: bytes) -> None:
        """Take the next frames."""
        if self._transport is None:
            self._kept.append(run)
            self._tell()
            return
        if self._transport.is_closing():
            raise ConnectionResetError("the client has left")
        self._transport.write(b"%x\r\n%b\r\n" % (len(run), run) if self._chunked else run)
        if not self.full and self._transport.get_write_buffer_size() > _MAX_UNREAD:
            self.full = True
            self._stream.pause()
            self._tell()

    def close(self, error: BaseException | None) -> None:
        """Take the end of the stream, with what broke it."""
        self.ended, self._error = True, error
        self._tell()

    def open(self, http: web.Request) -> None:
        """Write from now on, what was kept first; the head has been sent."""
        if http.transport is None:
            raise ConnectionResetError("the client has left")
        self._transport, self._chunked = http.transport, http.version >= HttpVersion11
        kept, self._kept = b"".join(self._kept), []
        if kept:
            self.put(kept)

    def drained(self) -> None:
        """Go on: the client has read."""
        self.full = False
        self._stream.resume()

    def raise_error(self) -> None:
        """Raise what broke the stream, unless frames that came before are still to be sent."""
        if self._error and not self._kept:
            raise self._error

    async def changed(self) -> None:
        """Wait for the first frames, for too much that is unread, or for the end."""
        if not self._changed:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._changed = False

    def _tell(self) -> None:
        self._changed = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


def _says_nothing_of_clients(record: logging.LogRecord) -> bool:
    """Leave out what the server has to say of bytes that are no HTTP, for it quotes them, and a prompt or a key may be among them."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        log.info("refused what is no HTTP request (%s)", type(error).__name__)
    return not isinstance(error, HttpProcessingError)


_server_log = logging.getLogger(f"{__name__}.server")
_server_log.addFilter(_says_nothing_of_clients)


def _error_response(error: BaseException, path: str = "", allow: Collection[str] = ()) -> web.Response:
    """Return an error of a route as an answer of its own; `allow` are the methods that a 405 names."""
    status, body = error_of(path, error)
    headers = {"Allow": ", ".join(allow)} if allow else {}
    if isinstance(error, Unavailable) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return web.json_response(body, status=status, headers=headers)


@web.middleware
async def _in_openais_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as refusal:
        allowed = sorted(refusal.allowed_methods)
        return _error_response(_method_not_allowed(request.method, request.path, allowed), allow=allowed)
    except web.HTTPNotFound:
        message = f"{request.path[:200]}: no such route"
        return _error_response(InvalidJob(message, param="path", code="unknown_route", status=404))


def _method_not_allowed(method: str, path: str, allowed: Collection[str]) -> WorkerError:
    message = f"method: got {method[:40]}, expected {' or '.join(allowed)} for {path[:200]}"
    return InvalidJob(message, param="method", code="method_not_allowed", status=405)


def _allowed(path: str) -> tuple[str, ...]:
    """Return the methods that a route takes here; none for one that is not there."""
    methods = methods_of(path) if path.startswith("/v1/") else ()
    return methods and (*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS")


def _too_large() -> InvalidJob:
    return InvalidJob(f"body: expected at most {MAX_BODY} bytes", param="body", code="request_too_large", status=413)
