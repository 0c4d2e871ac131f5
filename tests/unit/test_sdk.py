"""What the worker relies on inside the RunPod SDK; a new SDK that differs fails here first."""

from __future__ import annotations

import asyncio
import inspect

import pytest
import runpod
from runpod.serverless import worker
from runpod.serverless.modules import rp_handler, rp_scale

from handler.serverless import Handler


def test_the_sdk_is_the_one_whose_insides_are_known() -> None:
    assert runpod.__version__ == "1.12.0"


def test_the_sdks_loop_has_the_parts_that_are_replaced() -> None:
    scaler = asyncio.run(_make())
    assert callable(scaler.jobs_fetcher)
    assert callable(scaler.stop_signals_fetcher)
    assert scaler.config == {"handler": None}
    assert inspect.iscoroutinefunction(rp_scale.JobScaler.run)
    assert list(inspect.signature(rp_scale.JobScaler.kill_worker).parameters) == ["self"]


async def _make() -> rp_scale.JobScaler:
    return rp_scale.JobScaler({"handler": None})


def test_the_sdk_looks_its_loop_up_where_it_is_replaced() -> None:
    assert "rp_scale.JobScaler(config)" in inspect.getsource(worker.run_worker)


def test_the_sdk_takes_the_handler_for_a_generator() -> None:
    assert rp_handler.is_generator(Handler.answer)


@pytest.mark.parametrize("name", ["jobs_fetcher", "stop_signals_fetcher"])
def test_the_sdk_reads_its_fetchers_from_the_object(name: str) -> None:
    assert f"self.{name}(session" in inspect.getsource(rp_scale.JobScaler)
