"""An engine that serves and then fails: how running jobs end, how soon the worker leaves, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.handler.faults.case import Case, Row, error_of
from tests.handler.worker_process import cpu_engine
from tests.twins.faulty_engine import Plan
from tools.serve.job_server import JobServer
from tools.serve.platform_job import Job

pytestmark = pytest.mark.anyio

Table = Callable[[Row], None]

FIRST = ("--spare", "1")
"""The worker's own question whether the engine is ready meets no fault."""

ENDLESS = ("--synthetic", "--tokens-per-second", "20", "--tokens", "1000")
STALL = {"REQUEST_STALL_TIMEOUT": "1"}
NEVER = {"x_replay_case": "base_err_min_tokens_neg"}
"""The recorded request that FastDeploy never answered."""


def chat(**body: Any) -> dict[str, Any]:
    return {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [{"role": "user", "content": "Hello"}], **body}}


def last_frame(job: Job) -> dict[str, Any]:
    """The error that the readers of a broken stream saw last."""
    error: dict[str, Any] = json.loads(job.stream[-1].removeprefix("data: "))["error"]
    return error


ALONE = {
    "empty-200": "200 without a body",
    "cut-stream": "closes the connection before [DONE]",
    "error-mid-stream": "a traceback, then [DONE]",
    "never-answer": "never answers",
}


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("empty-200", "engine_died", "broke off its answer"),
        ("cut-stream", "engine_died", "broke off its answer"),
        ("error-mid-stream", None, "the worker process died"),
        ("never-answer", "engine_timeout", "sent nothing for 1 s (REQUEST_STALL_TIMEOUT)"),
    ],
)
async def test_a_bad_answer_fails_its_job_once_with_the_cause_and_the_worker_lives_on(
    tmp_path: Path, jobs: JobServer, table: Table, fault: str, code: str | None, words: str
) -> None:
    async with Case(tmp_path, Plan(), STALL, {"PORT": ""}, jobs.environment(), replay=(*FIRST, "--fault", fault)) as worker:
        await jobs.wait_worker(30)
        began = time.monotonic()
        whole, stream = jobs.submit(chat()), jobs.submit(chat(stream=True))
        for job in (whole, stream):
            await job.wait_done(10)
            error = error_of(job)
            assert error["code"] == code, error
            assert words in error["message"]
            assert ".py" not in json.dumps(job.result)
        seconds = time.monotonic() - began
        if stream.stream:
            assert last_frame(stream) == error_of(stream), "its readers saw the same error"
        models = jobs.submit({"openai_route": "/v1/models", "openai_input": {}})
        assert "error" not in await models.wait_done(10)
        worker.signal(signal.SIGTERM)
        await worker.ended(6, code=0)
        assert worker.starts == 1
    table(Row(fault=f"an answer: {fault}", alone=ALONE[fault], worker="the job fails, the worker lives on", seconds=seconds))


async def test_stalled_requests_in_a_row_end_the_worker_and_a_good_answer_between_them_does_not(tmp_path: Path, table: Table) -> None:
    fatal = {"REQUEST_STALLS_FATAL": "2"}
    async with Case(tmp_path, Plan(), STALL, fatal) as worker, aiohttp.ClientSession() as session:
        await worker.serves()
        assert (await worker.ask(session, **NEVER))[0] == 504
        assert (await worker.ask(session))[0] == 200
        began = time.monotonic()
        for count in (1, 2):
            status, answer = await worker.ask(session, **NEVER)
            assert (status, answer["error"]["code"]) == (504, "engine_timeout")
            assert worker.process.returncode is None, count
        await worker.ended(5)
        seconds = time.monotonic() - began
        assert (
            "sent nothing for 1 s (REQUEST_STALL_TIMEOUT) to 2 requests in a row (REQUEST_STALLS_FATAL) while it was needed"
            in worker.output
        )
    table(Row(fault="2 requests in a row unanswered (limit 1 s)", alone="never answers", worker="504 each, exit 1", seconds=seconds))


async def test_a_frozen_engine_is_given_up_though_it_still_lists_its_models(tmp_path: Path, table: Table) -> None:
    limits = {"REQUEST_STALLS_FATAL": "2"}
    async with Case(tmp_path, Plan(), STALL, limits, replay=(*FIRST, "--fault", "freeze")) as worker, aiohttp.ClientSession() as session:
        await worker.serves()
        began = time.monotonic()
        assert (await worker.ask(session))[0] == 504
        async with session.get(f"{worker.url}/v1/models") as models:
            assert models.status == 200
        assert (await worker.ask(session))[0] == 504
        await worker.ended(5)
        seconds = time.monotonic() - began
    table(Row(fault="freeze (limit 2 x 1 s)", alone="health 404 after 30 s, requests wait", worker="exit 1", seconds=seconds))


async def test_requests_that_wait_while_others_get_answers_are_no_sign_of_death(tmp_path: Path, table: Table) -> None:
    limits = {"REQUEST_STALLS_FATAL": "1"}
    async with Case(tmp_path, Plan(), STALL, limits, replay=("--event-delay", "0.15")) as worker, aiohttp.ClientSession() as session:
        await worker.serves()
        began = time.monotonic()
        running = asyncio.create_task(worker.ask(session))
        waiting = await asyncio.gather(*(worker.ask(session, **NEVER) for _ in range(3)))
        assert [status for status, _ in waiting] == [504] * 3
        assert not running.done()
        assert (await running)[0] == 200
        seconds = time.monotonic() - began
        assert worker.process.returncode is None
    table(Row(fault="a full engine queue (limit 1 s)", alone="answers later", worker="504 to those, lives on", seconds=seconds))


@pytest.mark.parametrize(
    ("crash", "alone", "says"),
    [
        ("interrupt", "ends with code 0 in 4 to 13 s (here 3)", "ended with exit code 0"),
        ("abort", "2.6: may abort", "was killed by signal 6 (SIGABRT)"),
    ],
)
async def test_a_rank_that_dies_while_serving_fails_the_job_and_ends_the_worker(
    tmp_path: Path, jobs: JobServer, table: Table, crash: Any, alone: str, says: str
) -> None:
    async with Case(tmp_path, Plan(crash=crash), {"PORT": ""}, jobs.environment(), replay=(*ENDLESS, "--term-delay", "2")) as worker:
        job = jobs.submit(chat(stream=True))
        await job.wait_stream(2, 30)
        began = time.monotonic()
        worker.kill("rank")
        await job.wait_done(5)
        assert error_of(job)["code"] == "engine_died"
        await worker.ended(6)
        seconds = time.monotonic() - began
        assert f"the fastdeploy engine {says} while it was needed" in worker.output
        assert worker.starts == 1
    table(Row(fault=f"the rank dies while serving: {crash}", alone=alone, worker="the job fails, exit 1", seconds=seconds))


async def test_an_engine_that_closes_its_port_and_lives_on_is_ended_with_the_next_job(
    tmp_path: Path, jobs: JobServer, table: Table
) -> None:
    case = Case(tmp_path, Plan(crash="interrupt"), {"PORT": ""}, jobs.environment(), replay=(*ENDLESS, "--term-delay", "50"))
    async with case as worker:
        first = jobs.submit(chat(stream=True))
        await first.wait_stream(2, 30)
        worker.kill("rank")
        await first.wait_done(5)
        second = jobs.submit(chat())
        began = time.monotonic()
        await second.wait_done(5)
        assert error_of(second)["code"] == "engine_died"
        assert "refused a connection" in error_of(second)["message"]
        await worker.ended(5)
        seconds = time.monotonic() - began
    alone = "2.6: may close its port and live on (180 s seen)"
    table(Row(fault="the rank dies while serving: no end", alone=alone, worker="the next job fails, exit 1", seconds=seconds))


async def test_a_killed_engine_whose_orphan_answers_health_ends_the_worker_with_all_it_left(
    tmp_path: Path, jobs: JobServer, table: Table
) -> None:
    async with Case(tmp_path, Plan(), {"PORT": ""}, jobs.environment(), replay=(*ENDLESS, "--fault", "orphan")) as worker:
        job = jobs.submit(chat(stream=True))
        await job.wait_stream(2, 30)
        roles = {worker.pid(role) for role in ("server", "queue-manager", "launcher", "rank", "gunicorn")}
        assert roles <= {process.pid for process in worker.living()}
        began = time.monotonic()
        worker.kill("server")
        await job.wait_done(5)
        assert "was killed by signal 9 (SIGKILL) while it was needed" in error_of(job)["message"]
        await worker.ended(3)
        seconds = time.monotonic() - began
        assert worker.starts == 1, "never started again after its first answer"
    alone = "orphans stay, health 200, GPU memory held"
    table(Row(fault="KILL of the main process", alone=alone, worker="the job fails, exit 1, all ended", seconds=seconds))


async def test_an_engine_that_ignores_term_is_killed_after_the_stop_timeout(tmp_path: Path, jobs: JobServer, table: Table) -> None:
    async with Case(tmp_path, Plan(), {"PORT": ""}, jobs.environment(), replay=("--fault", "ignore-term")) as worker:
        await jobs.wait_worker(30)
        worker.signal(signal.SIGTERM)
        seconds = await worker.ended(6, code=0)
        assert seconds > 1
    table(Row(fault="TERM ignored (ENGINE_STOP_TIMEOUT 1 s)", alone="lives on", worker="KILL, exit 0", seconds=seconds))


async def test_term_lets_running_requests_finish_within_the_grace_and_cuts_those_that_take_longer(tmp_path: Path, table: Table) -> None:
    async with Case(tmp_path, Plan(), {"HTTP_DRAIN_TIMEOUT": "2"}, replay=ENDLESS) as worker, aiohttp.ClientSession() as session:
        await worker.serves()
        short, long = (asyncio.create_task(frames(session, worker.url, max_tokens=count)) for count in (20, 1000))
        await worker.seen(2)
        worker.signal(signal.SIGTERM)
        seconds = await worker.ended(9, code=0)
        assert (await short).endswith("data: [DONE]\n\n")
        assert "[DONE]" not in await long
    table(Row(fault="TERM with running requests (grace 2 s)", alone="cuts them at once", worker="they finish, exit 0", seconds=seconds))


async def frames(session: aiohttp.ClientSession, url: str, **body: Any) -> str:
    """Read a stream to its end, however it ends."""
    found = b""
    question = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, **body}
    try:
        async with session.post(f"{url}/v1/chat/completions", json=question) as response:
            async for chunk in response.content.iter_any():
                found += chunk
    except aiohttp.ClientError:
        pass
    return found.decode()


@pytest.mark.parametrize("engine", ["cpu", "fastdeploy"])
async def test_a_killed_worker_takes_its_engine_along_within_3_s(tmp_path: Path, table: Table, engine: str) -> None:
    async with Case(tmp_path, Plan(), cpu_engine() if engine == "cpu" else {}) as worker:
        await worker.serves()
        assert worker.engine().pid in {process.pid for process in worker.living()}
        began = time.monotonic()
        worker.signal(signal.SIGKILL)
        while living := worker.living():
            assert time.monotonic() - began < 3, living
            await asyncio.sleep(0.02)
        seconds = time.monotonic() - began
        assert await worker.wait() == -signal.SIGKILL
    table(Row(fault=f"KILL of the worker, {engine} engine", alone="serves on", worker="its engine ends", seconds=seconds))


SECRET = "a secret of mine"
QUOTED: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": SECRET}]},
    {"messages": SECRET},
    {"messages": [{"role": "user", "content": SECRET}], "top_k": -9},
    {"messages": [{"role": "user", "content": SECRET}], "temperature": SECRET},
]
"""Requests of which an answer or an error may quote the prompt."""


@pytest.mark.parametrize("face", ["queue", "http"])
async def test_prompts_never_reach_the_workers_log(tmp_path: Path, jobs: JobServer, face: str) -> None:
    said = f"Request received: {{'messages': [{{'content': '{SECRET}'}}]}}\n"
    logs = {"api_server.log": said, "fastdeploy.log": said, "workerlog.0": "Loading Weights\n"}
    parts = [{"LOG_LEVEL": "DEBUG"}, *([{"PORT": ""}, jobs.environment()] if face == "queue" else [])]
    async with Case(tmp_path, Plan(logs=logs), *parts) as worker, aiohttp.ClientSession() as session:
        if face == "queue":
            ended = [await jobs.submit({"openai_route": "/v1/chat/completions", "openai_input": body}).wait_done(30) for body in QUOTED]
            assert ["error" in result for result in ended] == [False, True, True, True]
        else:
            await worker.serves()
            assert [(await worker.ask(session, **body))[0] for body in QUOTED] == [200, 400, 400, 400]
        worker.signal(signal.SIGTERM)
        await worker.ended(6, code=0)
        assert "workerlog.0: Loading Weights" in worker.output
        assert SECRET not in worker.output
