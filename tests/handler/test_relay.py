"""The relay against an engine that misbehaves in every measured way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest
from aiohttp import web

from checkpoint.find import Source, find_weights
from handler.engine import Engine
from handler.engines import choose_engine
from handler.exchange import Exchange
from handler.job import Request
from handler.job_queue import Handler
from handler.json_text import read_answer
from handler.lifecycle import Lifecycle, State
from handler.proxy import Proxy
from handler.settings import read_settings
from tests.handler.played import Player, playing
from tests.handler.worker_process import FALLBACKS, environment, replayed_engine
from tests.twins.replay.recordings import named

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "What is FastDeploy?"}]


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is made in this process, which then finds the GPU that goes with the replayed engine."""
    monkeypatch.setenv("PATH", replayed_engine()["PATH"])


@contextlib.asynccontextmanager
async def answering(*options: str, stall: float = 5, fallbacks: tuple[str, ...] = FALLBACKS, **further: str) -> AsyncIterator[Handler]:
    """A handler in this process over a replayed engine."""
    variables = environment(
        replayed_engine("--spare", "1", *options, fallbacks=fallbacks),
        further,
        {"REQUEST_STALL_TIMEOUT": str(stall), "ENGINE_STOP_TIMEOUT": "1"},
    )
    mark = variables["TEST_RUN"] = uuid.uuid4().hex
    settings = read_settings(variables)
    lifecycle = Lifecycle()
    kind = choose_engine(settings).prepare(find_weights(Source(name=settings.model.source)))
    async with Engine(kind, variables, settings.engine, lifecycle) as engine:
        await engine.ready()
        async with Proxy(engine, settings.limits) as entered:
            yield Handler(entered, settings)
    assert lifecycle.state in {State.STOPPED, State.DEAD}
    assert not [process for process in psutil.process_iter() if mark in environ(process)]


def environ(process: psutil.Process) -> str:
    try:
        return str(process.environ())
    except psutil.Error:
        return ""


class PlayedEngine:
    """An engine that the test itself plays on a port."""

    def __init__(self, port: int, exchange: Callable[[Request], Exchange]) -> None:
        self.url, self.exchange = f"http://127.0.0.1:{port}", exchange
        self.died = asyncio.get_running_loop().create_future()

    def condemn(self, reason: str) -> None:
        """Nothing to end."""


@contextlib.asynccontextmanager
async def relaying_from(port: int, exchange: type[Exchange] = Exchange, **further: str) -> AsyncIterator[Handler]:
    """A handler over an engine that the test itself plays on a port."""
    settings = read_settings({"MODEL": "org/name", **further})
    async with Proxy(PlayedEngine(port, exchange), settings.limits) as entered:
        yield Handler(entered, settings)


@contextlib.asynccontextmanager
async def relaying_bytes(engine: Player, exchange: type[Exchange] = Exchange) -> AsyncIterator[Handler]:
    """A handler over an engine that the test plays byte by byte, with a stall timeout of a second."""
    async with playing(engine) as port, relaying_from(port, exchange, REQUEST_STALL_TIMEOUT="1") as handler:
        yield handler


async def answers(handler: Handler, job_input: Any) -> list[Any]:
    return [piece async for piece in handler.answer({"id": "job", "input": job_input})]


def error_of(pieces: list[Any]) -> dict[str, Any]:
    """The OpenAI error at the end of a failed job."""
    assert set(pieces[-1]) == {"error"}, pieces[-1]
    error: dict[str, Any] = json.loads(pieces[-1]["error"])["error"]
    return error


def chat(**body: Any) -> dict[str, Any]:
    return {"openai_route": "/v1/chat/completions", "openai_input": {"messages": MESSAGES} | body}


STREAM = chat(stream=True)


async def test_a_stream_is_relayed_byte_for_byte_however_the_engine_cuts_it() -> None:
    async with answering(RAW_ENGINE_OUTPUT="1") as handler:
        whole = "".join(await answers(handler, STREAM))
    assert whole.encode() == named("2.3", "base_chat_stream_usage").body
    for size in ("1", "7"):
        async with answering("--rechunk", size, RAW_ENGINE_OUTPUT="1") as handler:
            pieces = await answers(handler, STREAM)
        assert "".join(pieces) == whole
        assert all(piece.endswith("\n\n") for piece in pieces)


async def test_a_frame_that_cannot_be_understood_ends_its_job_and_not_the_stream_in_silence() -> None:
    class Puzzled(Exchange):
        def run(self, run: bytes) -> bytes:
            raise KeyError(len(run))

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {}\n\ndata: [DONE]\n\n")
        writer.close()

    async with relaying_bytes(engine, Puzzled) as handler:
        pieces = await asyncio.wait_for(answers(handler, STREAM), 20)
    assert error_of(pieces)["type"] == "server_error"


@pytest.mark.parametrize(("idle", "connections"), [(0.0, 1), (1.5, 2)])
async def test_a_connection_is_not_used_again_once_the_engine_may_be_closing_it(idle: float, connections: int) -> None:
    """FastDeploy's gunicorn closes one after two idle seconds, and a request sent at that moment would look like the engine's death."""
    opened = 0

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with relaying_bytes(engine) as handler:
        for _ in range(2):
            assert await answers(handler, {"route": "/v1/models", "method": "GET"}) == [{}]
            await asyncio.sleep(idle)
    assert opened == connections


async def test_a_stream_cut_without_done_is_an_error_after_what_came() -> None:
    async with answering("--fault", "cut-stream") as handler:
        pieces = await answers(handler, STREAM)
    assert error_of(pieces)["code"] == "engine_died"
    assert pieces[0].startswith("data: {")
    assert json.loads(pieces[-2].removeprefix("data: "))["error"]["code"] == "engine_died"


async def test_an_engine_that_goes_silent_is_given_up_after_the_stall_timeout() -> None:
    async with answering("--fault", "stall-after-events:3", stall=1) as handler:
        started = time.monotonic()
        pieces = await answers(handler, STREAM)
    error = error_of(pieces)
    assert (error["code"], error["type"]) == ("engine_timeout", "timeout_error")
    assert "for 1 s (REQUEST_STALL_TIMEOUT)" in error["message"]
    assert time.monotonic() - started < 4


async def test_an_error_in_the_middle_of_a_stream_fails_the_job_without_its_traceback() -> None:
    async with answering("--fault", "error-mid-stream") as handler:
        pieces = await answers(handler, STREAM)
    text = json.dumps(pieces)
    assert error_of(pieces)["message"]
    assert "Traceback" not in text
    assert ".py" not in text


async def test_an_engine_that_dies_is_news_to_every_running_job_and_to_the_next_one() -> None:
    async with answering("--synthetic", "--tokens-per-second", "50", "--tokens", "500", "--fault", "die-after-events:20") as handler:
        results = await asyncio.gather(*(answers(handler, STREAM) for _ in range(5)))
        for pieces in results:
            assert error_of(pieces)["code"] == "engine_died"
        assert error_of(await answers(handler, chat()))["code"] == "engine_died"


async def test_an_orphan_that_still_answers_does_not_hide_the_engines_death() -> None:
    async with answering("--fault", "orphan", "--synthetic", "--tokens-per-second", "20", "--tokens", "500") as handler:
        pieces: list[Any] = []
        async for piece in handler.answer({"id": "job", "input": STREAM}):
            pieces.append(piece)
            if len(pieces) == 2:
                port = handler._proxy._engine.url.rpartition(":")[2]
                [main] = [child for child in psutil.Process().children() if port in child.cmdline()]
                main.kill()
        assert error_of(pieces)["code"] == "engine_died"


async def test_many_streams_at_once_are_whole_and_apart() -> None:
    async with answering("--synthetic", "--tokens-per-second", "200", "--tokens", "40") as handler:
        results = await asyncio.gather(*(answers(handler, STREAM) for _ in range(60)))
    ids = set()
    for pieces in results:
        frames = "".join(pieces).split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
        assert sum(bool(choice["delta"].get("content")) for chunk in chunks for choice in chunk["choices"]) == 40
        ids.add(chunks[0]["id"])
    assert len(ids) == 60


async def test_closing_a_stream_early_leaves_nothing_behind() -> None:
    async with answering("--synthetic", "--tokens-per-second", "50", "--tokens", "500") as handler:
        before = len(asyncio.all_tasks())
        stream = handler.answer({"id": "job", "input": STREAM})
        assert (await anext(stream)).startswith("data: ")
        await stream.aclose()
        assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize("case", ["base_err_too_long", "base_err_empty_messages", "base_err_body_list", "base_err_bad_json"])
async def test_a_recorded_error_reaches_the_caller_as_an_openai_error(case: str) -> None:
    async with answering(fallbacks=("base_cmpl_stream", case), RAW_ENGINE_OUTPUT="1") as handler:
        error = error_of(await answers(handler, chat()))
    assert error["message"]
    assert "Traceback" not in error["message"]


async def test_text_that_is_no_json_is_given_as_text_and_an_empty_answer_as_its_status() -> None:
    async with answering() as handler:
        assert await answers(handler, {"route": "/health"}) == [{"status": 200}]


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"", {"status": 200}),
        (b"# HELP x\nx 1\n", "# HELP x\nx 1\n"),
        (b'{"a": NaN, "b": [Infinity, -Infinity, 1e999, 1.5]}', {"a": None, "b": [None, None, None, 1.5]}),
        (b'{"a": "\\ud83d\\ude00 \\ud83d \\udc00"}', {"a": "\U0001f600 \ufffd \ufffd"}),
        (b'{"\\uD800": ["\\uDFFF", 7, null]}', {"\ufffd": ["\ufffd", 7, None]}),
        (b'{"big": 123456789012345678901234567890}', {"big": 123456789012345678901234567890}),
        (b"\xff", "\ufffd"),
    ],
)
def test_a_whole_answer_becomes_a_value_that_every_json_writer_takes(body: bytes, value: Any) -> None:
    assert read_answer(body) == value
    json.dumps(read_answer(body), ensure_ascii=False, allow_nan=False).encode()


async def test_a_stream_that_ends_in_order_but_without_done_is_an_error() -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n')
        return response

    application = web.Application()
    application.router.add_post("/v1/chat/completions", stream)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with relaying_from(runner.addresses[0][1]) as handler:
            pieces = await answers(handler, STREAM)
    finally:
        await runner.cleanup()
    error = error_of(pieces)
    assert (error["code"], error["message"]) == ("engine_died", "the engine's stream ended without [DONE]")
    assert "half" in pieces[0]


@pytest.mark.parametrize(("job_input", "kind"), [(STREAM, b"text/event-stream"), (chat(), b"application/json")])
@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
async def test_an_answer_with_another_head_in_its_body_breaks_off_at_once(job_input: Any, kind: bytes, status: bytes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n")
        for _ in range(50):  # until the client, on the same loop, waits for the body
            await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}")
        await reader.read()

    async with relaying_bytes(broken) as handler:
        pieces = await asyncio.wait_for(answers(handler, job_input), 20)
    assert error_of(pieces)["code"] == "engine_died"
    assert "is no HTTP" in error_of(pieces)["message"]


@pytest.mark.parametrize("job_input", [STREAM, chat()])
async def test_an_answer_that_comes_in_little_pieces_may_take_longer_than_the_stall_timeout(job_input: Any) -> None:
    """Rule: the stall timeout begins anew with every piece, for a stream and for a whole answer."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        kind = b"text/event-stream" if job_input is STREAM else b"application/json"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nConnection: close\r\n\r\n")
        body = b'data: {"choices":[]}\n\ndata: [DONE]\n\n' if job_input is STREAM else b'{"choices": []}'
        for place in range(0, len(body), 9):
            await asyncio.sleep(0.6)
            writer.write(body[place : place + 9])
        writer.close()

    async with relaying_bytes(slow) as handler:
        pieces = await answers(handler, job_input)
    assert "error" not in pieces[-1]
    assert "choices" in pieces[0]


async def test_a_caller_who_takes_nothing_for_the_stall_timeout_loses_nothing() -> None:
    """Rule: the stall timeout counts while the worker waits for the engine, and not while the engine waits for the caller."""
    frame = b'data: {"choices":[],"filling":"' + b"x" * 65000 + b'"}\n\n'
    count = 200
    all_sent = asyncio.Event()

    async def eager(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for _ in range(count):
            writer.write(frame)
            await writer.drain()
        writer.write(b"data: [DONE]\n\n")
        all_sent.set()
        writer.close()

    async with relaying_bytes(eager) as handler:
        stream = handler.answer({"id": "job", "input": STREAM})
        pieces = [await anext(stream)]
        await asyncio.sleep(2.5)
        assert not all_sent.is_set()
        pieces += [piece async for piece in stream]
    text = "".join(pieces)
    assert (text.count("filling"), text.endswith("data: [DONE]\n\n")) == (count, True)
