"""What the HTTP face refuses, and how: too much, too long, too early, wrong; and what a slow client does to memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import psutil
import pytest
from yarl import URL

from handler import web
from handler.exchange import Exchange
from handler.gate import Gate
from handler.lifecycle import Event, Lifecycle
from handler.metrics import Metrics
from handler.proxy import Proxy
from handler.settings import read_settings
from tests.handler.test_http import MESSAGES, free_port, ready, serving
from tests.handler.test_relay import PlayedEngine
from tests.handler.worker_process import Worker, aborted_at, replayed_engine

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
SLOW = replayed_engine("--synthetic", "--tokens-per-second", "20", "--tokens", "1000")
STREAM: Any = {"messages": MESSAGES, "stream": True, "max_tokens": 900}


@contextlib.asynccontextmanager
async def serving_ready(variables: dict[str, str]) -> AsyncIterator[tuple[Worker, str, aiohttp.ClientSession]]:
    async with serving(variables) as (worker, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        yield worker, url, session


async def seen_at(engine_url: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{engine_url}/__seen") as answer:
        entries: list[dict[str, Any]] = await answer.json()
    return entries


async def test_more_requests_than_allowed_get_a_429_that_says_when_to_come_again() -> None:
    async with serving_ready(SLOW | {"MAX_CONCURRENCY": "2"}) as (worker, url, session), session.post(url + CHAT, json=STREAM) as first:
        await first.content.readuntil(b"\n\n")
        async with session.post(url + CHAT, json=STREAM) as second:
            await second.content.readuntil(b"\n\n")
            async with session.post(url + CHAT, json=STREAM) as third:
                assert (third.status, third.headers["Retry-After"]) == (429, "1")
                error = (await third.json())["error"]
                assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_requests")
                assert "MAX_CONCURRENCY" in error["message"]
            async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
                with pytest.raises(openai.RateLimitError):
                    await client.chat.completions.create(model="demo", messages=MESSAGES)
            async with session.get(url + "/ping") as ping:
                assert ping.status == 200, "a full worker is a healthy one"
            second.close()
            await aborted_at(worker.engine_url)
            async with session.post(url + CHAT, json=STREAM) as again:
                assert again.status == 200, "the place of who left is free"


async def test_a_request_that_takes_too_long_ends_with_504_and_its_work_at_the_engine_too() -> None:
    async with serving_ready(SLOW | {"HTTP_REQUEST_TIMEOUT": "1"}) as (worker, url, session):
        started = time.monotonic()
        async with session.post(url + CHAT, json=STREAM) as answer:
            frames = (await answer.content.read()).split(b"\n\n")
        assert 0.9 < time.monotonic() - started < 10
        error = json.loads(frames[-2].removeprefix(b"data: "))["error"]
        assert (error["type"], error["code"]) == ("timeout_error", "request_timeout")
        assert len(frames) > 10, "what was there by then has been sent"
        await aborted_at(worker.engine_url)
        async with session.post(url + CHAT, json=STREAM | {"stream": False}) as answer:
            assert answer.status == 504
            assert "HTTP_REQUEST_TIMEOUT" in (await answer.json())["error"]["message"]


class Raw:
    """One connection, on which requests are written as they stand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Raw]:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request and return status, headers and body of the answer, which must say its length."""
        await self.send(request)
        return await asyncio.wait_for(self._answer(without_body=request.startswith(b"HEAD")), 20)

    async def _answer(self, *, without_body: bool) -> tuple[int, dict[str, str], bytes]:
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = b"" if without_body else await self._reader.readexactly(int(headers.get("content-length", 0)))
        return int(status.split()[1]), headers, body

    async def rest(self) -> bytes:
        """Return what still comes before the other side closes."""
        return await asyncio.wait_for(self._reader.read(), 20)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as it stands on the wire; headers are named with `_` for `-`, and an empty one is left out."""
    written = {"Host": "worker", "Content_Type": "application/json", "Content_Length": str(len(body))} | headers
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in written.items() if value]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body


HELLO = json.dumps({"model": "demo", "messages": MESSAGES, "max_tokens": 4}).encode()

BAD: dict[str, tuple[bytes, int, str | None, str]] = {
    "not JSON": (request("POST", CHAT, b'{"messages": '), 400, "body", "expected JSON (Expecting value: line 1 column 14 (char 13))"),
    "no body": (request("POST", CHAT), 400, "body", "missing or empty"),
    "an empty object": (request("POST", CHAT, b" {} "), 400, "body", "missing or empty"),
    "a list": (request("POST", CHAT, b"[1]"), 400, "body", "got a list, expected a JSON object"),
    "a number": (request("POST", CHAT, b"7"), 400, "body", "got a number"),
    "not UTF-8": (request("POST", CHAT, b'{"a": "\xff"}'), 400, "body", "got the byte 0xff at position 7"),
    "UTF-16": (request("POST", CHAT, HELLO, Content_Type="application/json; charset=utf-16"), 400, "Content-Type", "expected utf-8"),
    "a form": (request("POST", CHAT, b"a=b", Content_Type="application/x-www-form-urlencoded"), 400, "Content-Type", "application/json"),
    "NaN": (request("POST", CHAT, b'{"messages": [{"a": NaN}]}'), 400, "messages[0].a", "cannot be sent to the engine as JSON"),
    "an infinity": (request("POST", CHAT, b'{"messages": [], "top_p": 1e999}'), 400, "top_p", "cannot be sent to the engine as JSON"),
    "no end of brackets": (request("POST", CHAT, b'{"messages": ' + b"[" * 100_000), 400, "body", "expected JSON"),
    "a number without end": (request("POST", CHAT, b'{"n": ' + b"9" * 5000 + b"}"), 400, "body", "expected JSON"),
    "stream of a wrong type": (request("POST", CHAT, b'{"messages": [], "stream": 1}'), 400, "stream", "expected true or false"),
    "a wrong method": (request("GET", CHAT), 405, "method", "got GET, expected POST"),
    "another": (request("DELETE", "/openai/v1/models"), 405, "method", "got DELETE"),
    "a rare one": (request("PROPFIND", "/v1/models"), 405, "method", "got PROPFIND"),
    "a wrong method for the check": (request("POST", "/ping", b"{}"), 405, "method", "got POST, expected GET or HEAD for /ping"),
    "an unknown route": (request("POST", "/v1/images", HELLO), 404, "path", "/v1/images: no such route"),
    "a way out": (request("GET", "/v1/models/%2e%2e%2fpause"), 400, "route", "expected a plain path"),
    "a root": (request("GET", "/"), 404, "path", "/: no such route"),
}


async def test_every_bad_request_gets_an_openai_error_that_says_where_and_the_connection_lives_on() -> None:
    async with serving(replayed_engine()) as (worker, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        before = len(await seen_at(worker.engine_url))
        async with Raw.open(url) as connection:
            for name, (asked, status, param, words) in BAD.items():
                got, headers, body = await connection.ask(asked)
                assert got == status, f"{name}: {body!r}"
                error = json.loads(body)["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert (error["type"], error["param"]) == ("invalid_request_error", param), name
                assert words in error["message"], name
                assert (got == 405) == ("allow" in headers), name
            assert len(await seen_at(worker.engine_url)) == before, "the engine heard nothing of it"
            status, _, body = await connection.ask(request("POST", CHAT, HELLO))
            assert (status, "choices" in json.loads(body)) == (200, True)
            status, _, body = await connection.ask(request("POST", CHAT, HELLO, Content_Encoding="gzip"))
            assert (status, json.loads(body)["error"]["param"]) == (400, "body"), "nobody knows where such a body ends"


async def test_head_and_options_are_answered_without_a_body() -> None:
    async with serving(replayed_engine()) as (_, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        async with Raw.open(url) as connection:
            status, headers, _ = await connection.ask(request("OPTIONS", CHAT))
            assert (status, headers["allow"]) == (204, "POST, OPTIONS")
            status, headers, _ = await connection.ask(request("OPTIONS", "/openai/v1/models"))
            assert (status, headers["allow"]) == (204, "GET, HEAD, OPTIONS")
            status, headers, _ = await connection.ask(request("HEAD", "/v1/models"))
            assert status == 200
            assert int(headers["content-length"]) > 20
            assert (await connection.ask(request("HEAD", "/ping")))[0] == 200
            assert (await connection.ask(request("OPTIONS", "/v1/pause")))[1]["content-type"].startswith("application/json")
            assert (await connection.ask(request("GET", "/v1/models")))[0] == 200


CONTROL = """/v1/pause /v1/resume /v1/is_paused /v1/sleep /v1/wakeup /v1/update_weights /v1/abort_requests /update_model_weight
    /clear_load_weight /rearrange_experts /get_per_expert_tokens_stats /check_redundant /config-info /load /controller/scheduler""".split()


async def test_the_engines_control_routes_are_closed() -> None:
    async with serving(replayed_engine()) as (worker, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        before = await seen_at(worker.engine_url)
        for route in CONTROL:
            for path in (route, "/openai" + route, f"/v1{route}/", f"/openai/v1/models/..{route}", f"/v1/models/%2e%2e{route}"):
                for method in ("GET", "POST"):
                    async with session.request(method, URL(url + path, encoded=True), json={"abort_all": True}) as answer:
                        assert answer.status in {400, 404, 405}, f"{method} {path}"
                        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
        assert await seen_at(worker.engine_url) == before


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent() -> None:
    async with serving(replayed_engine()) as (_, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        async with Raw.open(url) as connection:
            status, _, body = await connection.ask(request("POST", CHAT, Content_Length=str(30 * 1024 * 1024 + 1)))
            assert status == 413
            assert json.loads(body)["error"]["code"] == "request_too_large"

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(31):
                yield b" " * 1024 * 1024

        async with session.post(url + CHAT, data=endless(), headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 413
        async with session.get(url + "/v1/models") as answer:
            assert answer.status == 200


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BODY_TIMEOUT", 0.3)
    settings, lifecycle, port = read_settings({"MODEL": "m", "MAX_CONCURRENCY": "1"}), Lifecycle(), free_port()
    lifecycle.report(Event.ENGINE_READY)
    metrics = Metrics(lifecycle, 1, restarts=int)
    engine = PlayedEngine(9, Exchange)
    routes = web.Routes(Proxy(engine, settings.limits), settings, lifecycle, metrics, Gate(1, 60))
    async with web.listening(routes.application(), "PORT", port), Raw.open(f"http://127.0.0.1:{port}") as connection:
        status, _, body = await connection.ask(request("POST", CHAT, b'{"messages"', Content_Length="100"))
        assert (status, json.loads(body)["error"]["code"]) == (408, "body_timeout")
        async with Raw.open(f"http://127.0.0.1:{port}") as other:
            status, _, body = await other.ask(request("POST", CHAT, b"[]"))
            assert status == 400, "its place is free"


async def test_headers_without_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_IDLE", 0.5)
    port = free_port()
    async with web.listening(web.application(), "PORT", port):
        for sent in (b"", b"GET / HTTP/1.1\r\nX: a", request("GET", "/")):  # silent, slow, and idle after an answer
            async with Raw.open(f"http://127.0.0.1:{port}") as connection:
                started = time.monotonic()
                await connection.send(sent)
                assert (await connection.rest() == b"") == (sent[-4:] != b"\r\n\r\n")
                assert time.monotonic() - started < 10
        async with Raw.open(f"http://127.0.0.1:{port}") as connection:
            await connection.send(b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 10_000)
            assert (await connection.rest()).startswith(b"HTTP/1.0 400")


SECRET = b"rpa_OF-THE-CLIENT"
NO_HTTP = {
    "a body longer than it was said to be": request("POST", CHAT, b"[]", Content_Length="1") + SECRET + b" prompt\r\n\r\n",
    "a control character in a header": b"GET /ping HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + SECRET + b"\x01\r\n\r\n",
    "the start of TLS": b"\x16\x03\x01" + SECRET + b"\r\n\r\n",
    "a line too long": b"GET /" + SECRET * 1000 + b" HTTP/1.1\r\n\r\n",
    "an address that is none": b"GET http://[" + SECRET + b"/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "no chunk": b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + SECRET + b"\r\n",
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_is_refused_and_nothing_of_it_is_logged(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings, lifecycle, port = read_settings({"MODEL": "m"}), Lifecycle(), free_port()
    lifecycle.report(Event.ENGINE_READY)
    metrics = Metrics(lifecycle, 1, restarts=int)
    engine = PlayedEngine(9, Exchange)
    routes = web.Routes(Proxy(engine, settings.limits), settings, lifecycle, metrics, Gate(1, 60))
    async with web.listening(routes.application(), "PORT", port), Raw.open(f"http://127.0.0.1:{port}") as connection:
        await connection.send(sent)
        assert b" 400 " in await connection.rest()
    assert SECRET.decode() not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_client_that_reads_slowly_holds_the_engine_and_no_memory() -> None:
    """300,000 tokens are 100 MB of frames, made in 10 s; nobody reads them, so the engine must be left holding the rest."""
    fast = replayed_engine("--synthetic", "--tokens-per-second", "30000", "--tokens", "300000")
    async with serving(fast) as (worker, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        process = psutil.Process(worker.process.pid)
        body = json.dumps(STREAM | {"max_tokens": 300_000}).encode()
        before = process.memory_info().rss
        async with Raw.open(url) as connection:
            await connection.send(request("POST", CHAT, body))
            held = await _standstill(worker.engine_url)
            assert 0 < held < 100_000, "the engine was stopped on its way"
            assert process.memory_info().rss - before < 60 * 1024 * 1024
            async with session.post(url + CHAT, json=STREAM | {"max_tokens": 20}) as answer:
                assert b"[DONE]" in await answer.content.read(), "others are served meanwhile"
        await aborted_at(worker.engine_url)


async def _standstill(engine_url: str) -> int:
    """Return how many events the engine has written of its last answer, once no more are added."""
    events, since = -1, time.monotonic()
    while time.monotonic() - since < 2:
        [*_, last] = await seen_at(engine_url)
        if last["events"] != events:
            events, since = last["events"], time.monotonic()
        await asyncio.sleep(0.2)
    return events
