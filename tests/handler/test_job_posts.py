"""Posting to the job API when it refuses, drops, stays silent or is not there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.http1 import Client, Target
from handler.job_api import Addresses, JobPosts, RetryPolicy
from handler.json_text import to_json
from tests.strategies import SETTINGS
from tools.serve.job_server import MAX_CHUNK_BYTES, Fault, JobServer
from tools.serve.platform_job import Job

pytestmark = pytest.mark.anyio

PIECE = RetryPolicy(total=10, silence=0.6, after_silence=False, to_the_end=False)
RESULT = RetryPolicy(total=20, silence=0.6, after_silence=True, to_the_end=True)


@pytest.fixture
async def server() -> AsyncIterator[JobServer]:
    """A server without a worker: what is posted is what the test posts."""
    async with JobServer() as running:
        yield running


@contextlib.contextmanager
def posting_to(server: JobServer, job: str, **policies: RetryPolicy) -> Iterator[JobPosts]:
    """The posts of one job."""
    environment = server.environment("w")
    client = Client(Target.parse(server.url), headers={"Authorization": server.api_key})
    try:
        yield JobPosts(client, client, job, Addresses.read(environment), **policies)
    finally:
        client.close()


async def deliver(server: JobServer, pieces: list[Any], *, piece: RetryPolicy = PIECE, result: RetryPolicy = RESULT) -> Job:
    """Stream and end one job."""
    job = server.submit({})
    with posting_to(server, job.id, piece=piece, result=result) as posts:
        for value in pieces:
            await posts.piece(value)
        await posts.result()
    return job


PIECES = [f"data: {number}\n\n" for number in range(12)]


@pytest.mark.parametrize("status", [None, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("kind", ["job-stream", "job-done"])
async def test_what_is_refused_or_dropped_is_posted_again_in_order_and_once(server: JobServer, status: int | None, kind: Any) -> None:
    server.faults[kind] = Fault(times=1, skip=4 if kind == "job-stream" else 0, status=status)
    job = await deliver(server, PIECES)
    assert job.stream == PIECES
    assert (job.status, job.done_count, job.result) == ("COMPLETED", 1, {"output": PIECES, "isStream": True})
    assert len(server.refusals) == 1
    assert not server.problems


async def test_pauses_between_tries_grow(server: JobServer) -> None:
    server.faults["job-stream"] = Fault(times=3, status=500)
    job = await deliver(server, ["one"])
    times = [*(refusal.at for refusal in server.refusals), job.arrivals[0]]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    for pause, middle in zip(pauses, [0.25, 0.5, 1], strict=True):
        assert middle / 2 <= pause < middle * 1.5 + 0.5, pauses


async def test_retry_after_is_waited_for(server: JobServer) -> None:
    server.faults["job-stream"] = Fault(times=1, status=429, retry_after="1")
    job = await deliver(server, PIECES)
    assert 1 <= job.arrivals[0] - server.refusals[0].at < 4
    assert job.stream == PIECES


@pytest.mark.parametrize("retry_after", ["3600", "Tue, 01 Jan 2999 00:00:00 GMT"])
async def test_a_result_is_tried_once_more_when_its_time_is_over_however_long_the_server_asks_to_wait(
    server: JobServer, retry_after: str
) -> None:
    server.faults["job-done"] = Fault(times=1, status=429, retry_after=retry_after)
    job = await deliver(server, PIECES, result=replace(RESULT, total=1))
    assert (job.status, job.done_count, job.result) == ("COMPLETED", 1, {"output": PIECES, "isStream": True})
    assert job.ended_at
    assert 1 <= job.ended_at - server.refusals[0].at + 0.1 < 4


@pytest.mark.parametrize("retry_after", ["", "3600"])
async def test_a_result_that_is_never_taken_is_given_up_in_time(server: JobServer, retry_after: str) -> None:
    server.faults["job-done"] = Fault(times=1000, status=503, retry_after=retry_after)
    began = time.monotonic()
    job = await deliver(server, PIECES, result=replace(RESULT, total=1))
    assert 1 <= time.monotonic() - began < 5
    assert job.result is None
    assert server.refusals[-1].at - server.refusals[0].at > 0.8, "the last try is made when the time is over"
    assert len(server.refusals) == 2 or not retry_after


async def test_a_server_that_asks_for_more_time_than_there_is_ends_the_stream(server: JobServer) -> None:
    server.faults["job-stream"] = Fault(times=1, skip=1, status=503, retry_after="3600")
    began = time.monotonic()
    job = await deliver(server, PIECES)
    assert time.monotonic() - began < 5
    assert (job.stream, job.result) == (PIECES[:1], {"output": PIECES, "isStream": True})


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413])
async def test_a_piece_that_is_refused_for_good_ends_the_stream_but_loses_nothing(server: JobServer, status: int) -> None:
    server.faults["job-stream"] = Fault(times=1, skip=3, status=status)
    job = await deliver(server, PIECES)
    assert job.stream == PIECES[:3], "no hole: what comes after the lost piece is not streamed"
    assert job.result == {"output": PIECES, "isStream": True}
    assert len(server.refusals) == 1, "it is not asked again"


async def test_a_server_that_never_takes_a_piece_is_given_up_in_time(server: JobServer) -> None:
    server.faults["job-stream"] = Fault(times=1000, skip=2, status=503)
    began = time.monotonic()
    job = await deliver(server, PIECES, piece=replace(PIECE, total=1.2, silence=1))
    assert time.monotonic() - began < 4
    assert job.stream == PIECES[:2]
    assert job.result == {"output": PIECES, "isStream": True}


@pytest.mark.parametrize("kept", [True, False])
async def test_a_piece_met_by_silence_is_not_posted_again_since_it_may_have_been_kept(server: JobServer, kept: bool) -> None:
    server.faults["job-stream"] = Fault(times=1, skip=3, silence=1.5, delivered=kept)
    job = await deliver(server, PIECES)
    assert job.stream == PIECES[: 4 if kept else 3]
    assert job.result == {"output": PIECES, "isStream": True}


async def test_a_piece_whose_answer_alone_was_lost_comes_twice_as_a_whole_and_the_result_holds_it_once(server: JobServer) -> None:
    """The one duplicate that the API leaves no way to avoid (rule D5)."""
    server.faults["job-stream"] = Fault(times=1, skip=3, delivered=True)
    job = await deliver(server, PIECES)
    assert job.stream == [*PIECES[:4], *PIECES[3:]]
    assert job.result == {"output": PIECES, "isStream": True}


@pytest.mark.parametrize("kept", [True, False])
async def test_a_result_is_posted_again_after_silence_too(server: JobServer, kept: bool) -> None:
    server.faults["job-done"] = Fault(times=1, silence=1.5, delivered=kept)
    job = await deliver(server, PIECES)
    assert (job.status, job.result) == ("COMPLETED", {"output": PIECES, "isStream": True})
    assert job.done_count == 1 + kept


async def test_a_result_that_the_server_finds_too_large_becomes_an_error_that_says_so(server: JobServer) -> None:
    server.faults["job-done"] = Fault(times=1, status=413)
    job = await deliver(server, ["x" * 5000])
    assert job.status == "FAILED"
    assert job.result
    error = json.loads(job.result["error"])["error"]
    assert (error["code"], error["type"]) == ("output_too_large", "server_error")
    assert "5016 bytes" in error["message"]


async def test_a_server_that_comes_back_gets_everything(server: JobServer) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    late = JobServer()
    late.port = port
    job = late.submit({})
    with posting_to(late, job.id) as posts:
        posting = asyncio.ensure_future(posts.piece("early"))
        await asyncio.wait({posting}, timeout=0.5)
        assert not posting.done()
        async with late:
            await posting
            assert await posts.result()
    assert (job.stream, job.result) == (["early"], {"output": ["early"], "isStream": True})


async def test_a_post_in_its_pause_can_be_cancelled(server: JobServer) -> None:
    server.faults["job-stream"] = Fault(times=100, status=500)
    posting = asyncio.ensure_future(deliver(server, PIECES))
    while len(server.refusals) < 2:  # noqa: ASYNC110  # the server rings no bell for a refusal
        await asyncio.sleep(0.01)
    posting.cancel()
    await asyncio.wait({posting}, timeout=2)
    assert posting.cancelled()


async def test_text_over_one_megabyte_is_cut_between_frames(server: JobServer) -> None:
    frames = [f'data: {{"choices":[{{"text":"{number}{chr(34) * 20_000}é"}}]}}\n\n' for number in range(100)]
    job = await deliver(server, ["".join(frames)])
    assert len(job.stream) > 1
    assert "".join(job.stream) == "".join(frames)
    assert all(part.endswith("\n\n") for part in job.stream)
    assert not server.problems, "no chunk was too large"


async def test_a_single_frame_over_one_megabyte_comes_in_parts_that_are_the_frame(server: JobServer) -> None:
    text = "data: small\n\n" + "data: " + "日\\" * 700_000 + "\n\n" + "data: [DONE]\n\n"
    job = await deliver(server, [text, "after"])
    assert "".join(job.stream) == text + "after"
    assert all(len(json.dumps({"output": part}, ensure_ascii=False).encode()) <= MAX_CHUNK_BYTES for part in job.stream)
    assert not server.problems


async def test_a_value_over_one_megabyte_is_part_of_the_result_alone(server: JobServer) -> None:
    large = {"data": "x" * MAX_CHUNK_BYTES}
    job = await deliver(server, [large])
    assert (job.stream, job.result) == ([], {"output": [large], "isStream": True})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
ANYTHING = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.complex_numbers() | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


@SETTINGS
@given(JSON)
def test_a_json_value_is_posted_as_it_is(value: Any) -> None:
    """Rule D6, for what JSON has a form for."""
    assert json.loads(to_json(value)) == value


@SETTINGS
@given(ANYTHING)
def test_whatever_is_yielded_becomes_json_in_utf_8(value: Any) -> None:
    """Rule D6: every body is JSON in UTF-8."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(to_json(value).decode("utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "posted"),
    [
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("\ud83d\ude00", "\U0001f600"),
        ({"\ud83d": "a"}, {"\ufffd": "a"}),
        ([math.nan, math.inf, -math.inf, 1.5], [None, None, None, 1.5]),
        ({"big": 10**4000, "too big": 10**5000}, {"big": 10**4000, "too big": None}),
        ({1: object(), "b": (1, b"x")}, {"1": None, "b": [1, None]}),
    ],
    ids=["half-pair", "pair-in-halves", "key", "not-finite", "huge", "no-json"],
)
def test_what_json_has_no_form_for_is_replaced(value: Any, posted: Any) -> None:
    assert json.loads(to_json(value)) == posted


def test_a_value_without_end_of_nesting_is_cut_off() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert to_json(value) == b"[" * 200 + b"null" + b"]" * 200
