"""Asking over HTTP: where a secret may go, and what an answer that breaks off is (images/http_client.py)."""

from __future__ import annotations

import gc
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from images import http_client
from images.build_errors import Unreachable
from images.digest import Digest
from images.http_client import ask
from images.registry import Reference, Repository

pytestmark = pytest.mark.timeout(60)

SECRET = {"Authorization": "Bearer hf_secret"}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(http_client, "PAUSES", (0.0, 0.0, 0.0))


class Server(ThreadingHTTPServer):
    """Answers each path with its status, headers and body, and notes who asked for it how."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.elsewhere = f"http://localhost:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        status, headers, body = self.server.answers[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_HEAD = do_GET  # noqa: N815  # the name that http.server asks for

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def refusing_proxy() -> Iterator[tuple[str, list[str]]]:
    """Give the address of a proxy that ends every connection, and the heads of the requests that it got."""
    heads: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as lines:
                    head = b""
                    while (line := lines.readline()) not in (b"\r\n", b""):
                        head += line
                    if head == b"":
                        return
                    heads.append(head.decode())
                    connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", heads
        finally:
            socket.create_connection(listening.getsockname()).close()
            thread.join()


def test_behind_a_proxy_a_second_try_is_as_secret_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib rewrites a request on its way through a proxy; sent again, it went out in clear text, with the secret."""
    with refusing_proxy() as (proxy, heads):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(Unreachable, match=r"https://hub\.example/x"):
            ask("https://hub.example/x", secret=SECRET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # Python 3.10 leaves the answer of a proxy that refuses open
            gc.collect()
    assert [head.split("\r\n")[0].rpartition(" ")[0] for head in heads] == ["CONNECT hub.example:443"] * 4
    assert "hf_secret" not in "".join(heads)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_redirect_keeps_the_method_and_the_secret_only_for_the_same_server(method: str) -> None:
    with served() as server:
        server.answers["/old"] = (307, {"Location": "/new"}, b"")
        server.answers["/new"] = (302, {"Location": f"{server.elsewhere}/cdn"}, b"")
        server.answers["/cdn"] = (307, {"Location": f"{server.url}/back"}, b"")
        server.answers["/back"] = (200, {}, b"there")
        ask(f"{server.url}/old", method=method, secret=SECRET).close()
        known = SECRET["Authorization"]
        assert server.asked == [(method, "/old", known), (method, "/new", known), (method, "/cdn", None), (method, "/back", None)]


@pytest.mark.parametrize("length", ["1000", "4"])
def test_a_manifest_that_breaks_off_is_an_error_of_the_registry(length: str) -> None:
    kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json", "Content-Length": length}
    with served() as server:
        server.answers["/v2/a/b/manifests/x"] = (200, kind, b"{}")
        server.answers[f"/v2/a/b/blobs/{Digest.of(b'{}')}"] = (200, kind, b"{}")
        repository = Repository(Reference.parse(f"{server.url.removeprefix('http://')}/a/b"))
        with pytest.raises(Unreachable, match=f"manifest x: the answer broke off after 2 of {length} bytes; run the command again"):
            repository.manifest("x")
        with pytest.raises(Unreachable, match="broke off"):
            repository.small_blob(Digest.of(b"{}"))


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{}"])
def test_what_gives_no_token_is_named(body: bytes) -> None:
    with served() as server:
        server.answers["/v2/a/b/manifests/x"] = (401, {"WWW-Authenticate": f'Bearer realm="{server.url}/token"'}, b"")
        server.answers["/token"] = (200, {}, body)
        with pytest.raises(Unreachable, match="/token: the server answered no token"):
            Repository(Reference.parse(f"{server.url.removeprefix('http://')}/a/b")).manifest("x")
