"""The ways in which the replay server misbehaves, each told from outside as a worker would tell it."""

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.twins.replay.child import HOST, Child, running, start, stop
from tests.twins.replay.recordings import RELEASES, Recording, load
from tests.twins.replay.script import Pacing, Send, script
from tests.twins.replay.wire import split

pytestmark = pytest.mark.anyio

STREAM = {"messages": [{"role": "user", "content": '@@{"text":"Hello there, how are you today?"}@@'}], "stream": True}
PLAIN = {"messages": STREAM["messages"]}
EVENTS = 18  # of the recorded answer to STREAM
TIMEOUT = aiohttp.ClientTimeout(total=10)


async def post(server: Child, body: object) -> tuple[int, bytes, Exception | None]:
    """Status, what came of the body, and how reading it failed."""
    received = b""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session, session.post(f"{server.url}/v1/chat/completions", json=body) as response:
        try:
            async for piece in response.content.iter_any():
                received += piece
        except aiohttp.ClientError as error:
            return response.status, received, error
        return response.status, received, None


async def health(server: Child) -> tuple[int, str]:
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session, session.get(f"{server.url}/health") as response:
        return response.status, await response.text()


def request_bytes(body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data


RECORDINGS = [one for release in RELEASES for one in load(release) if one.raw]


@given(recording=st.sampled_from(RECORDINGS), size=st.integers(min_value=0, max_value=400))
def test_any_rechunking_carries_the_same_payload_and_the_same_number_of_events(recording: Recording, size: int) -> None:
    """`--rechunk N` writes payloads in pieces of N bytes; 0 keeps the recorded ones, and then all bytes are the recorded ones."""
    answer = split(recording.raw)
    sends = [step for step in script(answer, pacing=Pacing(rechunk=size)) if isinstance(step, Send)]
    wire = b"".join(step.data for step in sends)
    assert b"".join(split(wire).pieces) == b"".join(answer.pieces)
    assert sum(step.events for step in sends) == (len(answer.pieces) if answer.chunked else 0)
    if size == 0:
        assert wire == recording.raw


async def test_rechunked_to_one_byte_a_client_sees_one_byte_at_a_time_and_the_same_text() -> None:
    async with running("2.3") as whole, running("2.3", "--rechunk", "1") as cut:
        expected = (await post(whole, STREAM))[1]
        sizes, received = [], b""
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.post(f"{cut.url}/v1/chat/completions", json=STREAM) as response,
        ):
            async for piece, _ in response.content.iter_chunks():
                received += piece
                sizes.append(len(piece))
        (entry,) = await cut.seen(ended=1)
    assert received == expected
    assert max(sizes) == 1
    assert entry["events"] == EVENTS


async def test_events_are_paced() -> None:
    async with running("2.3", "--event-delay", "0.02") as server:
        began = time.monotonic()
        _, received, _ = await post(server, STREAM)
        took = time.monotonic() - began
    assert received.count(b"data: ") == EVENTS
    assert took >= 0.02 * (EVENTS - 1)


async def test_the_port_is_closed_while_it_loads() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    child = start("2.3", "--start-delay", "0.6", "--port", str(port))
    try:
        began = time.monotonic()
        await asyncio.wrap_future(child.loading)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, port)
        await asyncio.wait_for(asyncio.wrap_future(child.port), 10)
        assert time.monotonic() - began >= 0.6
        assert (await health(child))[0] == 200
    finally:
        stop(child)


@pytest.mark.parametrize(("fault", "code"), [("exit-0-while-loading", 0), ("exit-1-while-loading:0.1", 1)])
async def test_it_ends_while_loading_and_leaves_the_cause_in_the_worker_log_only(fault: str, code: int, tmp_path: Path) -> None:
    cause = tmp_path / "cause.txt"
    cause.write_text("ResourceExhaustedError: Out of memory error on GPU 0\n", encoding="utf-8")
    child = start("2.3", "--fault", fault, "--worker-log", str(cause), env={"FD_LOG_DIR": str(tmp_path / "log")})
    assert await child.exit_code() == code
    stop(child)
    assert (tmp_path / "log" / "workerlog.0").read_text(encoding="utf-8") == cause.read_text(encoding="utf-8")
    assert not any("Out of memory" in line for line in child.lines)
    with pytest.raises(ChildProcessError, match="ended before it listened"):
        child.port.result(0)


@pytest.mark.parametrize("arguments", [("--fault", "hang-while-loading"), ("--start-delay", "60")])
async def test_loading_can_last_for_ever_and_sigterm_then_kills_at_once(arguments: tuple[str, ...]) -> None:
    child = start("2.3", *arguments)
    await asyncio.wrap_future(child.loading)
    assert not child.port.done()
    child.process.send_signal(signal.SIGTERM)
    assert await child.exit_code() == -signal.SIGTERM
    stop(child)


async def test_it_dies_in_the_middle_of_a_stream() -> None:
    async with running("2.3", "--fault", "die-after-events:3") as server:
        status, received, error = await post(server, STREAM)
        assert await server.exit_code() == -signal.SIGKILL
    assert (status, received.count(b"\n\n")) == (200, 3)
    assert isinstance(error, aiohttp.ClientPayloadError)


async def test_a_plain_answer_of_a_dying_server_has_no_bytes() -> None:
    async with running("2.3", "--fault", "die-after-events:3") as server:
        assert await server.exchange(request_bytes(PLAIN)) == b""


async def test_a_stalled_stream_stays_open_and_silent_and_its_abort_is_seen() -> None:
    async with running("2.3", "--fault", "stall-after-events:2") as server:
        received = await server.abandon(request_bytes(STREAM), after_events=2)
        (entry,) = await server.seen(ended=1)
    assert received.count(b"data: ") == 2
    assert (entry["ended"], entry["events"]) == ("aborted-by-client", 2)
    assert entry["ended_at"] >= entry["last_event"]


@pytest.mark.parametrize(("fault", "events", "half_event"), [("cut-stream", EVENTS - 1, False), ("cut-stream:4", 4, True)])
async def test_a_stream_is_cut_without_done(fault: str, events: int, half_event: bool) -> None:
    async with running("2.3", "--fault", fault) as server:
        status, received, error = await post(server, STREAM)
        (entry,) = await server.seen(ended=1)
    assert (status, received.count(b"\n\n"), received.endswith(b"\n\n")) == (200, events, not half_event)
    assert b"[DONE]" not in received
    assert isinstance(error, aiohttp.ClientPayloadError)
    assert (entry["ended"], entry["events"]) == ("dropped", events)


@pytest.mark.parametrize("body", [STREAM, PLAIN], ids=["stream", "plain"])
async def test_an_empty_200_is_the_head_of_a_stream_and_nothing_else(body: object) -> None:
    async with running("2.3", "--fault", "empty-200") as server:
        raw = await server.exchange(request_bytes(body))
        recorded = await server.exchange(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
    assert raw.endswith(b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
    assert recorded.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_an_error_in_the_middle_of_a_stream_is_followed_by_done() -> None:
    async with running("2.3", "--fault", "error-mid-stream:2") as server:
        status, received, error = await post(server, STREAM)
    *_, last, done, rest = received.split(b"\n\n")
    assert (status, error, done, rest) == (200, None, b"data: [DONE]", b"")
    assert received.count(b"data: ") == 4
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"].startswith("Traceback")


async def test_never_answering_holds_the_request_until_the_client_leaves() -> None:
    async with running("2.3", "--fault", "never-answer") as server:
        await server.abandon(request_bytes(PLAIN))
        (entry,) = await server.seen(ended=1)
        assert (await health(server))[0] == 200
    assert (entry["ended"], entry["bytes"]) == ("aborted-by-client", 0)


async def test_slow_headers_delay_the_first_byte() -> None:
    async with running("2.3", "--fault", "slow-headers:0.3") as server:
        assert (await post(server, STREAM))[1].endswith(b"[DONE]\n\n")
        (entry,) = await server.seen(ended=1)
    assert entry["first_byte"] - entry["started"] >= 0.3


async def test_a_frozen_worker_keeps_requests_waiting_and_fails_health_once_its_heartbeat_is_old() -> None:
    """/health looks at a heartbeat that may be 30 s old; requests and the port know nothing of it."""
    async with running("2.3", "--fault", "freeze") as server:
        assert await health(server) == (200, "")
        await server.abandon(request_bytes(STREAM))
        assert (await server.seen(ended=2))[-1]["ended"] == "aborted-by-client"
    async with running("2.3", "--fault", "freeze", "--heartbeat", "0") as server:
        assert await health(server) == (404, "Worker Service Not Healthy")
        await server.abandon(request_bytes(STREAM))
        entry = (await server.seen(ended=2))[-1]
        assert server.process.poll() is None
    async with running("2.3", "--fault", "freeze", "--spare", "1") as server:
        assert (await post(server, STREAM))[1].endswith(b"[DONE]\n\n")
        await server.abandon(request_bytes(STREAM))
        assert [entry["ended"] for entry in await server.seen(ended=2)] == ["finished", "aborted-by-client"]
    async with running("2.3", "--fault", "freeze:60", "--heartbeat", "0") as server:
        assert (await health(server))[0] == 200
    assert (entry["bytes"], entry["ended"]) == (0, "aborted-by-client")


async def test_sigterm_is_ignored_on_demand_and_sigkill_is_not() -> None:
    async with running("2.3", "--fault", "ignore-term") as server:
        server.process.send_signal(signal.SIGTERM)
        assert (await health(server))[0] == 200
        assert server.process.poll() is None
        server.process.kill()
        assert await server.exit_code() == -signal.SIGKILL


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_an_orphan_answers_health_after_the_server_ended(end: signal.Signals) -> None:
    async with running("2.3", "--fault", "orphan") as server:
        assert (await post(server, STREAM))[1].endswith(b"[DONE]\n\n")
        server.process.send_signal(end)
        assert await server.exit_code() == (-9 if end == signal.SIGKILL else 0)
        assert (await health(server))[0] == 200
        (pid,) = server.orphans()
        assert os.getsid(pid) == pid


async def test_sigterm_ends_an_idle_server_with_0_and_cuts_what_runs() -> None:
    async with running("2.3", "--fault", "stall-after-events:1") as server:
        running_post = asyncio.ensure_future(post(server, STREAM))
        await server.abandon(request_bytes(STREAM), after_events=1)
        server.process.send_signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert isinstance((await running_post)[2], aiohttp.ClientError)


async def test_a_graceful_timeout_lets_running_requests_finish_before_the_end() -> None:
    async with running("2.3", "--event-delay", "0.02", "--timeout-graceful-shutdown", "10") as server:
        reader, writer = await asyncio.open_connection(HOST, server.port.result(0))
        writer.write(request_bytes(STREAM))
        await reader.readuntil(b"data: ")
        server.process.send_signal(signal.SIGTERM)
        assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        writer.close()
        assert await server.exit_code() == 0


async def test_flags_it_does_not_know_are_ignored() -> None:
    async with running("2.3", "--model", "somewhere", "--quantization", "wint4", "--enable-prefix-caching") as server:
        assert "args: --model somewhere --quantization wint4 --enable-prefix-caching" in server.lines[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--fault", "made-up"], "'made-up' is no fault; there are: exit-0-while-loading"),
        (["--fault", "freeze:soon"], "expected a number after the colon"),
        (["--release", "9.9"], "no recordings of release '9.9'; there are: 2.3, 2.4, 2.5"),
        (["--fallback", "made_up"], "--fallback made_up: no such case"),
        (["--synthetic", "--tokens", "0"], "--tokens at least 1"),
    ],
    ids=["fault", "number", "release", "fallback", "tokens"],
)
async def test_a_wrong_command_line_is_refused_by_name(arguments: list[str], complaint: str) -> None:
    child = start("2.3", *arguments)
    assert await child.exit_code() == 2
    child.thread.join()
    assert complaint in "\n".join(child.lines)
