"""Taking jobs from a job API that fails, floods, hands out what cannot be read, or is left at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler import job_api
from handler.errors import InvalidJob
from handler.job_api import JobPoll, read_jobs
from tests.handler.played import playing
from tests.strategies import SETTINGS
from tools.serve.job_server import Fault, JobServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[JobServer]:
    async with JobServer() as running:
        yield running


@contextlib.asynccontextmanager
async def distant(port: int, seconds: float) -> AsyncIterator[int]:
    """A port behind which another one lies, so many seconds away; the end of what is sent is passed on like the rest."""
    ends, carrying = list[asyncio.StreamWriter](), list[asyncio.Task[None]]()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, RuntimeError):
            while data := await reader.read(65536):
                loop.call_later(seconds, writer.write, data)
            await asyncio.sleep(seconds)
            if writer.can_write_eof():
                writer.write_eof()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        ends.extend((writer, far_writer))
        carrying.extend(asyncio.ensure_future(task) for task in (carry(reader, far_writer), carry(far_reader, writer)))

    listener = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for end in ends:
            end.close()
        await asyncio.gather(*carrying)


@contextlib.asynccontextmanager
async def polling_at(port: int) -> AsyncIterator[JobPoll]:
    with contextlib.closing(JobPoll(lambda _: f"http://127.0.0.1:{port}/job-take/w?a=b", {})) as entered:
        yield entered


@contextlib.asynccontextmanager
async def taker(server: JobServer, port: int = 0) -> AsyncIterator[JobPoll]:
    def url(room: int) -> str:
        route = "job-take" if room == 1 else "job-take-batch"
        return f"http://127.0.0.1:{port or server.port}/v2/{server.endpoint}/{route}/w?gpu=FAKE&batch_size={room}"

    poll = JobPoll(url, {"Authorization": server.api_key})
    try:
        yield poll
    finally:
        poll.close()


@pytest.mark.parametrize("seed", range(4))
async def test_no_job_is_lost_however_leaving_and_handing_out_meet(server: JobServer, seed: int) -> None:
    """What the server hands out while the poll is given up arrives, or it is not handed out; the way there takes 20 ms."""
    draw, outcomes = random.Random(seed), list[bool]()

    async def leave_as_a_job_comes(port: int) -> None:
        async with taker(server, port) as entered:
            polling = asyncio.ensure_future(entered.jobs(4))
            await asyncio.sleep(0.12)
            wait = draw.uniform(-0.06, 0.06)
            asyncio.get_running_loop().call_later(max(0, -wait), entered.leave)
            await asyncio.sleep(max(0, wait))
            job = server.submit({}, id=f"{seed}-{len(outcomes)}")
            got = {one["id"] for one in await polling}
            handed_out = job.status == "IN_PROGRESS"
            assert (job.id in got) == handed_out, f"{job}, the taker got {got}; seed {seed}"
            outcomes.append(handed_out)
            server.stop(job.id)

    async with distant(server.port, 0.02) as port:
        for _ in range(20):
            await leave_as_a_job_comes(port)
    assert set(outcomes) == {True, False}, "both ways were met"


async def test_leaving_an_idle_poll_takes_no_time_and_no_later_job(server: JobServer) -> None:
    async with taker(server) as entered:
        polling = asyncio.ensure_future(entered.jobs(1))
        await server.wait_worker(5)
        began = time.monotonic()
        entered.leave()
        assert await polling == []
        assert time.monotonic() - began < 0.5
        await server.wait_idle(5)
        job = server.submit({})
        assert await entered.jobs(1) == []
    assert job.status == "IN_QUEUE"


async def test_a_server_that_ignores_that_nobody_waits_is_left_within_two_seconds() -> None:
    never = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await never.wait()
        writer.close()

    asked = asyncio.Event()
    async with playing(hold) as port, polling_at(port) as entered:
        polling = asyncio.ensure_future(entered.jobs(1))
        await asyncio.wait_for(asked.wait(), 5)
        began = time.monotonic()
        entered.leave()
        assert await polling == []
        assert time.monotonic() - began < 2


@contextlib.asynccontextmanager
async def handing_out(begins: float, ends: float) -> AsyncIterator[tuple[JobPoll, asyncio.Event, list[bool]]]:
    """A taker of the one job of a server, whose answer begins and ends so many seconds after the poll; when it has been asked, and
    whether the taker had closed its side by the time that half of the answer was sent."""
    body, asked, closed, left = b'{"id": "a", "input": {}}', asyncio.Event(), list[bool](), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await asyncio.sleep(begins)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:10])
        await asyncio.wait({leaving}, timeout=ends - begins)
        closed.append(reader.at_eof())
        writer.write(body[10:])
        writer.close()

    leaving = asyncio.ensure_future(left.wait())
    async with playing(answer) as port, polling_at(port) as entered:
        yield entered, asked, closed
    left.set()
    await leaving


@pytest.mark.parametrize("why", ["leaving", "poll over"])
@pytest.mark.parametrize("begins", [0.0, 0.5], ids=["begun before", "begins within the last words"])
async def test_a_job_that_is_being_received_as_its_poll_ends_is_received_whole(
    begins: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_api, "LAST_WORDS", 20)
    if why == "poll over":
        monkeypatch.setattr(job_api, "POLL_LIMIT", 0.25)
    async with handing_out(begins, 1.6) as (entered, asked, closed):
        polling = asyncio.ensure_future(entered.jobs(1))
        await asked.wait()
        if why == "leaving":
            asyncio.get_running_loop().call_later(0.25, entered.leave)
        assert await polling == [{"id": "a", "input": {}}]
        assert closed == [begins > 0], "a server that is answering is not told that nobody waits"


async def test_an_answer_that_never_ends_is_given_up_and_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(job_api, "RECEIVING_LIMIT", 0.2)
    async with handing_out(0, 20) as (entered, asked, _):
        polling = asyncio.ensure_future(entered.jobs(1))
        await asked.wait()
        asyncio.get_running_loop().call_later(0.2, entered.leave)
        began = time.monotonic()
        assert await polling == []
        assert time.monotonic() - began < 5
    assert "did not arrive within 0.2 s; jobs that it held are lost" in caplog.text


async def test_a_poll_that_takes_too_long_is_ended_without_loss_and_asked_again(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_api, "POLL_LIMIT", 0.2)
    async with taker(server) as entered:
        assert await entered.jobs(1) == []
        await server.wait_idle(5)
        polling = asyncio.ensure_future(entered.jobs(1))
        await server.wait_worker(5)
        job = server.submit({"a": 1})
        assert await polling == [{"id": job.id, "input": {"a": 1}}]


@pytest.mark.parametrize("status", [None, 401, 500])
async def test_polls_that_fail_are_repeated_with_growing_pauses_and_told_once(
    server: JobServer, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "handler.job_api")
    server.faults["job-take"] = Fault(times=3, status=status)
    job = server.submit({})
    async with taker(server) as entered:
        found = list[dict[str, Any]]()
        while not found:
            found = await entered.jobs(1)
    assert found == [{"id": job.id, "input": {}}]
    assert job.taken_at
    times = sorted([*(refusal.at for refusal in server.refusals), job.taken_at])
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    for pause, middle in zip(pauses, [0.25, 0.5, 1], strict=True):
        assert middle / 2 <= pause < middle * 1.5 + 0.5, pauses
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, told
    assert "job-take fails" in told[0]
    assert told[1] == "job-take works again, after 3 failures"


async def test_a_change_of_the_failure_is_told(server: JobServer, caplog: pytest.LogCaptureFixture) -> None:
    async with taker(server) as entered:
        for status in (500, 500, 503):
            server.faults["job-take"] = Fault(times=1, status=status)
            assert await entered.jobs(1) == []
    told = [record.getMessage() for record in caplog.records]
    assert [message[-3:] for message in told] == ["500", "503"]


async def test_a_429_is_waited_for_as_long_as_the_server_says(server: JobServer) -> None:
    server.faults["job-take"] = Fault(times=1, status=429, retry_after="1")
    job = server.submit({})
    async with taker(server) as entered:
        assert await entered.jobs(1) == []
        assert await entered.jobs(1)
    assert job.taken_at
    assert 1 <= job.taken_at - server.refusals[0].at < 3


async def test_a_pause_ends_when_the_worker_leaves(server: JobServer) -> None:
    server.faults["job-take"] = Fault(times=1, status=429, retry_after="60")
    async with taker(server) as entered:
        polling = asyncio.ensure_future(entered.jobs(1))
        await asyncio.wait({polling}, timeout=0.3)
        entered.leave()
        assert await asyncio.wait_for(polling, 2) == []


async def test_a_server_that_holds_no_poll_is_not_flooded() -> None:
    async with JobServer(poll_s=0) as server, taker(server) as entered:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert await entered.jobs(1) == []
        assert 5 < len(server.takes) <= 21


def test_batch_and_single_answers_are_read() -> None:
    assert read_jobs(b'{"id": "a", "input": {}, "webhook": "https://x"}') == [{"id": "a", "input": {}}]
    assert read_jobs(b'[{"id": "a", "input": 1}, {"id": 7, "input": null, "batchId": "b"}]') == [
        {"id": "a", "input": 1},
        {"id": "7", "input": None, "batchId": "b"},
    ]
    assert read_jobs(b"[]") == []


def test_what_has_no_id_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    assert read_jobs(b'[{"input": {}}, 7, null, {"id": "", "input": {}}, {"id": "a", "input": {}}]') == [{"id": "a", "input": {}}]
    assert "4 of 5 jobs came without an id" in caplog.text


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "says", "code"),
    [
        ('{"id": "x"}', "input: missing", "invalid_value"),
        (f'{{"id": "x", "input": {DEEP}}}', "input: nested deeper than 200 levels", "too_deep"),
        (f'{{"id": "x", "input": {{"a": {{"b": {DEEP}, "c": 1}}}}}}', "input: nested deeper than 200 levels", "too_deep"),
        (json.dumps({"id": "x", "input": {"prompt": "é" * 11_000_000}}), "expected at most 20971520", "too_large"),
    ],
    ids=["missing", "deep", "deep-inside", "large"],
)
def test_an_input_that_cannot_be_used_says_why_and_leaves_its_neighbours_alone(text: str, says: str, code: str) -> None:
    refused, fine = read_jobs(f'[{text}, {{"id": "y", "input": {{"deep": "[[[", "prompt": "p"}}}}]'.encode())
    assert (refused["id"], fine) == ("x", {"id": "y", "input": {"deep": "[[[", "prompt": "p"}})
    assert isinstance(refused["input"], InvalidJob)
    assert says in str(refused["input"])
    assert (refused["input"].param, refused["input"].code) == ("input", code)


def test_brackets_and_quotes_in_texts_are_not_levels() -> None:
    tricky: Any = {"id": "x", "input": {"a": '\\"[[[[{' * 100, '"[\\': ["]}" * 300, '\\\\"']}}
    assert read_jobs(json.dumps(tricky).encode()) == [tricky]


@SETTINGS
@given(st.text('"\\[]{}n,'), st.text('"\\[]{}n,'))
def test_what_stands_in_texts_is_no_level_wherever_a_text_ends(first: str, second: str) -> None:
    """Rule: levels are those of arrays and objects; a text may hold any sign, and one without an end makes the answer no JSON."""
    job, levels = {"id": "x", "input": {first: [second, [[]] * 250, {second: first}]}}, "[" * 300 + "]" * 300
    assert read_jobs(json.dumps(job).encode()) == [job]
    [deep, fine] = read_jobs(f'[{{"id": "x", "input": [{json.dumps(first)}, {levels}, {json.dumps(second)}]}}, {json.dumps(job)}]'.encode())
    assert isinstance(deep["input"], InvalidJob)
    assert fine == job
    with pytest.raises(ValueError, match=r"."):
        read_jobs(f'{{"id": "x", "input": [{levels}, {json.dumps(first + second)[:-1]}'.encode())


@pytest.mark.parametrize("text", ['{"a": "b"}\n', '"\n', "[\\"], ids=["braces", "quotes", "backslashes"])
def test_a_large_text_full_of_signs_is_read_about_as_fast_as_json_is(text: str) -> None:
    """It is read on the loop that posts what all jobs yield."""
    body = json.dumps({"id": "x", "input": {"prompt": text * (4_000_000 // len(text)), "levels": [[]] * 250}}).encode()

    def seconds(read: Callable[[bytes], Any]) -> float:
        began = time.process_time()
        read(body)
        return time.process_time() - began

    plain, ours = (min(seconds(read) for _ in range(3)) for read in (json.loads, read_jobs))
    assert ours < 8 * plain


def test_two_hundred_levels_are_taken_and_one_more_is_not() -> None:
    at_most = "[" * 200 + "]" * 200
    [job] = read_jobs(f'[{{"id": "x", "input": {at_most}}}]'.encode())
    assert json.dumps(job["input"]) == at_most
    [job] = read_jobs(f'[{{"id": "x", "input": [{at_most}]}}]'.encode())
    assert isinstance(job["input"], InvalidJob)


def test_numbers_that_python_does_not_read_become_infinite() -> None:
    [job] = read_jobs(f'{{"id": "x", "input": {{"seed": {"7" * 5000}, "n": NaN}}}}'.encode())
    assert job["input"]["seed"] == float("inf")


@pytest.mark.parametrize("body", [b"nonsense", b"\xff", b"{", b"[" * 100_000, b'["' + b"[" * 300])
def test_an_answer_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_jobs(body)
