"""The worker as the platform sees it: its log, its heartbeat, its start."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys

import psutil
import pytest

from tests.handler.test_queue import chat, ends
from tests.handler.worker_process import Worker, cpu_engine, replayed_engine
from tools.serve.job_server import Fault, JobServer

pytestmark = pytest.mark.anyio

SECRET = "a prompt that is nobody's business"


def heartbeat(worker: Worker) -> psutil.Process:
    """The process that pings: the one child that was forked and runs no program of its own."""
    itself = psutil.Process(worker.process.pid)
    [found] = [child for child in itself.children() if child.cmdline() == itself.cmdline()]
    return found


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


async def test_the_heartbeat_goes_on_when_pings_fail_and_ends_with_the_worker(jobs: JobServer) -> None:
    jobs.faults["ping"] = Fault(times=3, skip=1)
    async with Worker(cpu_engine(), jobs.environment()) as worker:
        await jobs.wait_worker(30)
        await jobs.wait_ping(lambda _: len(jobs.pings) >= 2 and not jobs.faults, 15)
        pinging = heartbeat(worker)
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert await ends(pinging, 1)


async def test_the_heartbeat_of_a_killed_worker_ends_at_once(jobs: JobServer) -> None:
    """Else the platform would go on hearing that its jobs are being worked on."""
    async with Worker(cpu_engine(), jobs.environment() | {"RUNPOD_PING_INTERVAL": "10000"}) as worker:
        await jobs.wait_ping(lambda _: True, 30)
        pinging = heartbeat(worker)
        worker.signal(signal.SIGKILL)
        assert await ends(pinging, 3)


async def test_pings_name_the_running_jobs(jobs: JobServer) -> None:
    engine = replayed_engine("--synthetic", "--tokens-per-second", "20", "--tokens", "1000")
    async with Worker(engine, jobs.environment()):
        several = [jobs.submit(chat(stream=True, max_tokens=60)) for _ in range(3)]
        await jobs.wait_ping(lambda ping: set(ping.jobs) == {job.id for job in several}, 20)
        await asyncio.gather(*(job.wait_done(20) for job in several))
        await jobs.wait_ping(lambda ping: not ping.jobs and ping.at > max(job.ended_at or 0 for job in several), 10)


async def test_fitness_checks_do_not_end_a_worker_whose_engine_has_the_machine(jobs: JobServer) -> None:
    """With what the SDK demands by itself no such machine exists."""
    variables = {name: value for name, value in jobs.environment().items() if "SKIP" not in name}
    variables |= {"RUNPOD_MIN_MEMORY_GB": "1000000", "RUNPOD_MIN_DISK_PERCENT": "101", "RUNPOD_NETWORK_CHECK_TIMEOUT": "1"}
    async with Worker(replayed_engine(), variables) as worker:
        assert "output" in await jobs.submit(chat()).wait_done(30)
        assert "itness" not in worker.output
    async with Worker(replayed_engine(), variables | {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false"}) as worker:
        await worker.wait_line("Fitness check failed")  # they do when the operator wants them
        assert await worker.wait() == 1


async def test_a_variable_that_the_sdk_refuses_is_named(jobs: JobServer) -> None:
    async with Worker(cpu_engine(), jobs.environment() | {"RUNPOD_LOG_LEVEL": "LOUD", "RUNPOD_PING_INTERVAL": "500"}) as worker:
        assert await worker.wait(30) == 1
        await worker.wait_line("RUNPOD_LOG_LEVEL: got 'LOUD', expected one of NOTSET, TRACE, DEBUG, INFO, WARN, ERROR")
        await worker.wait_line("RUNPOD_PING_INTERVAL: got '500', expected milliseconds, at least 1000")
        assert "Traceback" not in worker.output
    assert not jobs.takes


async def test_an_empty_variable_of_the_sdk_is_one_that_is_not_set(jobs: JobServer) -> None:
    async with Worker(cpu_engine(), jobs.environment() | {"RUNPOD_LOG_LEVEL": "", "RUNPOD_PING_INTERVAL": ""}) as worker:
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


async def test_the_sdk_is_imported_without_asking_for_the_processors_name() -> None:
    code = """
import sys, time
from handler import sdk
began = time.monotonic()
runpod = sdk.load({})
assert "cpuinfo" not in sys.modules
print(f"{time.monotonic() - began:.2f} s")
import cpuinfo
assert hasattr(cpuinfo, "CPUID"), "the real one is there for whoever wants it"
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env={**os.environ, "RUNPOD_LOG_LEVEL": "INFO"}
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    print(output.decode())
