"""An engine that does not start: what the worker says, how soon it leaves, and what it leaves behind."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.handler.faults.case import Case, Row
from tests.twins.faulty_engine import Plan
from tools.serve.job_server import JobServer

pytestmark = pytest.mark.anyio

Table = Callable[[Row], None]

QUICK = {"ENGINE_STARTUP_STALL_TIMEOUT": "1", "ENGINE_STARTUP_TIMEOUT": "60"}
STOOD_STILL = "stood still for 1 s (ENGINE_STARTUP_STALL_TIMEOUT): it wrote nothing, read nothing and computed nothing"
OUT_OF_MEMORY = """\
[2026-05-01 10:00:00,000] [    INFO] - Loading Weights: 100%
Traceback (most recent call last):
  File "worker_process.py", line 830, in <module>
    run_worker_proc()
SystemError: (Fatal) ResourceExhaustedError:

Out of memory error on GPU 0. Cannot allocate 2.500000GB memory on GPU 0, 79.149658GB memory has been allocated.
"""
NO_OPERATOR = "ImportError: cannot import name 'append_attention' from 'fastdeploy.model_executor.ops.gpu'\n"
NO_KERNEL = "OSError: CUDA error(209), no kernel image is available for execution on the device.\n"
BAD_CHECKPOINT = "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer\n"
PORT_TAKEN = "OSError: [Errno 98] Address already in use\n"
UNKNOWN = "AssertionError: something that nobody has seen before\n"


@pytest.mark.parametrize(
    ("plan", "alone", "says"),
    [
        pytest.param(
            Plan(loading="rank-dies-exit", code=0, logs={"workerlog.0": BAD_CHECKPOINT}),
            "ends with code 0",
            "ended with exit code 0 before it was ready: a weights file is damaged or incomplete",
            id="a bad checkpoint, while the weights load",
        ),
        pytest.param(
            Plan(loading="rank-dies-exit", code=0, logs={"launch_worker.log": NO_OPERATOR}),
            "ends with code 0",
            "ended with exit code 0 before it was ready: FastDeploy's operators do not fit",
            id="a missing operator, in the launcher's log",
        ),
        pytest.param(
            Plan(loading="rank-dies-exit", code=1, logs={"workerlog.0": NO_KERNEL}),
            "ends with code 1",
            "ended with exit code 1 before it was ready: the image holds no kernels for this GPU's architecture",
            id="the wrong GPU architecture",
        ),
        pytest.param(
            Plan(loading="rank-dies-hang", logs={"workerlog.0": OUT_OF_MEMORY}),
            "2.3, 2.4: waits for ever, no port",
            f"{STOOD_STILL}: the GPU's memory is too small",
            id="out of memory in KV profiling",
        ),
        pytest.param(
            Plan(loading="rank-dies-exit", code=1, logs={"workerlog.0": OUT_OF_MEMORY}),
            "2.5: ends with code 1 (2.6: 0)",
            "ended with exit code 1 before it was ready: the GPU's memory is too small",
            id="out of memory in KV profiling, noticed",
        ),
        pytest.param(
            Plan(loading="rank-dies-abort", logs={"workerlog.0": OUT_OF_MEMORY}),
            "2.3: aborts",
            "was killed by signal 6 (SIGABRT) before it was ready: the GPU's memory is too small",
            id="a rank that dies between profiling and ready",
        ),
    ],
)
async def test_a_recognised_cause_is_told_from_the_workers_logs_and_the_engine_is_not_started_again(
    tmp_path: Path, table: Table, request: pytest.FixtureRequest, plan: Plan, alone: str, says: str
) -> None:
    async with Case(tmp_path, plan, QUICK) as worker:
        await worker.wait_line("Waiting for worker processes")
        seconds = await worker.ended(8)
        assert f"\nerror: the fastdeploy engine {says}" in worker.output
        for line in "".join(plan.logs.values()).splitlines():
            assert line in worker.output
        assert worker.starts == 1
    fault = request.node.callspec.id
    table(Row(fault=fault, alone=alone, worker="exit 1 with the cause, no restart", seconds=seconds))


async def test_an_unexplained_failure_is_tried_once_more_and_then_told_with_its_last_lines(tmp_path: Path, table: Table) -> None:
    plan = Plan(loading="rank-dies-exit", code=0, logs={"workerlog.0": UNKNOWN})
    async with Case(tmp_path, plan, QUICK) as worker:
        await worker.wait_line("Waiting for worker processes")
        seconds = await worker.ended(8)
        assert worker.starts == 2
        assert "starting it again (ENGINE_RESTARTS)" in worker.output
        assert "\nerror: the fastdeploy engine ended with exit code 0 before it was ready; its last lines:" in worker.output
        assert f"    workerlog.0: {UNKNOWN}" in worker.output
    table(Row(fault="a rank that dies for an unknown reason", alone="ends with code 0", worker="one restart, exit 1", seconds=seconds))


@pytest.mark.parametrize("said", [UNKNOWN, PORT_TAKEN], ids=["unknown", "a port was taken"])
async def test_an_engine_that_fails_the_first_time_only_is_started_again_and_serves(
    tmp_path: Path, jobs: JobServer, table: Table, said: str
) -> None:
    plan = Plan(loading="rank-dies-exit", failing_starts=1, logs={"workerlog.0": said})
    job = jobs.submit({"prompt": "Hello"})
    async with Case(tmp_path, plan, {"PORT": ""}, jobs.environment()) as worker:
        await worker.wait_line("Waiting for worker processes")
        began = time.monotonic()
        result = await job.wait_done(20)
        assert "error" not in result, result
        assert job.done_count == 1
        seconds = time.monotonic() - began
        noted = worker.left.noted("queue", "file")
        first, second = set(noted[: len(noted) // 2]), set(noted[len(noted) // 2 :])
        assert worker.starts == 2
        assert not (first - second) & set(worker.remains()), "the first start's remains are gone before the second"
        worker.signal(signal.SIGTERM)
        await worker.ended(5, code=0)
    table(Row(fault="a start that fails once", alone="ends with code 0", worker="one restart, then serves", seconds=seconds))


async def test_no_restarts_means_none(tmp_path: Path) -> None:
    async with Case(tmp_path, Plan(loading="rank-dies-exit", code=0), QUICK, {"ENGINE_RESTARTS": "0"}) as worker:
        await worker.ended(8)
        assert worker.starts == 1


async def test_a_start_that_hangs_is_given_up_long_before_the_startup_timeout(tmp_path: Path, table: Table) -> None:
    async with Case(tmp_path, Plan(loading="hang"), QUICK, {"ENGINE_RESTARTS": "0"}) as worker:
        await worker.wait_line("Waiting for worker processes")
        seconds = await worker.ended(8)
        assert f"\nerror: the fastdeploy engine {STOOD_STILL}; its last lines:" in worker.output
    table(Row(fault="a start that hangs (limit 1 s)", alone="waits for ever, no port", worker="exit 1", seconds=seconds))


@pytest.mark.parametrize("work", ["lines", "processor", "disk"])
async def test_a_slow_start_that_shows_work_is_not_taken_for_a_hang(tmp_path: Path, table: Table, work: Any) -> None:
    limits = {"ENGINE_STARTUP_STALL_TIMEOUT": "3", "ENGINE_RESTARTS": "0"}
    async with Case(tmp_path, Plan(work=work, seconds=6), limits) as worker:
        await worker.wait_line("Waiting for worker processes")
        began = time.monotonic()
        await worker.serves()
        seconds = time.monotonic() - began
        assert seconds > 4
        assert worker.starts == 1
    table(Row(fault=f"a slow start that shows {work} (limit 3 s)", alone="serves", worker="serves", seconds=seconds))


@pytest.mark.parametrize("fault", ["never-answer", "empty-200"])
async def test_an_engine_that_is_healthy_and_answers_nothing_is_not_ready(tmp_path: Path, table: Table, fault: str) -> None:
    limits = {"ENGINE_STARTUP_STALL_TIMEOUT": "2", "ENGINE_RESTARTS": "0"}
    async with Case(tmp_path, Plan(), limits, replay=("--fault", fault)) as worker:
        await worker.wait_line("Application startup complete")
        seconds = await worker.ended(12)
        assert "\nerror: the fastdeploy engine " in worker.output
    table(Row(fault=f"health 200, {fault} to the first question (limit 2 s)", alone="serves", worker="exit 1", seconds=seconds))


async def test_term_while_the_engine_loads_starts_nothing_anew_and_leaves_nothing(tmp_path: Path, jobs: JobServer, table: Table) -> None:
    async with Case(tmp_path, Plan(loading="hang"), {"PORT": ""}, jobs.environment()) as worker:
        await worker.wait_line("Waiting for worker processes")
        worker.signal(signal.SIGTERM)
        seconds = await worker.ended(5, code=130)
        assert worker.starts == 1
    alone = "dies at once, its rank and queue manager stay"
    table(Row(fault="TERM while the engine loads", alone=alone, worker="exit 130, all ended", seconds=seconds))


async def test_term_while_the_engine_loads_ends_the_http_face_too(tmp_path: Path) -> None:
    async with Case(tmp_path, Plan(loading="hang")) as worker:
        await worker.wait_line("answering on port")
        worker.signal(signal.SIGTERM)
        await worker.ended(5, code=0)
        assert worker.starts == 1


async def test_term_between_two_starts_leaves_nothing(tmp_path: Path, jobs: JobServer) -> None:
    plan = Plan(loading="hang", ignores_term=True)
    async with Case(tmp_path, plan, QUICK, {"PORT": ""}, jobs.environment()) as worker:
        await worker.wait_line("starting it again")
        worker.signal(signal.SIGTERM)
        await worker.ended(6, code=130)
        assert worker.starts == 1


async def test_a_worker_killed_while_its_engine_loads_takes_every_process_of_it_along(tmp_path: Path, table: Table) -> None:
    """Rule: an engine without its worker holds the GPU for nobody, also where it has left its session and ignores TERM."""
    async with Case(tmp_path, Plan(loading="hang", ignores_term=True)) as worker:
        while not worker.left.noted("rank"):  # noqa: ASYNC110  # a file that another process writes
            await asyncio.sleep(0.02)
        began = time.monotonic()
        worker.signal(signal.SIGKILL)
        while living := worker.living():
            assert time.monotonic() - began < 10, living
            await asyncio.sleep(0.02)
        seconds = time.monotonic() - began
    table(Row(fault="KILL of the worker while the engine loads", alone="loads on", worker="every process of it ends", seconds=seconds))
