"""The routes that tell how the worker is: its health check and its metrics, on the HTTP face's port or one of their own.

The check answers as RunPod's load balancer reads it: 204 while the engine loads, 200 when it is ready, 503 when it is dead or the worker
leaves. Every route that is not there, and every wrong method, is answered in OpenAI's shape here too.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Collection, Iterator

import anyio.from_thread
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from handler.errors import InvalidJob, InvalidSettings, Unavailable, WorkerError, to_openai
from handler.lifecycle import Lifecycle, State
from handler.metrics import Metrics
from handler.settings import Settings

__all__ = ["add_routes", "application", "error_response", "listening", "method_not_allowed", "watched_beside"]

log = logging.getLogger(__name__)

_STATUS = {State.STARTING: 204, State.READY: 200}

_IDLE = 75.0
"""Seconds that a connection may be open without a request on it, or with headers that do not end: more than proxies keep theirs."""


def _says_nothing_of_clients(record: logging.LogRecord) -> bool:
    """Leave out what the server has to say of bytes that are no HTTP, for it quotes them, and a prompt or a key may be among them."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        log.info("refused what is no HTTP request (%s)", type(error).__name__)
    return not isinstance(error, HttpProcessingError)


_server_log = logging.getLogger(f"{__name__}.server")
_server_log.addFilter(_says_nothing_of_clients)


def application(max_body: int = 0) -> web.Application:
    """Return an application without routes, whose errors are in OpenAI's shape."""
    return web.Application(middlewares=[_in_openais_shape], client_max_size=max_body)


def add_routes(to: web.Application, settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> None:
    """Add the health check and /metrics."""

    async def ping(_: web.Request) -> web.Response:
        return web.Response(status=_STATUS.get(lifecycle.state, 503))

    async def show(http: web.Request) -> web.Response:
        text, content_type = metrics.shown(http.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    for path in sorted({"/ping", settings.health_path}):
        to.router.add_get(path, ping)
    to.router.add_get("/metrics", show)


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


@contextlib.contextmanager
def watched_beside(settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> Iterator[None]:
    """Answer health and metrics in a thread of its own while the block runs, if a port is named: PORT_HEALTH, or PORT.

    A port that cannot be had is only logged: a worker that takes jobs is worth more than its figures.
    """
    variable, port = ("PORT_HEALTH", settings.health_port) if settings.health_port else ("PORT", settings.port)
    if not port:
        yield
        return
    app = application()
    add_routes(app, settings, lifecycle, metrics)
    with anyio.from_thread.start_blocking_portal() as portal, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(portal.wrap_async_context_manager(listening(app, variable, port)))
        except InvalidSettings as error:
            log.warning("%s; /metrics is not offered", error)
        yield


def error_response(error: BaseException, allow: Collection[str] = ()) -> web.Response:
    """Return an error as an answer of its own; `allow` are the methods that a 405 names."""
    status, body = to_openai(error)
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
        return error_response(method_not_allowed(request.method, request.path, allowed), allowed)
    except web.HTTPNotFound:
        message = f"{request.path[:200]}: no such route"
        return error_response(InvalidJob(message, param="path", code="unknown_route", status=404))


def method_not_allowed(method: str, path: str, allowed: Collection[str]) -> WorkerError:
    """Return the error for a method that a route does not take."""
    message = f"method: got {method[:40]}, expected {' or '.join(allowed)} for {path[:200]}"
    return InvalidJob(message, param="method", code="method_not_allowed", status=405)
