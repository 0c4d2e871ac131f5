"""One application: the public API behind its key, the job API for the worker, and the page.

A page of another site may have a browser send requests here. So `Host` must be this machine's (a foreign name may be made to resolve to it,
DNS rebinding), a request must not be sent by another site's page (`Origin`, `Sec-Fetch-Site`), and a body must be JSON by its own header.

Unverified, since undocumented: the body of a 401 and of an unknown endpoint or path (here {"error": TEXT}, on the OpenAI route its error
object). Both `Authorization: KEY` and `Authorization: Bearer KEY` are documented.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from tools.serve.job_server import MAX_BODY_BYTES
from tools.serve.job_table import JobTable, RequestRefused
from tools.serve.openai_route import OpenAIRoute, error_object, error_response
from tools.serve.operations import Operations

__all__ = ["gateway"]

_PAGE = Path(__file__).resolve().parent / "page"
_FILES = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
_PAGE_HEADERS = {
    # The page needs nothing from elsewhere, and text of a model can make it fetch nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_WORKER_ROUTES = frozenset({"job-take", "job-take-batch", "job-stop", "job-done", "job-stream", "ping"})
_OWN_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def gateway(table: JobTable, *, api_key: str, model: str) -> web.Application:
    """Return the application for one endpoint; an empty `api_key` admits every client, `model` is what the page asks for."""
    endpoint = table.jobs.endpoint

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        _, root, *rest = request.path.split("/")
        public = root == "v2" and (len(rest) < 2 or rest[1] not in _WORKER_ROUTES)
        try:
            _check_host(request)
            if root == "v2":
                _check_origin(request)
            if public:
                _check_body(request)
                _check_endpoint("".join(rest[:1]), endpoint)
                _check_key(request, api_key)
            return await handler(request)
        except RequestRefused as error:
            refusal = error
        except web.HTTPException as error:
            if error.status < 400 or (root == "v2" and not public):
                raise
            what = {404: "no such route", 405: "wrong method"}.get(error.status, error.reason)
            refusal = RequestRefused(error.status, f"{request.method} {request.path}: {what}")
        if rest[1:2] == ["openai"]:
            return error_response(refusal.status, error_object(refusal))
        return web.json_response({"error": str(refusal)}, status=refusal.status)

    application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[guard])
    application.add_routes(table.jobs.routes())
    application.add_routes(Operations(table).routes())
    application.add_routes(OpenAIRoute(table).routes())
    application.add_routes([web.get(path, _file(*file)) for path, file in _FILES.items()])
    about = {"endpoint": endpoint, "model": model, "key": bool(api_key)}
    application.add_routes([web.get("/about.json", _about(about))])
    return application


def _check_host(request: web.Request) -> None:
    host = request.headers.get("Host", "127.0.0.1")
    if host.rpartition(":")[0 if re.search(r":\d*$", host) else 2] not in _OWN_NAMES:
        raise RequestRefused(403, f"Host: got {host!r}, expected 127.0.0.1 or localhost, where this server listens")


def _check_origin(request: web.Request) -> None:
    """Refuse what a browser says to come from a page of another site; programs send neither header."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    own = f"http://{request.headers.get('Host', '')}"
    if (origin is not None and origin != own) or site not in ("none", "same-origin"):
        raise RequestRefused(403, f"Origin: got {origin or site!r}, expected {own}: pages of other sites may not use this server")


def _check_body(request: web.Request) -> None:
    if request.can_read_body and request.content_type != "application/json":
        raise RequestRefused(415, f"Content-Type: got {request.headers.get('Content-Type', '')!r}, expected application/json")


def _check_endpoint(asked: str, endpoint: str) -> None:
    if asked != endpoint:
        raise RequestRefused(404, f"endpoint {asked or '(none)'}: not found; this one is {endpoint}")


def _check_key(request: web.Request, api_key: str) -> None:
    given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    if api_key and not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), api_key.encode()):
        problem = "wrong key" if given else "no key"
        raise RequestRefused(401, f"Authorization: {problem}, expected `Bearer KEY` with the key that `ci/just serve` was started with")


def _file(name: str, content_type: str) -> Handler:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=(_PAGE / name).read_bytes(), content_type=content_type, charset="utf-8", headers=_PAGE_HEADERS)

    return serve


def _about(value: dict[str, object]) -> Handler:
    async def serve(_: web.Request) -> web.Response:
        return web.json_response(value, headers=_PAGE_HEADERS)

    return serve
