"""What the worker relies on inside the RunPod SDK; a new SDK that differs fails here first."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import runpod
from runpod import http_client, serverless
from runpod.serverless import worker
from runpod.serverless.modules import rp_fitness, rp_http, rp_job, rp_logger, rp_ping, rp_scale, worker_state
from runpod.serverless.utils import rp_debugger

from handler import sdk
from handler.errors import InvalidSettings
from handler.sdk import SDK_VARIABLES

REPLACED: list[tuple[Any, str]] = [
    # What `_Loop` replaces, then what it relies on instead: it was written against these lines and no others.
    (rp_scale.JobScaler.__init__, "a6f8e34d"),
    (rp_scale.JobScaler.run, "f6c6b5f8"),
    (rp_scale.JobScaler.get_jobs, "e08b2e0c"),
    (rp_scale.JobScaler.run_jobs, "74cd623d"),
    (rp_scale.JobScaler.kill_worker, "863effbe"),
    (rp_scale.JobScaler.handle_shutdown, "5d8a51e3"),
    (rp_scale.JobScaler.start, "1be10193"),
    (rp_scale.JobScaler.handle_job, "fe2350bf"),
    (rp_scale.JobScaler.stop_job, "dc57f329"),
    (rp_scale.JobScaler.monitor_stop_signals, "3bf52c6d"),
    (rp_job.handle_job, "849f9363"),
    (rp_job.get_job, "8ce23820"),
    (rp_job.get_stop_signals, "031a55cb"),
    (rp_job._job_get_url, "08b9c309"),
    (rp_http._handle_result, "ce88ccb8"),
    (rp_http._transmit, "fc9d6045"),
    (rp_ping.Heartbeat, "aa0c1542"),
    (rp_fitness.run_fitness_checks, "cdfb0bbb"),
    (rp_logger.RunPodLogger.log, "25efd358"),
    (worker_state.JobsProgress, "36fc501c"),
    (worker.run_worker, "ce0b9b3f"),
    (serverless.start, "aa3f846d"),
    (http_client.AsyncClientSession, "1c791023"),
    (http_client.get_auth_header, "ae946832"),
]
"""With the first digits of the SHA-256 of their source."""


def test_the_sdk_is_the_one_whose_insides_are_known() -> None:
    assert runpod.__version__ == "1.12.0"


@pytest.mark.parametrize(("part", "digest"), REPLACED, ids=lambda value: getattr(value, "__qualname__", ""))
def test_the_sdks_source_is_the_one_that_was_read(part: Any, digest: str) -> None:
    """Where this fails, read the new source, change handler/sdk.py as it needs, then the digest."""
    assert hashlib.sha256(inspect.getsource(part).encode()).hexdigest()[:8] == digest


def test_the_sdks_loop_has_the_parts_that_are_replaced_and_used() -> None:
    async def make() -> rp_scale.JobScaler:
        return rp_scale.JobScaler({"handler": None})

    scaler = asyncio.run(make())
    assert callable(scaler.jobs_handler)
    assert callable(scaler.stop_signals_fetcher)
    assert scaler.config == {"handler": None}
    assert scaler.jobs_tasks == {}
    assert isinstance(scaler.jobs_queue, asyncio.Queue)
    assert scaler.job_progress is worker_state.JobsProgress()
    replaced = {name for name, value in vars(sdk._Loop).items() if callable(value) and not name.startswith("_")}
    assert replaced == {"handle_shutdown", "kill_worker", "run"}
    assert all(callable(getattr(rp_scale.JobScaler, name)) for name in replaced)
    assert not {name for name in vars(sdk._Loop) if name.startswith("_") and not name.startswith("__")} & set(dir(scaler)), "no clash"


def test_the_sdk_looks_up_what_is_replaced_where_it_is_replaced() -> None:
    assert "rp_scale.JobScaler(config)" in inspect.getsource(worker.run_worker)
    assert "hb.ping_loop(test)" in inspect.getsource(rp_ping.Heartbeat.process_loop)
    assert 'print(f"--- Starting' in inspect.getsource(serverless.start)
    assert "self.jobs_handler(session, self.config, job)" in inspect.getsource(rp_scale.JobScaler.handle_job)


def test_the_sdk_wants_nothing_of_cpuinfo_but_a_name() -> None:
    users = [path for path in Path(runpod.__file__).parent.rglob("*.py") if "cpuinfo" in path.read_text(encoding="utf-8")]
    assert users == [Path(rp_debugger.__file__)]
    assert inspect.getsource(rp_debugger).count("cpuinfo") == 2
    assert 'cpuinfo.get_cpu_info()["brand_raw"]' in inspect.getsource(rp_debugger)


def test_the_sdk_reads_the_variables_that_are_set_for_it() -> None:
    sources = "".join(inspect.getsource(module) for module in (rp_logger, rp_fitness, rp_ping))
    sources += Path(rp_fitness.__file__).with_name("rp_gpu_fitness.py").read_text(encoding="utf-8")
    for name in SDK_VARIABLES:
        assert f'"{name}"' in sources
    assert list(sdk._LOG_LEVELS) == rp_logger.LOG_LEVELS


def test_a_variable_of_the_sdk_that_is_empty_counts_as_unset() -> None:
    empty = dict.fromkeys(SDK_VARIABLES, "")
    assert {"RUNPOD_LOG_LEVEL", "RUNPOD_PING_INTERVAL"} <= empty.keys(), "the SDK itself refuses these when they are empty"
    assert sdk.load(empty) is runpod
    with pytest.raises(InvalidSettings, match=r"RUNPOD_LOG_LEVEL: got ' '.*\nRUNPOD_PING_INTERVAL: got ' '"):
        sdk.load({"RUNPOD_LOG_LEVEL": " ", "RUNPOD_PING_INTERVAL": " "})


@pytest.mark.anyio
async def test_a_job_that_is_handed_out_again_as_it_ends_is_known_while_it_runs_again() -> None:
    scaler = type("Scaler", (sdk._Loop, rp_scale.JobScaler), {})({"handler": None})
    scaler._room, job, running = asyncio.Event(), {"id": "a", "input": {}}, asyncio.Event()

    async def answer(*_: object) -> None:
        if scaler.jobs_tasks["a"] is first:
            asyncio.get_running_loop().call_soon(scaler._begin, None, job)  # before whoever waits for the end of the first hears of it
            return
        running.set()
        await asyncio.Event().wait()

    scaler.jobs_handler = answer
    scaler._begin(None, job)
    first = scaler.jobs_tasks["a"]
    await asyncio.wait_for(running.wait(), 5)
    assert first.done()
    assert [task.done() for task in scaler.jobs_tasks.values()] == [False]
    assert scaler.job_progress.get_job_list() == "a"
    second = scaler.jobs_tasks["a"]
    assert await scaler.stop_job("a")
    await asyncio.wait({second}, timeout=5)
    await asyncio.sleep(0)
    assert (scaler.jobs_tasks, scaler.job_progress.get_job_list()) == ({}, None)
