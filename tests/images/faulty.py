"""A proxy before a registry that breaks what passes, counts what is sent, and may ask for an account as public registries do."""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["FaultyRegistry", "RegistryFault"]

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(slots=True, kw_only=True)
class RegistryFault:
    """What befalls the next `times` requests whose method is of this pattern, and in whose path that pattern is found."""

    method: str
    path: str
    times: int = 1
    status: int | None = None
    """Answer with this status and do not pass it on."""
    drop_after: int | None = None
    """Close the connection after so many bytes of the request's body."""
    lie: bytes | None = None
    """Answer with this body instead."""
    stall: threading.Event | None = None
    """Set this and wait for `go_on` before the body is passed on."""
    go_on: threading.Event = field(default_factory=threading.Event)


class FaultyRegistry:
    """The proxy while it is entered; with an `account` (name, password) it wants a token, which that account gets."""

    def __init__(self, upstream: str, *faults: RegistryFault, account: tuple[str, str] | None = None) -> None:
        self.upstream, self.faults, self.account = upstream, list(faults), account
        self.uploaded: dict[str, int] = {}
        """Bytes of the bodies of uploads, by path without query."""
        self.tokens = 0
        """How often a token was given."""
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            fault.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def sent(self) -> int:
        """Bytes of all uploads' bodies."""
        return sum(self.uploaded.values())

    def fault(self, method: str, path: str) -> RegistryFault | None:
        """Return the fault that is due for a request, if one is."""
        with self.lock:
            for fault in self.faults:
                if fault.times and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultyRegistry

    def handle_error(self, *_: object) -> None:
        """Say nothing: connections are cut on purpose."""


class _Dropped(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815  # the names that http.server asks for

    def _handle(self) -> None:
        proxy = self.server.proxy
        if self.path.startswith("/token"):
            self._give_token()
            return
        if proxy.account and self.headers.get("Authorization") != "Bearer good":
            for _ in self._body(None):
                pass
            self._reply(401, b"{}", [("WWW-Authenticate", f'Bearer realm="http://{proxy.address}/token",service="proxy",scope="all"')])
            return
        fault = proxy.fault(self.command, self.path)
        try:
            if fault and fault.status:
                for _ in self._body(None):
                    pass
                self._reply(fault.status, b"broken on purpose", [])
                return
            if fault and fault.stall:
                fault.stall.set()
                fault.go_on.wait(60)
            self._pass_on(fault)
        except _Dropped:
            self.close_connection = True
            self.connection.close()

    def _give_token(self) -> None:
        proxy = self.server.proxy
        assert proxy.account
        expected = "Basic " + base64.b64encode(":".join(proxy.account).encode()).decode()
        if self.headers.get("Authorization") != expected:
            self._reply(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}', [])
            return
        proxy.tokens += 1
        self._reply(200, json.dumps({"token": "good"}).encode(), [("Content-Type", "application/json")])

    def _pass_on(self, fault: RegistryFault | None) -> None:
        names = {name for name in self.headers if name.lower() not in {*_HOP, "authorization"}}
        headers = {name: ", ".join(self.headers.get_all(name, [])) for name in names}
        has_body = self.command in ("PATCH", "PUT", "POST")
        if has_body:
            headers["Transfer-Encoding"] = "chunked"
        with closing(http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)) as upstream:
            upstream.request(
                self.command, self.path, body=self._body(fault) if has_body else None, headers=headers, encode_chunked=has_body
            )
            with upstream.getresponse() as answer:
                body = answer.read()
        if fault and fault.lie is not None:
            body = fault.lie
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        self._reply(answer.status, body, kept, answer.headers.get("Content-Length") if self.command == "HEAD" else None)

    def _body(self, fault: RegistryFault | None) -> Iterator[bytes]:
        """Yield the request's body, counted; it is cut where the fault says so."""
        proxy, count = self.server.proxy, 0
        path = self.path.partition("?")[0]
        for piece in self._pieces():
            count += len(piece)
            with proxy.lock:
                proxy.uploaded[path] = proxy.uploaded.get(path, 0) + len(piece)
            if fault and fault.drop_after is not None and count >= fault.drop_after:
                raise _Dropped
            yield piece

    def _pieces(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while length := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                raise _Dropped
            left -= len(piece)
            yield piece

    def _reply(self, status: int, body: bytes, headers: list[tuple[str, str]], length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
