"""HTTP requests: where a secret may go, how a broken body continues, and what an error says."""

from __future__ import annotations

import gc
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import http_client
from checkpoint.http_client import HttpError, NoAnswer, StatusError, ask, is_loopback, read_body
from checkpoint.unavailable import masked
from tests.twins.scripted_server import served

SECRET = {"Authorization": "Bearer hf_secret"}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(http_client, "PAUSES", (0.0, 0.0, 0.0))


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
        with pytest.raises(NoAnswer, match=r"https://hub\.example/x"):
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
def test_a_body_that_breaks_off_is_an_error(length: str) -> None:
    with served() as server:
        server.answers["/x"] = (200, {"Content-Length": length}, b"{}")
        with pytest.raises(HttpError, match=f"the answer: the answer broke off after 2 of {length} bytes; run the command again"):
            read_body(ask(f"{server.url}/x"), 1000, "the answer")


def test_a_body_longer_than_the_limit_is_cut() -> None:
    with served() as server:
        server.answers["/x"] = (200, {"Content-Length": "10"}, b"0123456789")
        assert read_body(ask(f"{server.url}/x"), 4, "the answer") == b"01234"


def test_an_error_of_the_server_has_its_words_and_no_query() -> None:
    with served() as server:
        server.answers["/x"] = (403, {"X-Error-Code": "GatedRepo"}, b"not  for\nyou")
        with pytest.raises(StatusError, match=r"/x: the server answered 403 Forbidden \(not for you\)$") as raised:
            ask(f"{server.url}/x?signature=hidden")
    assert (raised.value.status, raised.value.headers["X-Error-Code"]) == (403, "GatedRepo")
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "/x", "http://", "http://a:b@127.0.0.1/", "https://[x", "http://127.0.0.1:port/"])
def test_only_plain_addresses_of_the_web_are_asked(url: str) -> None:
    with pytest.raises(HttpError, match=r"expected an address that begins with https://") as raised:
        ask(url)
    assert "a:b" not in str(raised.value)


@pytest.mark.parametrize("secret", ["hf_hidden\nhf_other", "hf_hidden…"])
def test_a_secret_that_no_header_can_have_is_refused_without_being_quoted(secret: str) -> None:
    with pytest.raises(HttpError, match=r"http://127\.0\.0\.1:9/x: the token or password for it is not printable ASCII") as raised:
        ask("http://127.0.0.1:9/x", secret={"Authorization": secret})
    assert "hf_hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:5000/v2/", True),
        ("//127.8.9.1", True),
        ("http://localhost", True),
        ("http://[::1]:80/", True),
        ("http://127.evil.example/", False),
        ("http://127.0.0.1.evil.example/", False),
        ("http://localhost.evil.example/", False),
        ("http://localhost:x@evil.example/", False),
        ("http://127.0.0.1@evil.example/", False),
        ("http://2130706433/", False),
        ("https://hub.example/127.0.0.1", False),
    ],
)
def test_loopback_is_an_address_of_this_machine_and_no_name_that_looks_like_one(url: str, loopback: bool) -> None:
    assert is_loopback(url) == loopback


WORDS = st.text("abc:/@?#&%=.-", max_size=8)


@given(user=WORDS.map(lambda text: text.translate({ord(c): None for c in "/?#@"})), path=WORDS, query=WORDS)
def test_no_message_shows_user_name_password_or_query_of_an_address(user: str, path: str, query: str) -> None:
    """ "Addresses in messages have neither query nor user name nor password": whatever they hold."""
    shown = masked(f"https://secret{user}:hidden@host.example/{path.replace('?', '')}?signature={query}")
    assert not any(word in shown for word in ("secret", "hidden", "signature"))
    assert urlsplit(shown).hostname == "host.example"
