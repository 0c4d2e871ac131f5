"""The worker as RunPod's queue sees it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

import psutil
import pytest

from tests.handler.worker_process import Worker, aborted_at, cpu_engine, replayed_engine
from tools.serve.job_server import JobServer
from tools.serve.platform_job import Job

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "What is FastDeploy?"}]
CHAT = {"openai_route": "/v1/chat/completions", "openai_input": {"messages": MESSAGES, "temperature": 0, "max_tokens": 64}}


def chat(**body: Any) -> dict[str, Any]:
    return CHAT | {"openai_input": CHAT["openai_input"] | body}  # type: ignore[operator]


def chunks(pieces: list[str]) -> list[dict[str, Any]]:
    """The JSON of every frame in pieces of an OpenAI stream; fails on a piece that is not made of whole frames."""
    found = []
    for piece in pieces:
        assert piece.endswith("\n\n"), piece
        for frame in piece.removesuffix("\n\n").split("\n\n"):
            assert frame.startswith("data: "), frame
            if frame != "data: [DONE]":
                found.append(json.loads(frame.removeprefix("data: ")))
    return found


def text_of(stream: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in stream for choice in chunk.get("choices", []))


def forget_crossing(jobs: JobServer, job: Job) -> None:
    """Take one piece that was on its way when its job was stopped for no mistake."""
    crossed = [problem for problem in jobs.problems if (problem.kind, problem.job) == ("chunk-after-stop", job.id)]
    for problem in crossed[:1]:
        jobs.problems.remove(problem)


async def ends(process: psutil.Process, seconds: float) -> bool:
    """Whether a process ends within so many seconds; one that only waits to be reaped has."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_all_job_shapes_are_answered(engine_variables: dict[str, str], jobs: JobServer) -> None:
    async with Worker(engine_variables, jobs.environment()) as worker:
        whole = await jobs.submit(chat()).wait_done(30)
        [answer] = whole["output"]
        assert answer["object"] == "chat.completion"
        text = answer["choices"][0]["message"]["content"]
        assert text

        job = jobs.submit(chat(stream=True, stream_options={"include_usage": True}))
        streamed = await job.wait_done(10)
        assert streamed["output"] == job.stream, "the whole stream again at the end"
        assert job.stream[-1].endswith("data: [DONE]\n\n")
        found = chunks(job.stream)
        assert text_of(found) == text
        assert found[-1]["usage"]["completion_tokens"] > 0

        [models] = (await jobs.submit({"openai_route": "/v1/models", "openai_input": {}}).wait_done(10))["output"]
        assert models["object"] == "list"
        assert models["data"]

        [native] = (await jobs.submit({"messages": MESSAGES, "sampling_params": {"temperature": 0, "max_tokens": 64}}).wait_done(10))[
            "output"
        ]
        assert native["choices"] == [{"tokens": [text]}]
        assert native["usage"]["input"] > 0
        assert native["usage"]["output"] > 0

        job = jobs.submit({"messages": MESSAGES, "max_tokens": 64, "temperature": 0, "stream": True})
        pieces = (await job.wait_done(10))["output"]
        assert "".join(token for piece in pieces for choice in piece["choices"] for token in choice["tokens"]) == text
        assert [piece["usage"] for piece in pieces if "usage" in piece] == [native["usage"]]

        [health] = (await jobs.submit({"route": "/health"}).wait_done(10))["output"]
        assert health == {"status": 200}

        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert not worker.left_behind()


async def test_pieces_grow_as_the_request_asks(jobs: JobServer) -> None:
    jobs.latency_s = 0.25
    async with Worker(replayed_engine("--synthetic", "--tokens-per-second", "200", "--tokens", "100"), jobs.environment()):
        job = jobs.submit(chat(stream=True) | {"min_batch_size": 2, "max_batch_size": 20, "batch_size_growth_factor": 3})
        await job.wait_done(30)
        counts = [
            sum(1 for chunk in chunks([piece]) if any(choice["delta"].get("content") for choice in chunk["choices"]))
            for piece in job.stream
        ]
        assert sum(counts) == 64
        counts = [count for count in counts if count]
        assert max(counts) == 20
        assert all(count <= bound for count, bound in zip(counts, [2, 6, 18, *[20] * 50], strict=False)), counts


@pytest.mark.parametrize(
    ("job_input", "type_", "param"),
    [
        ("text", "invalid_request_error", "input"),
        ({}, "invalid_request_error", "input"),
        ({"openai_route": "/v1/chat/completions", "openai_input": {}}, "invalid_request_error", "openai_input"),
        ({"route": "/nope", "method": "GET"}, "invalid_request_error", "route"),
        (chat(stream=True) | {"max_batch_size": 0}, "invalid_request_error", "max_batch_size"),
    ],
    ids=["no-object", "empty", "no-body", "unknown-route", "bad-batch"],
)
async def test_a_failed_job_carries_an_openai_error_as_json_text(
    engine_variables: dict[str, str], jobs: JobServer, job_input: Any, type_: str, param: str | None
) -> None:
    async with Worker(engine_variables, jobs.environment()):
        result = await jobs.submit(job_input).wait_done(30)
        error = json.loads(result["error"])["error"]
        assert (error["type"], error["param"]) == (type_, param)
        assert error["message"]
        assert "Traceback" not in result["error"]


async def test_an_engine_killed_mid_stream_fails_the_job_and_ends_the_worker_within_3_s(
    engine_variables: dict[str, str], jobs: JobServer
) -> None:
    slow = {"REPLAY": engine_variables.get("REPLAY", "") + " --synthetic --tokens-per-second 20 --tokens 1000"}
    endless = chat(stream=True, max_tokens=2000, min_tokens=2000)
    async with Worker(engine_variables, slow, jobs.environment()) as worker:
        job = jobs.submit(endless)
        await job.wait_stream(3, 30)
        worker.remember_family()
        killed = time.monotonic()
        worker.engine().kill()
        result = await job.wait_done(10)
        error = json.loads(result["error"])["error"]
        assert error["code"] == "engine_died"
        assert "signal 9 (SIGKILL)" in error["message"]
        assert result["stopPod"] is True, "the platform is told not to use this worker again"
        assert json.loads(job.stream[-1].removeprefix("data: "))["error"]["code"] == "engine_died", "readers of the stream see it too"
        assert await worker.wait() == 1
        assert time.monotonic() - killed < 3
        assert not worker.left_behind()


async def test_an_engine_that_dies_idle_ends_the_worker(engine_variables: dict[str, str], jobs: JobServer) -> None:
    async with Worker(engine_variables, jobs.environment()) as worker:
        await jobs.wait_worker(30)
        worker.remember_family()
        killed = time.monotonic()
        worker.engine().kill()
        assert await worker.wait() == 1
        assert time.monotonic() - killed < 3
        assert not worker.left_behind()


async def test_a_cancelled_job_stops_the_engines_work(jobs: JobServer) -> None:
    async with Worker(replayed_engine("--synthetic", "--tokens-per-second", "20", "--tokens", "1000"), jobs.environment()) as worker:
        job = jobs.submit(chat(stream=True))
        await job.wait_stream(2, 30)
        jobs.stop(job.id)
        await aborted_at(worker.engine_url)
        assert job.done_count == 0
        forget_crossing(jobs, job)


async def test_term_lets_a_running_stream_finish(engine_variables: dict[str, str], jobs: JobServer) -> None:
    slow = {"REPLAY": engine_variables.get("REPLAY", "") + " --synthetic --tokens-per-second 30 --tokens 40"}
    async with Worker(engine_variables, slow, jobs.environment()) as worker:
        job = jobs.submit(chat(stream=True))
        await job.wait_stream(1, 30)
        worker.signal(signal.SIGTERM)
        result = await job.wait_done(20)
        assert "error" not in result
        assert result["output"][-1].endswith("data: [DONE]\n\n")
        assert await worker.wait() == 0
        assert not worker.left_behind()


async def test_an_idle_worker_leaves_within_two_seconds_of_term(jobs: JobServer) -> None:
    # Most of it is the end of the engine and of Python, which take longer where others want the same cores; a poll is held for 20 s.
    crowd = (os.getloadavg()[0] + 1) / (os.cpu_count() or 1)
    async with Worker(cpu_engine(), jobs.environment()) as worker:
        await jobs.wait_worker(30)
        asked = time.monotonic()
        worker.signal(signal.SIGTERM)
        await jobs.wait_idle(2)
        assert await worker.wait() == 0
        assert time.monotonic() - asked < min(10, 2 * max(1, crowd))
        assert not worker.left_behind()


async def test_term_while_the_engine_loads_leaves_nothing_behind(jobs: JobServer) -> None:
    async with Worker(replayed_engine("--fault", "hang-while-loading"), jobs.environment()) as worker:
        await worker.wait_line("Loading|loading|Waiting")
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 130
        assert not worker.left_behind()
        assert not jobs.takes


async def test_no_job_is_taken_before_the_engine_has_answered(jobs: JobServer) -> None:
    job = jobs.submit(chat())
    async with Worker(replayed_engine("--start-delay", "3"), jobs.environment()) as worker:
        await worker.wait_line("Application startup complete")
        assert not jobs.takes
        await job.wait_done(20)
        assert job.taken_at is not None
        assert job.taken_at - worker.started > 3


async def test_a_killed_worker_takes_its_engine_along(engine_variables: dict[str, str], jobs: JobServer) -> None:
    async with Worker(engine_variables, jobs.environment()) as worker:
        await jobs.wait_worker(30)
        engine = worker.engine()
        worker.signal(signal.SIGKILL)
        assert await ends(engine, 10), "the engine lives on"
