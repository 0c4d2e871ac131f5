"""A real worker, with a job API that fails: nothing taken is lost, and what is delivered is whole."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.handler.test_queue import MESSAGES, chat, chunks, forget_crossing, text_of
from tests.handler.worker_process import Worker, cpu_engine, replayed_engine
from tools.serve.job_server import Fault, JobServer
from tools.serve.platform_job import Job

pytestmark = pytest.mark.anyio

TOKENS = 60
STREAM = chat(stream=True, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[JobServer]:
    """One server and one worker for most tests of the module."""
    async with JobServer() as running:
        yield running


@pytest.fixture(scope="module")
async def worker(server: JobServer) -> AsyncIterator[Worker]:
    engine = replayed_engine("--synthetic", "--tokens-per-second", "100", "--tokens", str(TOKENS))
    async with Worker(engine, server.environment()) as started:
        await server.wait_worker(30)
        yield started
        started.signal(signal.SIGTERM)
        assert await started.wait() == 0
        assert not started.left_behind()
    assert not server.problems, server.problems


def text_in(pieces: list[str]) -> str:
    """The text of a stream; fails on a frame that is not whole."""
    return text_of(chunks(pieces))


def error_of(result: dict[str, Any]) -> dict[str, Any]:
    assert "Traceback" not in result["error"]
    error: dict[str, Any] = json.loads(result["error"])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def whole(job: Job) -> list[str]:
    """The streamed pieces of a job, which are also its result."""
    result = await job.wait_done(40)
    assert job.stream == result["output"], "no hole and no duplicate: the stream is the result"
    assert job.stream[-1].endswith("data: [DONE]\n\n")
    assert job.done_count == 1
    return job.stream


@pytest.mark.parametrize("status", [None, 429, 500, 503], ids=lambda status: str(status or "dropped"))
async def test_streams_are_whole_however_their_posts_fail(server: JobServer, worker: Worker, status: int | None) -> None:
    expected = text_in(await whole(server.submit(STREAM)))
    server.faults["job-stream"] = Fault(times=4, skip=3, status=status)
    server.faults["job-done"] = Fault(times=2, status=status)
    jobs = [server.submit(STREAM) for _ in range(4)]
    for pieces in await asyncio.gather(*map(whole, jobs)):
        assert text_in(pieces) == expected
    assert not server.faults


async def test_a_stream_that_cannot_be_delivered_has_its_whole_text_in_the_result(server: JobServer, worker: Worker) -> None:
    expected = text_in(await whole(server.submit(STREAM)))
    server.faults["job-stream"] = Fault(times=1, skip=3, status=404)
    job = server.submit(STREAM)
    result = await job.wait_done(20)
    assert job.stream == result["output"][:3]
    assert text_in(result["output"]) == expected
    await worker.wait_line(rf'"requestId": "{job.id}".*streams nothing more of this job.*404')


async def test_failing_polls_do_not_spin_and_are_told_once(server: JobServer, worker: Worker) -> None:
    server.faults["job-take"] = Fault(times=3, status=500)
    asked = len(server.refusals)
    job = server.submit({"route": "/health"})
    if job.taken_at is None:  # the poll that was open took it
        await job.wait_done(10)
    job = server.submit({"route": "/health"})
    await job.wait_done(20)
    assert len(server.refusals) - asked == 3
    await worker.wait_line("job-take works again, after 3 failures")
    assert sum("job-take fails" in line for line in worker.lines) == 1


ODD: list[tuple[Any, str | None, str]] = [
    ("text", None, "input"),
    (None, None, "input"),
    ([], None, "input"),
    (chat(stream="yes"), None, "stream"),
    ({"openai_route": "/v1/chat/completions", "openai_input": "text"}, None, "openai_input"),
    ({"openai_route": "/nope", "openai_input": {"a": 1}}, None, "openai_route"),
    ({"route": "/v1/chat/completions", "method": "PUT", "body": {"a": 1}}, None, "method"),
    ({"messages": MESSAGES, "tempreature": 1}, None, "tempreature"),
    (None, "", "input"),
    (None, "[" * 100_000 + "]" * 100_000, "input"),
    (None, '{"prompt": "p", "seed": ' + "7" * 5000 + "}", "seed"),
    (None, '{"prompt": "p", "temperature": NaN}', "temperature"),
    (None, '{"openai_route": "/v1/completions", "openai_input": {"prompt": "p", "top_p": -Infinity}}', "top_p"),
    (None, '{"prompt": "' + "é" * 11_000_000 + '"}', "input"),
]


async def test_every_odd_input_ends_its_job_with_an_error_that_names_the_field(server: JobServer, worker: Worker) -> None:
    jobs = [server.submit(value, text=text) for value, text, _ in ODD]
    fine = server.submit({"route": "/health"})
    for job, (value, text, field) in zip(jobs, ODD, strict=True):
        error = error_of(await job.wait_done(30))
        assert (error["type"] in {"invalid_request_error", "not_found_error"}, error["param"]) == (True, field), (
            value,
            str(text)[:60],
            error,
        )
        assert field in error["message"]
    assert (await fine.wait_done(10))["output"] == [{"status": 200}]


@pytest.mark.parametrize("outside", [True, False])
async def test_stream_beside_openai_input_is_ignored_and_in_it_counts(server: JobServer, worker: Worker, outside: bool) -> None:
    """Rule: `stream` belongs to the body where there is one, and one beside `openai_route` is ignored."""
    job = server.submit(chat(stream=not outside) | {"stream": outside})
    result = await job.wait_done(20)
    assert isinstance(result["output"][0], dict if outside else str)


async def test_lone_surrogates_and_huge_numbers_in_a_request_lose_no_job(server: JobServer, worker: Worker) -> None:
    texts = ["\ud83d", "a\udc00b", "\ud83d\ude00", "\x00\u2028"]
    jobs = [server.submit(chat(messages=[{"role": "user", "content": text}], seed=10**30, max_tokens=2)) for text in texts]
    jobs += [server.submit(chat(messages=[{"role": text, "content": "x"}], user=text, max_tokens=2)) for text in texts]
    for job in jobs:
        result = await job.wait_done(20)
        assert ("output" in result) != ("error" in result)
        json.dumps(result, ensure_ascii=False, allow_nan=False).encode()


async def test_an_error_after_frames_fails_the_job_and_is_the_streams_last_frame(jobs: JobServer) -> None:
    async with Worker(replayed_engine("--spare", "1", "--fault", "error-mid-stream"), jobs.environment()):
        job = jobs.submit(chat(stream=True))
        result = await job.wait_done(30)
        error = error_of(result)
        assert len(job.stream) > 1
        assert json.loads(job.stream[-1].removeprefix("data: ")) == {"error": error}
        assert job.status == "FAILED"


async def test_a_job_that_comes_as_the_worker_is_asked_to_leave_is_run_or_not_taken(jobs: JobServer) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for trial in range(4):
        async with Worker(cpu_engine(), jobs.environment()) as worker:
            await jobs.wait_worker(30)
            await asyncio.sleep(0.05)
            job = jobs.submit(chat(max_tokens=4))
            await asyncio.sleep(draw.choice([0, draw.uniform(0, 0.003)]))
            worker.signal(signal.SIGTERM)
            assert await worker.wait() == 0
            assert job.status in {"IN_QUEUE", "COMPLETED"}, f"{job}; seed {seed}, trial {trial}"
            late = jobs.submit({})
            jobs.stop(late.id)
            jobs.stop(job.id)


async def test_jobs_in_flight_are_finished_and_can_still_be_cancelled_after_term(jobs: JobServer) -> None:
    engine = replayed_engine("--synthetic", "--tokens-per-second", "20", "--tokens", "1000")
    async with Worker(engine, jobs.environment()) as worker:
        ending, endless = jobs.submit(chat(stream=True, max_tokens=30)), jobs.submit(chat(stream=True, max_tokens=1000))
        await asyncio.gather(ending.wait_stream(2, 30), endless.wait_stream(2, 30))
        worker.signal(signal.SIGTERM)
        await jobs.wait_idle(5)
        assert "error" not in await ending.wait_done(10)
        worker.signal(signal.SIGTERM)  # once more changes nothing
        assert endless.status == "IN_PROGRESS"
        jobs.stop(endless.id)
        assert await worker.wait(15) == 0, "far sooner than its 50 seconds of tokens"
        assert not worker.left_behind()
        forget_crossing(jobs, endless)


async def test_short_jobs_follow_each_other_without_a_pause(jobs: JobServer) -> None:
    """The SDK's own loop sleeps a second whenever all slots are taken: two slots do two jobs a second."""
    async with Worker(cpu_engine(), {"MAX_CONCURRENCY": "2"}, jobs.environment()):
        await jobs.submit({"route": "/health"}).wait_done(30)
        began = time.monotonic()
        many = [jobs.submit({"route": "/health"}) for _ in range(60)]
        await asyncio.gather(*(job.wait_done(30) for job in many))
        rate = 60 / (time.monotonic() - began)
        print(f"{rate:.0f} jobs/s at MAX_CONCURRENCY=2")
        assert rate > 10
        assert max(take.batch_size for take in jobs.takes) == 2
        waits = []
        for _ in range(10):
            await jobs.wait_worker(5)
            await asyncio.sleep(0.02)
            job = jobs.submit({"route": "/health"})
            await job.wait_done(10)
            assert job.ended_at
            waits.append(job.ended_at - job.submitted_at)
        print(f"submitted to its end: median {sorted(waits)[5] * 1000:.0f} ms")
        assert sorted(waits)[5] < 0.1
