"""The worker as the platform sees it: its log, its pings, its start."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import signal
import threading
import time

import pytest

from handler.job_api import Addresses, Pings
from tests.handler.test_queue import chat
from tests.handler.worker_process import Worker, cpu_engine, replayed_engine
from tools.serve.job_server import Fault, JobServer

pytestmark = pytest.mark.anyio

SECRET = "a prompt that is nobody's business"


async def test_on_the_platform_every_line_is_json_with_the_jobs_id(jobs: JobServer) -> None:
    variables = {"LOG_LEVEL": "DEBUG", "RUNPOD_LOG_LEVEL": "DEBUG", "MY_API_KEY": "ak_secret"}
    async with Worker(replayed_engine(), jobs.environment() | variables) as worker:
        messages = [{"role": "user", "content": SECRET}]
        good, bad = jobs.submit(chat(messages=messages, stream=True)), jobs.submit(chat(messages=SECRET))
        await asyncio.gather(good.wait_done(30), bad.wait_done(30))
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        lines = [json.loads(line) for line in worker.lines]
        assert all(set(line) == {"requestId", "message", "level"} for line in lines)
        assert {line["level"] for line in lines} <= {"DEBUG", "INFO", "WARN", "ERROR"}
        failed = [line for line in lines if line["requestId"] == bad.id and "failed" in line["message"]]
        assert failed[0]["level"] == "WARN"
        assert '"status": 400' in failed[0]["message"]
        assert any(line["message"].startswith("engine: ") for line in lines), "what the engine says is there"
        assert SECRET not in worker.output
        assert "ak_secret" not in worker.output
        assert jobs.api_key not in worker.output


async def test_elsewhere_the_log_is_text_for_a_person() -> None:
    job = json.dumps({"input": {"prompt": "Hello", "max_tokens": 2}})
    async with Worker(cpu_engine(), arguments=("--test_input", job)) as worker:
        assert await worker.wait(30) == 0
        await worker.wait_line("^INFO handler.*: starting the cpu engine: ")


async def test_pings_go_on_when_some_fail_and_end_with_the_worker(jobs: JobServer) -> None:
    jobs.faults["ping"] = Fault(times=3, skip=1)
    async with Worker(cpu_engine(), jobs.environment()) as worker:
        await jobs.wait_worker(30)
        await jobs.wait_ping(lambda _: len(jobs.pings) >= 2 and not jobs.faults, 30)
        await worker.wait_line("ping works again")
        assert sum("ping fails" in line for line in worker.lines) == 1
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0


def test_pings_go_on_while_the_loop_is_busy() -> None:
    """Rule: the platform takes a worker that is not heard of for dead, and a large body may keep the loop busy for seconds."""
    heard = list[str]()

    class Platform(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that the library calls
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Platform) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        variables = {f"RUNPOD_WEBHOOK_{name}": f"{base}/{name}?gpu=x" for name in ("GET_JOB", "POST_OUTPUT", "POST_STREAM", "PING")}
        platform = {"RUNPOD_POD_ID": "pod", "RUNPOD_AI_API_KEY": "key", "RUNPOD_PING_INTERVAL": "1000"}
        with Pings(Addresses.read(variables | platform), lambda: "job-1,job 2"):
            until = time.monotonic() + 30
            while len(heard) < 2 and time.monotonic() < until:
                sum(range(10_000))  # the main thread never waits
        server.shutdown()
    assert heard[:2] == ["/PING?gpu=x&job_id=job-1%2Cjob%202"] * 2


async def test_pings_name_the_running_jobs(jobs: JobServer) -> None:
    engine = replayed_engine("--synthetic", "--tokens-per-second", "20", "--tokens", "1000")
    async with Worker(engine, jobs.environment()):
        several = [jobs.submit(chat(stream=True, max_tokens=60)) for _ in range(3)]
        await jobs.wait_ping(lambda ping: set(ping.jobs) == {job.id for job in several}, 20)
        await asyncio.gather(*(job.wait_done(20) for job in several))
        await jobs.wait_ping(lambda ping: not ping.jobs and ping.at > max(job.ended_at or 0 for job in several), 10)


async def test_variables_of_the_platform_that_are_wrong_are_all_named(jobs: JobServer) -> None:
    wrong = {"RUNPOD_PING_INTERVAL": "500", "RUNPOD_WEBHOOK_POST_STREAM": "ftp://x", "RUNPOD_WEBHOOK_POST_OUTPUT": ""}
    async with Worker(cpu_engine(), jobs.environment() | wrong) as worker:
        assert await worker.wait(30) == 1
        await worker.wait_line("RUNPOD_PING_INTERVAL: got '500', expected milliseconds, from 1000")
        await worker.wait_line("RUNPOD_WEBHOOK_POST_STREAM: got 'ftp://x', expected an address")
        await worker.wait_line("RUNPOD_WEBHOOK_POST_OUTPUT: not set, expected an address")
        assert "Traceback" not in worker.output
    assert not jobs.takes


async def test_an_empty_variable_of_the_platform_is_one_that_is_not_set(jobs: JobServer) -> None:
    async with Worker(cpu_engine(), jobs.environment() | {"RUNPOD_PING_INTERVAL": ""}) as worker:
        assert "output" in await jobs.submit({"route": "/health"}).wait_done(30)
        assert "expected one of" not in worker.output


async def test_the_first_job_taken_is_part_of_the_cold_start_and_told_once(jobs: JobServer) -> None:
    async with Worker(cpu_engine(), jobs.environment()) as worker:
        await jobs.wait_worker(30)
        for _ in range(2):
            await jobs.submit({"route": "/health"}).wait_done(10)
        line = await worker.wait_line("first job taken")
        found = {phase.strip(): float(seconds) for phase, seconds in re.findall(r"([\w ]+) (\d+\.\d\d) s", line)}
        assert found["taking jobs"] <= found["first job taken"] == max(found.values())
        assert sum("first job taken" in line for line in worker.lines) == 1
