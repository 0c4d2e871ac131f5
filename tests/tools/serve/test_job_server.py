"""The job server against the real SDK loop in a child process, and against requests that no SDK would send."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tools.serve.job_server import Fault, JobServer

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).with_name("sdk_worker.py")


class Worker:
    """The SDK in a child process, in a session of its own with its heartbeat process; its output is read in a thread."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout:
            for line in self.process.stdout:
                with self.changed:
                    self.lines.append(line.rstrip("\n"))
                    self.changed.notify_all()

    async def printed(self, text: str) -> bool:
        """Whether it prints this line within 5 s."""
        return await asyncio.to_thread(self._wait_for, text)

    def _wait_for(self, text: str) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: text in self.lines, 5)

    async def exit_code(self) -> int:
        """Wait for its end, and end what it left behind: after SIGKILL the SDK's heartbeat process goes on for ever."""
        code = await asyncio.to_thread(self.process.wait, 20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await asyncio.to_thread(self.thread.join, 5)
        return code


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[JobServer]:
    """One server and one worker for all tests of the module: importing the SDK takes 2 s."""
    async with JobServer(poll_s=0.5) as running:
        yield running


@pytest.fixture(scope="module")
async def worker(server: JobServer) -> AsyncIterator[Worker]:
    started = Worker(server.environment())
    await server.wait_worker(20)
    yield started
    started.process.terminate()
    assert await started.exit_code() == 0
    assert started.lines[-1] == "start returned"
    assert server.problems == []


@pytest.fixture
async def alone() -> AsyncIterator[JobServer]:
    """A server without a worker; the test posts by itself."""
    async with JobServer(poll_s=0.1) as running:
        yield running


async def test_a_streamed_job_arrives_value_by_value_and_ends_once(server: JobServer, worker: Worker) -> None:
    values: list[Any] = ["data: é\u2028\n\n", {"a": None}, "", 0, ["x"]]
    job = server.submit({"yield": values, "every_s": 0.02})
    assert [value async for value in job] == values
    result = await job.wait_done(5)
    assert result == {"output": values, "isStream": True}
    assert (job.status, job.done_count, job.worker, job.stream) == ("COMPLETED", 1, "worker", values)
    assert job.submitted_at <= (job.taken_at or 0) <= job.arrivals[0] < job.arrivals[-1] <= (job.ended_at or 0)
    assert job.arrivals[-1] - job.arrivals[0] >= 0.02 * 4 * 0.9


async def test_several_jobs_run_at_once_and_are_taken_in_batches(server: JobServer, worker: Worker) -> None:
    jobs = [server.submit({"yield": [number], "every_s": 0.3}) for number in range(4)]
    results = await asyncio.gather(*(job.wait_done(5) for job in jobs))
    assert [result["output"] for result in results] == [[0], [1], [2], [3]]
    taken = [take for take in server.takes if jobs[0].id in take.jobs]
    assert taken[0].batch_size > 1
    assert max(job.taken_at or 0 for job in jobs) < min(job.ended_at or 0 for job in jobs)


async def test_a_failing_job_has_an_error(server: JobServer, worker: Worker) -> None:
    job = server.submit({"yield": ["one"], "raise": "boom"}, id="my-id")
    result = await job.wait_done(5)
    assert (job.id, job.status, job.stream) == ("my-id", "FAILED", ["one"])
    assert result["error"].startswith("handler: boom")


async def test_a_stopped_job_is_cancelled_in_the_worker_and_never_done(server: JobServer, worker: Worker) -> None:
    job, other = server.submit({"yield": ["one"], "then_sleep_s": 60}), server.submit({"yield": ["a", "b"], "every_s": 0.2})
    await job.wait_stream(1, 5)
    server.stop(job.id)
    assert [value async for value in job] == ["one"]
    assert (await other.wait_done(5))["output"] == ["a", "b"]
    assert (job.status, job.done_count, job.result) == ("CANCELLED", 0, None)
    assert await worker.printed(f"cancelled {job.id}")
    with pytest.raises(TimeoutError, match=r"CANCELLED.*1 streamed, 0 job-done.*no job-done within 0"):
        await job.wait_done(0)


async def test_latency_is_paid_by_every_yield(server: JobServer, worker: Worker) -> None:
    server.latency_s = 0.05
    try:
        job = server.submit({"yield": list(range(5))})
        await job.wait_done(5)
    finally:
        server.latency_s = 0.0
    gaps = [later - earlier for earlier, later in zip(job.arrivals, job.arrivals[1:], strict=False)]
    assert min(gaps) >= 0.049


async def test_a_dropped_chunk_is_a_hole_and_a_500_is_retried(server: JobServer, worker: Worker) -> None:
    server.faults["job-stream"] = Fault(times=1)
    hole = server.submit({"yield": ["lost", "kept"]})
    assert (await hole.wait_done(5))["output"] == ["lost", "kept"]
    server.faults["job-done"] = Fault(times=1, status=500)
    retried = server.submit({"yield": []})
    assert await retried.wait_done(5) == {"output": [], "isStream": True}
    assert hole.stream == ["kept"]
    assert (retried.done_count, server.faults) == (1, {})


async def test_pings_carry_the_running_jobs(server: JobServer, worker: Worker) -> None:
    job = server.submit({"yield": [], "then_sleep_s": 1.2})
    ping = await server.wait_ping(lambda one: job.id in one.jobs, 5)
    assert (ping.worker, ping.query["runpod_version"]) == ("worker", "1.12.0")
    await job.wait_done(5)


async def test_a_worker_that_dies_while_polling_takes_no_job_with_it() -> None:
    async with JobServer(poll_s=20) as server:
        first = Worker(server.environment("first"))
        await server.wait_worker(20)
        os.kill(first.process.pid, signal.SIGKILL)
        assert await first.exit_code() == -signal.SIGKILL
        await server.wait_idle(5)
        job = server.submit({"yield": []})
        async with (
            aiohttp.ClientSession(headers={"Authorization": server.api_key}) as session,
            session.get(f"{server.url}/v2/endpoint/job-take/second?gpu=FAKE") as response,
        ):
            assert await response.json() == {"id": job.id, "input": {"yield": []}}
    assert job.worker == "second"


async def post(server: JobServer, kind: str, job: str, body: str, key: str | None = None) -> int:
    async with (
        aiohttp.ClientSession(headers={"Authorization": key or server.api_key}) as session,
        session.post(f"{server.url}/v2/endpoint/{kind}/w/{job}?gpu=FAKE&isStream=false", data=body.encode()) as response,
    ):
        return response.status


async def test_what_no_correct_worker_does_is_recorded(alone: JobServer) -> None:
    done, stopped = alone.submit({}), alone.submit({})
    assert await post(alone, "job-stream", "made-up", '{"output": 1}') == 404
    assert await post(alone, "job-done", done.id, '{"output": NaN}') == 200
    assert await post(alone, "job-done", done.id, '{"output": 2}') == 200
    assert await post(alone, "job-stream", done.id, '{"output": "late"}') == 200
    alone.stop(stopped.id)
    assert await post(alone, "job-stream", stopped.id, json.dumps({"output": "x" * 1_000_000})) == 200
    assert await post(alone, "job-done", stopped.id, "nonsense") == 200
    assert await post(alone, "job-done", stopped.id, "{}", key="other") == 401
    assert [(problem.kind, problem.job) for problem in alone.problems] == [
        ("unknown-job", "made-up"),
        ("not-json", done.id),
        ("second-done", done.id),
        ("chunk-after-done", done.id),
        ("chunk-too-big", stopped.id),
        ("chunk-after-stop", stopped.id),
        ("not-json", stopped.id),
        ("done-after-stop", stopped.id),
        ("wrong-key", stopped.id),
    ]
    assert (done.done_count, stopped.status) == (2, "CANCELLED")


async def test_a_job_stopped_in_the_queue_is_never_handed_out(alone: JobServer) -> None:
    job = alone.submit({})
    alone.stop(job.id)
    async with (
        aiohttp.ClientSession(headers={"Authorization": alone.api_key}) as session,
        session.get(f"{alone.url}/v2/endpoint/job-take/w?gpu=FAKE") as take,
        session.get(f"{alone.url}/v2/endpoint/job-stop/w?gpu=FAKE") as stop,
    ):
        assert (take.status, stop.status) == (204, 204)
    assert [value async for value in job] == []


async def test_a_lost_answer_is_not_a_lost_post(alone: JobServer) -> None:
    job = alone.submit({})
    alone.faults["job-stream"] = Fault(times=1, delivered=True)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(alone, "job-stream", job.id, '{"output": "here"}')
    alone.faults["job-done"] = Fault(times=2, status=503, delivered=True)
    assert [await post(alone, "job-done", job.id, '{"output": 1}') for _ in range(3)] == [503, 503, 200]
    assert (job.stream, job.result, job.done_count) == (["here"], {"output": 1, "isStream": False}, 3)


@pytest.mark.parametrize("kind", ["job-take", "job-stop", "ping"])
async def test_polls_can_be_refused_too(alone: JobServer, kind: Any) -> None:
    alone.faults[kind] = Fault(times=1, status=429)
    statuses = []
    async with aiohttp.ClientSession(headers={"Authorization": alone.api_key}) as session:
        for _ in range(2):
            async with session.get(f"{alone.url}/v2/endpoint/{kind}/w?gpu=FAKE") as response:
                statuses.append(response.status)
    assert statuses == [429, 200 if kind == "ping" else 204]


async def test_faults_may_come_later_take_time_and_say_when_to_come_back(alone: JobServer) -> None:
    job = alone.submit({})
    alone.faults["job-stream"] = Fault(times=1, skip=1, status=429, retry_after="7", silence=0.2)
    assert await post(alone, "job-stream", job.id, '{"output": 1}') == 200
    async with aiohttp.ClientSession(headers={"Authorization": alone.api_key}) as session:
        began = time.monotonic()
        async with session.post(f"{alone.url}/v2/endpoint/job-stream/w/{job.id}?gpu=FAKE", data=b'{"output": 2}') as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "7")
            assert time.monotonic() - began >= 0.19
    assert [(refusal.kind, refusal.job) for refusal in alone.refusals] == [("job-stream", job.id)]
    assert (job.stream, alone.faults) == ([1], {})


@pytest.mark.parametrize(("text", "written"), [('{"a": NaN}', ', "input": {"a": NaN}}'), ("", "}")])
async def test_a_job_may_hold_what_no_value_stands_for_or_no_input_at_all(alone: JobServer, text: str, written: str) -> None:
    job = alone.submit(None, text=text)
    async with (
        aiohttp.ClientSession(headers={"Authorization": alone.api_key}) as session,
        session.get(f"{alone.url}/v2/endpoint/job-take/w?gpu=FAKE") as take,
    ):
        assert await take.text() == f'{{"id": "{job.id}"{written}'


async def test_progress_is_not_an_end(alone: JobServer) -> None:
    job = alone.submit({})
    await post(alone, "job-done", job.id, '{"status": "IN_PROGRESS", "output": "half"}')
    assert (job.progress, job.done_count, job.has_ended) == (["half"], 0, False)


async def test_waiting_says_what_did_not_happen(alone: JobServer) -> None:
    job = alone.submit({}, id="a")
    began = time.monotonic()
    for waiting, message in [
        (job.wait_taken(0.01), "job a .IN_QUEUE.*not taken within 0.01 s"),
        (job.wait_stream(2, 0.01), "fewer than 2 values"),
        (alone.wait_worker(0.01), "no worker asked for jobs"),
        (alone.wait_ping(lambda _: True, 0.01), "no such ping"),
    ]:
        with pytest.raises(TimeoutError, match=message):
            await waiting
    assert time.monotonic() - began < 1
    with pytest.raises(ValueError, match="id: a was submitted before"):
        alone.submit({}, id="a")
