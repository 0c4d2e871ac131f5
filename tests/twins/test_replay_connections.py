"""How the replay server keeps and closes its connections, as the real server (uvicorn under gunicorn) was seen to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.twins.replay.child import HOST, Child, running
from tests.twins.replay.recordings import RELEASES, load, named
from tests.twins.replay.script import is_unhandled
from tests.twins.replay.wire import split

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
STREAM = {"messages": [{"role": "user", "content": '@@{"text":"Hello there, how are you today?"}@@'}], "stream": True}
UNHANDLED = ["base_embeddings_on_generate", "base_err_bad_json", "base_err_body_list", "base_reward_on_generate"]


class Connection:
    """One connection on which requests are sent one after the other, and no end of it is asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    async def ask(self, path: str, body: object = None) -> tuple[bytes, bytes]:
        """Head and body of the answer, which ends where it says."""
        data = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        self._writer.write(f"{method} {path} HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        head = await self.reader.readuntil(b"\r\n\r\n")
        if b"Transfer-Encoding: chunked" in head:
            return head, await self.reader.readuntil(b"\r\n0\r\n\r\n")
        [length] = [int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        return head, await self.reader.readexactly(length)


@asynccontextmanager
async def connected(server: Child) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(HOST, server.port.result(0))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def test_a_connection_carries_one_request_after_the_other_and_no_answer_says_that_it_ends() -> None:
    async with running("2.3") as server, connected(server) as connection:
        streamed = await connection.ask(CHAT, STREAM)
        others = [await connection.ask(path) for path in ("/health", "/v1/models", "/nowhere")]
        refused = await connection.ask(CHAT, {"messages": STREAM["messages"], "logprobs": True, "top_logprobs": 2})
        again = await connection.ask(CHAT, STREAM)
        seen = await server.seen(ended=6)
    assert streamed == again
    assert [head.split(b" ")[1] for head, _ in (streamed, *others, refused)] == [b"200", b"200", b"200", b"501", b"501"]
    assert not any(b"connection" in head.lower() for head, _ in (streamed, *others, refused))
    assert {entry["ended"] for entry in seen} == {"finished"}


async def test_made_up_tokens_leave_the_connection_open_too() -> None:
    async with (
        running("2.3", "--synthetic", "--tokens-per-second", "1000", "--tokens", "3") as server,
        connected(server) as connection,
    ):
        for body in (STREAM, STREAM, {"messages": STREAM["messages"]}):
            head, _ = await connection.ask(CHAT, body)
            assert b"connection" not in head.lower()


async def test_a_connection_is_closed_without_a_word_after_two_idle_seconds() -> None:
    """gunicorn's `keepalive` is 2, and FastDeploy leaves it; before its first request a connection may wait for longer."""
    async with running("2.3") as server, connected(server) as connection, connected(server) as unused:
        began = time.monotonic()
        await connection.ask("/health")
        assert await connection.reader.read() == b""
        assert time.monotonic() - began >= 2
        await unused.ask("/health")


def test_each_release_answers_the_same_four_requests_out_of_an_unhandled_exception() -> None:
    """Their text is the exception's own: FastDeploy's handler of last resort, fastdeploy/utils.py, `handle_exception`."""
    for release in RELEASES:
        assert sorted(one.case for one in load(release) if one.raw and is_unhandled(split(one.raw))) == UNHANDLED


@pytest.mark.parametrize("case", UNHANDLED)
async def test_after_an_unhandled_exception_the_connection_is_closed_though_its_answer_does_not_say_so(case: str) -> None:
    """Measured with 2.6: no `Connection` header in the 500, and the socket closed by the server, 10 of 10."""
    recorded = named("2.3", case)
    async with running("2.3") as server, connected(server) as connection:
        head, body = await connection.ask(CHAT, {"x_replay_case": case})
        assert await connection.reader.read() == b""
        [entry] = await server.seen(ended=1)
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"connection" not in head.lower()
    assert body == recorded.body
    assert entry["ended"] == "finished"


async def test_a_client_that_uses_the_connection_of_an_unhandled_exception_again_meets_its_end() -> None:
    """What one caller's mistake did to the next caller's request: 27 of 160 good chats of 2.6, by way of a pool of connections."""
    async with running("2.3") as server, connected(server) as connection:
        await connection.ask(CHAT, {"x_replay_case": "base_err_body_list"})
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await connection.ask(CHAT, STREAM)
        async with connected(server) as fresh:
            assert (await fresh.ask(CHAT, STREAM))[0].startswith(b"HTTP/1.1 200 ")


async def test_an_answer_that_was_cut_short_is_the_connections_last() -> None:
    async with running("2.3", "--fault", "empty-200") as server, connected(server) as connection:
        with pytest.raises(asyncio.IncompleteReadError) as cut:
            await connection.ask(CHAT, STREAM)
    assert cut.value.partial == b""


async def test_sigterm_closes_the_port_and_idle_connections_at_once_however_long_the_end_takes() -> None:
    async with running("2.3", "--timeout-graceful-shutdown", "10", "--term-delay", "60") as server, connected(server) as connection:
        await connection.ask("/health")
        server.process.terminate()
        assert await connection.reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, server.port.result(0))
        assert server.process.poll() is None


async def test_a_killed_http_process_cuts_every_stream_and_another_answers_the_requests_that_waited() -> None:
    """Measured with 2.3: four running requests fail within 1 s, gunicorn starts another, the next request is answered within 5 s."""
    options = ("--event-delay", "0.05", "--spare", "1", "--fault", "restart-after-events:4")
    async with running("2.3", *options) as server, aiohttp.ClientSession() as session:

        async def ask() -> tuple[int, bytes, bool]:
            received = b""
            async with session.post(server.url + CHAT, json=STREAM) as response:
                try:
                    async for piece in response.content.iter_any():
                        received += piece
                except aiohttp.ClientError:
                    return response.status, received, True
            return response.status, received, False

        first, second = await asyncio.gather(ask(), ask())
        began = time.monotonic()
        status, received, cut = await ask()
        took = time.monotonic() - began
        entries = await server.seen(ended=3)
    assert [(status, cut) for status, _, cut in (first, second)] == [(200, True)] * 2
    assert not any(b"[DONE]" in received for _, received, _ in (first, second))
    assert (status, received.endswith(b"[DONE]\n\n"), cut) == (200, True, False)
    assert took >= 1
    assert [entry["ended"] for entry in entries] == ["stopped", "stopped", "finished"]
