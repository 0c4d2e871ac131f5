"""One job from a file or the command line, at a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests import DEMO, ROOT
from tests.handler.worker_process import Worker, cpu_engine, environment, replayed_engine

pytestmark = pytest.mark.anyio
FIGURES = re.compile(r"^\d+ prompt tokens, \d+ output tokens, TTFT \d+ ms, (\d+\.\d|-) tokens/s$")


async def test_test_input_json_is_answered_with_figures(engine_variables: dict[str, str]) -> None:
    async with Worker(engine_variables, {"LOG_LEVEL": "WARNING"}) as worker:
        assert await worker.wait(30) == 0
        assert len(worker.lines[0]) > 20, worker.output
        assert FIGURES.match(worker.lines[-1]), worker.output
        assert not worker.left_behind()


@pytest.mark.parametrize(
    "job_input",
    [
        {"prompt": "Hello", "max_tokens": 3},
        {"messages": [{"role": "user", "content": "Hello"}], "stream": True},
        {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [{"role": "user", "content": "Hello"}]}},
    ],
    ids=["native", "native-stream", "openai-whole"],
)
async def test_every_shape_of_answer_is_shown(engine_variables: dict[str, str], job_input: dict[str, object]) -> None:
    job = json.dumps({"input": job_input})
    async with Worker(engine_variables, {"LOG_LEVEL": "WARNING"}, arguments=("--test_input", job)) as worker:
        assert await worker.wait(30) == 0
        assert FIGURES.match(worker.lines[-1]), worker.output


async def test_a_plain_text_is_shown_as_it_is() -> None:
    job = json.dumps({"input": {"route": "/metrics"}})
    async with Worker(cpu_engine(), {"LOG_LEVEL": "WARNING"}, arguments=("--test_input", job)) as worker:
        assert await worker.wait(30) == 0
        assert worker.lines[0].startswith("# HELP "), worker.output
        assert len(worker.lines) > 3


async def test_other_json_is_shown_as_it_is() -> None:
    job = json.dumps({"input": {"openai_route": "/v1/models"}})
    async with Worker(replayed_engine(), {"LOG_LEVEL": "WARNING", "MAX_MODEL_LEN": "2048"}, arguments=("--test_input", job)) as worker:
        assert await worker.wait(30) == 0
        assert json.loads(worker.output)["object"] == "list"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--input", "none.json"), "none.json: cannot be read"),
        (("--test_input", "{"), "--test_input: expected JSON"),
        (("--test_input", "[1]"), '--test_input: expected an object with "input"'),
    ],
)
async def test_a_bad_local_job_ends_before_the_engine_starts(arguments: tuple[str, ...], words: str) -> None:
    async with Worker(replayed_engine(), arguments=arguments) as worker:
        assert await worker.wait(30) == 1
        assert f"error: {words}" in worker.output
        assert "starting" not in worker.output


async def test_a_job_that_fails_is_shown_and_counts(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"input": {"prompt": ""}}))
    async with Worker(replayed_engine(), {"LOG_LEVEL": "WARNING"}, arguments=("--input", str(file))) as worker:
        assert await worker.wait(30) == 1
        assert '"param": "prompt"' in worker.output


async def run(*words: str, **variables: str) -> tuple[int | None, str, str]:
    """`ci/just run` to its end: exit code and what it printed; killed where it does not end by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tools.run",
        *words,
        cwd=ROOT,
        env=environment({"OPENBLAS_NUM_THREADS": "1"}, variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, error = await asyncio.wait_for(process.communicate(), 40)
    except asyncio.TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        out, error = await process.communicate()
        raise AssertionError(f"it did not end:\n{out.decode()}{error.decode()}") from None
    return process.returncode, out.decode(), error.decode()


async def test_run_answers_a_prompt_with_the_demo_model() -> None:
    code, out, error = await run("prompt=Who are you?")
    assert code == 0, error
    assert "demo" in out


@pytest.mark.parametrize(
    "variables",
    [{"PORT": "18321"}, {"PORT_HEALTH": "18321"}, {"RUNPOD_ENDPOINT_TYPE": "LB"}, {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/$ID"}],
    ids=lambda variables: next(iter(variables)),
)
async def test_run_answers_at_the_terminal_whatever_the_caller_set_for_a_worker_elsewhere(variables: dict[str, str]) -> None:
    code, out, error = await run("prompt=Who are you?", **variables)
    assert code == 0, error
    assert "demo" in out


@pytest.mark.parametrize("name", ["MODEL", "MODEL_NAME", "MODEL_REPO"])
async def test_run_takes_a_directory_in_the_environment_from_where_the_person_stands(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").symlink_to(DEMO)
    code, out, error = await run("prompt=Who are you?", CALLED_FROM=str(tmp_path), **{name: "mine"})
    assert code == 0, error
    assert "demo" in out


async def test_a_reader_that_leaves_early_is_no_crash() -> None:
    read, write = os.pipe()
    os.close(read)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "handler", cwd=ROOT, env=environment(cpu_engine()), stdout=write, stderr=asyncio.subprocess.PIPE
    )
    os.close(write)
    _, error = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert b"Traceback" not in error


async def test_files_are_meant_from_where_the_person_stands(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"input": {"prompt": "Hello", "max_tokens": 3}}))
    code, out, error = await run("input=job.json", CALLED_FROM=str(tmp_path))
    assert code == 0, error
    assert FIGURES.match(out.splitlines()[-1])
