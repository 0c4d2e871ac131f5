"""The HTTP face: the engine's routes on a port of the worker's own, for load-balancing endpoints and local use.

`/ping` is RunPod's health check: 204 while the engine loads, 200 when it is ready, 503 when it is dead. `/v1/...` and `/openai/v1/...` go
through the same jobs and the same proxy as the queue's, with HTTP statuses and real SSE.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from typing import Any

from aiohttp import web

from handler.engine import SupervisedEngine
from handler.errors import InvalidJob, InvalidSettings, WorkerError, for_log, to_openai
from handler.job import Request, read_job
from handler.ledger import Ledger
from handler.lifecycle import Event, Lifecycle, State
from handler.proxy import Proxy
from handler.settings import Settings

__all__ = ["serve"]

log = logging.getLogger(__name__)

MAX_BODY = 30 * 1024 * 1024
"""RunPod's own limit for a request to a load-balancing endpoint."""

DEFAULT_PORT = 80
"""What RunPod takes for the port of a load-balancing endpoint that names none."""

_PING = {State.STARTING: 204, State.READY: 200}


class Face:
    """The routes, on the loop that enters the proxy."""

    def __init__(self, proxy: Proxy, settings: Settings, lifecycle: Lifecycle) -> None:
        self._proxy, self._settings, self._lifecycle = proxy, settings, lifecycle

    def application(self) -> web.Application:
        """Return the routes as an application."""
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_get("/ping", self.ping)
        for prefix in ("/openai/v1", "/v1"):
            application.router.add_route("*", prefix + "/{route:.*}", self.relay)
        application.router.add_route("*", "/{route:.*}", self.nowhere)
        return application

    async def ping(self, _: web.Request) -> web.Response:
        """Tell RunPod whether requests may come."""
        return web.Response(status=_PING.get(self._lifecycle.state, 503))

    async def nowhere(self, http: web.Request) -> web.Response:
        """Answer what has no route, in OpenAI's shape."""
        message = f"{http.path}: no such route, expected /ping, /v1/... or /openai/v1/..."
        status, body = to_openai(InvalidJob(message, code="not_found", status=404))
        return web.json_response(body, status=status)

    async def relay(self, http: web.Request) -> web.StreamResponse:
        """Answer one request as the engine does."""
        response: web.StreamResponse | None = None
        try:
            async with contextlib.aclosing(self._proxy.relay(await self._read(http))) as pieces:
                async for piece in pieces:
                    if not isinstance(piece, str):
                        return web.json_response(piece)
                    if response is None:
                        response = web.StreamResponse(
                            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
                        )
                        await response.prepare(http)
                    await response.write(piece.encode())
        except ConnectionResetError:  # the client has left; closing the pieces told the engine
            pass
        except Exception as error:  # whatever happens, the client gets an error object
            if not isinstance(error, WorkerError):
                log.exception("%s %s", http.method, http.path)
            status, body = to_openai(error)
            log.warning("%s %s failed: %s", http.method, http.path, for_log(error))
            if response is None:
                return web.json_response(body, status=status)
            await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        return response or web.Response()

    async def _read(self, http: web.Request) -> Request:
        if self._lifecycle.state is not State.READY:
            raise InvalidJob(f"the worker is {self._lifecycle.state.value}", status=503, code="not_ready")
        text = await http.read() if http.can_read_body else b""
        try:
            body = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError) as error:
            raise InvalidJob(f"body: expected JSON ({error})", param="body") from None
        route: dict[str, Any] = {"openai_route": http.path_qs, "openai_input": body}
        if http.method == "POST" and not body:
            raise InvalidJob("body: missing or empty, expected a JSON object", param="body")
        if http.method == "GET":
            route = {"route": http.path_qs.removeprefix("/openai"), "method": "GET"}
        return read_job(route, self._settings.batch)


def serve(engine: SupervisedEngine, settings: Settings, lifecycle: Lifecycle, ledger: Ledger) -> None:
    """Answer HTTP on PORT of every interface until SIGTERM or SIGINT, or until the engine dies.

    Raises:
        EngineFailedToStart: when the engine never became ready.
        InvalidSettings: when the port is taken.
    """
    asyncio.run(_serve(engine, settings, lifecycle, ledger))


async def _serve(engine: SupervisedEngine, settings: Settings, lifecycle: Lifecycle, ledger: Ledger) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    async with Proxy(engine, settings.limits) as proxy:
        runner = web.AppRunner(
            Face(proxy, settings, lifecycle).application(), handler_cancellation=True, shutdown_timeout=settings.engine.stop_timeout
        )
        await runner.setup()
        try:
            await _listen(runner, settings.port or DEFAULT_PORT)
            log.info("answering on port %d", settings.port or DEFAULT_PORT)
            ready = asyncio.ensure_future(asyncio.to_thread(engine.wait_ready))
            ready.add_done_callback(_note_failure)
            events = {asyncio.ensure_future(asked.wait()), asyncio.ensure_future(proxy.engine_died())}
            await asyncio.wait({*events, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                ledger.close()
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lifecycle.report(Event.TERM)
            await runner.cleanup()


def _note_failure(ready: asyncio.Future[None]) -> None:
    """Take the failure of an engine that was asked to stop before it was ready: nobody waits for it, and asyncio would complain."""
    if not ready.cancelled():
        ready.exception()


async def _listen(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104  # the platform reaches it from outside
    except OSError as error:
        raise InvalidSettings([f"PORT: got {port}, which is taken or not allowed ({os.strerror(error.errno or 0)})"]) from None
