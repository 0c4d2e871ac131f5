"""The HTTP client against servers that a test plays byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler.http1 import Answer, Broken, Client, Connection, Refused, Target
from tests.handler.played import playing
from tests.handler.test_http import free_port
from tests.strategies import cuts

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@contextlib.asynccontextmanager
async def talking(port: int, idle: float = 30.0) -> AsyncIterator[Client]:
    client = Client(Target.parse(f"http://127.0.0.1:{port}"), idle=idle)
    try:
        yield client
    finally:
        client.close()


async def get(client: Client) -> bytes:
    answer = await client.send("GET", "/", timeout=20)
    try:
        return await answer.all()
    finally:
        answer.close()


def framings(body: bytes) -> st.SearchStrategy[bytes]:
    """The body in each way that RFC 9112 knows."""

    def chunked(pieces: list[bytes]) -> bytes:
        return (
            HEAD
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces if one)
            + b"0\r\n\r\n"
        )

    sized = st.just(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    informed = st.just(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    return sized | informed | st.just(HEAD + b"Connection: close\r\n\r\n" + body) | cuts(body).map(chunked)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.binary(max_size=200))
def test_a_body_is_what_was_sent_however_it_is_framed_and_cut(data: st.DataObject, body: bytes) -> None:
    """Rule: framing follows RFC 9112: chunked, Content-Length, or the end of the connection."""
    wire = data.draw(framings(body))
    pieces = data.draw(cuts(wire))

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)

    async def run() -> bytes:
        async with playing(play) as port, talking(port) as client:
            return await get(client)

    assert asyncio.run(run()) == body


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"",
    ],
    ids=["other protocol", "no size", "cut", "no length", "cut chunk", "nothing"],
)
async def test_what_is_no_whole_answer_is_an_error_and_never_a_body(wire: bytes) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(wire)

    async with playing(play) as port, talking(port) as client:
        with pytest.raises(Broken):
            await get(client)


async def test_a_connection_serves_one_request_after_the_other() -> None:
    connections = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(HEAD + b"Content-Length: 2\r\n\r\nok")

    async with playing(play) as port, talking(port) as client:
        assert [await get(client) for _ in range(5)] == [b"ok"] * 5
    assert connections == 1


@pytest.mark.parametrize("says", [b"", b"Connection: close\r\n"], ids=["without a word", "said in the head"])
async def test_a_server_that_closes_a_kept_connection_costs_the_next_request_nothing(says: bytes) -> None:
    """Rule: a request that meets a connection which the server has closed meanwhile is sent once more on a new one."""
    connections = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + says + b"Content-Length: 2\r\n\r\nok")
        # The next request arrives before the end of the connection does.
        await reader.readuntil(b"\r\n\r\n") if not says else None

    async with playing(play) as port, talking(port) as client:
        assert [await get(client) for _ in range(4)] == [b"ok"] * 4
    assert connections == 4


async def test_an_answer_of_500_is_the_last_of_its_connection() -> None:
    """FastDeploy's server closes after an unhandled exception, without saying so."""
    connections = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno")

    async with playing(play) as port, talking(port) as client:
        assert [await get(client) for _ in range(3)] == [b"no"] * 3
    assert connections == 3


async def test_a_request_that_was_hung_up_on_is_not_sent_again() -> None:
    requests = 0

    def hang_up_soon(connection: Connection) -> None:
        asyncio.get_running_loop().call_later(0.1, connection.hang_up)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                requests += 1
                if requests == 1:
                    writer.write(HEAD + b"Content-Length: 2\r\n\r\nok")

    async with playing(play) as port, talking(port) as client:
        await get(client)
        with pytest.raises(Broken):
            await client.send("GET", "/", timeout=20, used=hang_up_soon)
    assert requests == 2


async def test_nothing_listens_is_told_from_a_broken_answer() -> None:
    async with talking(free_port()) as client:
        with pytest.raises(Refused) as caught:
            await client.send("GET", "/", timeout=20)
    assert caught.value.by_server
    assert not caught.value.begun


async def test_a_head_that_does_not_come_in_time_is_a_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with playing(silent) as port, talking(port) as client:
        with pytest.raises(asyncio.TimeoutError):
            await client.send("GET", "/", timeout=0.1)


@pytest.mark.parametrize("late", [False, True], ids=["while it arrives", "when it had arrived whole"])
async def test_an_error_of_the_sink_ends_the_answer_with_that_error(late: bool) -> None:
    arrived = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Content-Length: 2\r\n\r\n" + (b"ok" if late else b""))
        arrived.set()
        await asyncio.sleep(0.05)
        writer.write(b"" if late else b"ok")

    async with playing(play) as port, talking(port) as client:
        answer: Answer = await client.send("GET", "/", timeout=20)
        if late:
            await asyncio.wait_for(arrived.wait(), 20)
            await asyncio.sleep(0.1)
        over: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

        def puzzled(data: bytes) -> None:
            raise KeyError(data)

        answer.pour(puzzled, over.set_result)
        assert isinstance(await asyncio.wait_for(over, 20), KeyError)
        answer.close()


async def test_closing_the_client_ends_every_answer_with_the_reason() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Content-Length: 100\r\n\r\n")
        await reader.read()

    async with playing(endless) as port, talking(port) as client:
        answer = await client.send("GET", "/", timeout=20)
        client.close(KeyError("the reason"))
        with pytest.raises(KeyError):
            await answer.all()
        with pytest.raises(KeyError):
            await client.send("GET", "/", timeout=20)


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://localhost:x@evil.example/", "http://a/\n", "http://a/b c", "http://a/é", "a/b"]
)
def test_what_is_no_address_of_http_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Target.parse(url)


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [("http://a", "a", "/"), ("https://a:443/b?c=d", "a", "/b?c=d"), ("http://a:81/x", "a:81", "/x"), ("http://[::1]:80/", "[::1]", "/")],
)
def test_an_address_is_a_server_and_a_path(url: str, authority: str, path: str) -> None:
    target = Target.parse(url)
    assert (target.authority, target.path) == (authority, path)


async def test_a_request_that_is_cancelled_ends_so_at_whatever_moment() -> None:
    """Rule: a cancellation is not lost, also one that comes in the moment in which the connection fails.

    Who asks again and again until it is cancelled would otherwise go on for ever.
    """
    client = Client(Target.parse(f"http://127.0.0.1:{free_port()}"))
    for steps in range(50):
        asked = asyncio.ensure_future(client.send("GET", "/", b"", timeout=5))
        for _ in range(steps):
            await asyncio.sleep(0)
        if asked.done():
            assert isinstance(asked.exception(), Refused)
            break
        asked.cancel()
        await asyncio.wait({asked})
        assert asked.cancelled(), f"after {steps} steps of the loop it ended with {asked.exception()!r}"
    else:
        raise AssertionError("a connection to a port on which nobody listens never failed")
