"""The engine's interpreter is started before the worker knows what it shall serve."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from handler.prestart import SERVER, Prestarted, new_mark, prestart
from tests import ROOT
from tests.handler.test_http import free_port
from tests.handler.worker_process import Worker, replayed_engine


def bearing(mark: str) -> list[psutil.Process]:
    """Processes whose environment has the mark and that live."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_RUN") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.anyio
async def test_the_interpreter_that_waited_is_the_one_that_serves() -> None:
    async with Worker(replayed_engine(), {"PORT": str(free_port())}) as worker:
        await worker.wait_line("cold start")
        assert worker.engine().cmdline() == [sys.executable, SERVER, "--wait"]


@pytest.mark.parametrize("wrong", [{"MAX_MODEL_LEN": "none"}, {"MODEL": "/nowhere"}, {"ENGINE_PYTHON": "/nowhere/python"}])
def test_a_hopeless_start_leaves_no_interpreter_waiting(wrong: dict[str, str]) -> None:
    mark = uuid.uuid4().hex
    environment = {**os.environ, **replayed_engine(), **wrong, "TEST_RUN": mark, "PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-m", "handler"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert next(iter(wrong)) in done.stderr
    assert not bearing(mark)


def test_an_interpreter_that_waits_for_a_worker_that_was_killed_ends() -> None:
    """Rule: it waits on a pipe that only the worker holds, whose end is the worker's end."""
    mark = uuid.uuid4().hex
    code = "import os, signal; from handler.prestart import *; prestart(os.environ); os.kill(os.getpid(), signal.SIGKILL)"
    environment = {**os.environ, "ENGINE": "fastdeploy", "ENGINE_PYTHON": sys.executable, "TEST_RUN": mark}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=50, check=False)
    deadline = time.monotonic() + 20
    while bearing(mark):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interpreter_that_waits_gets_no_secret() -> None:
    """Rule: secrets stay out of the engine's environment, also of the one that it is started with."""
    environment = {**os.environ, "HF_TOKEN": "hf_secret", "RUNPOD_AI_API_KEY": "key_secret"}
    with Prestarted(sys.executable, environment, new_mark()) as waiting:
        inherited = psutil.Process(waiting.process.pid).environ()
    assert "HF_TOKEN" not in inherited
    assert "RUNPOD_AI_API_KEY" not in inherited
    assert waiting.process.returncode is not None


def test_another_interpreter_than_the_one_that_waits_is_not_told() -> None:
    with Prestarted(sys.executable, os.environ, new_mark()) as waiting:
        assert not waiting.hand_over(["another-python", SERVER, "--port", "1"], os.environ)
    assert waiting.process.returncode is not None


def test_an_interpreter_that_has_ended_is_not_taken_for_one_that_serves() -> None:
    with Prestarted("false", os.environ, new_mark()) as waiting:
        waiting.process.wait()
        for _ in range(2):
            assert not waiting.hand_over([*waiting.argv, "--port", "1"], os.environ)


@pytest.mark.parametrize(
    "environment", [{}, {"ENGINE": "cpu"}, {"ENGINE": "auto"}, {"ENGINE": "fastdeploy", "ENGINE_PYTHON": "/nowhere/python"}]
)
def test_nothing_waits_where_fastdeploy_is_not_named_or_its_interpreter_is_not_there(environment: dict[str, str]) -> None:
    with prestart(environment) as waiting:
        assert waiting is None
