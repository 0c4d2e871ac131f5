"""MODEL names a repository: downloaded, served, and served again without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import DEMO
from tests.handler.worker_process import Worker, cpu_engine
from tests.twins.model_hub import ModelHub

pytestmark = pytest.mark.anyio
JOB = json.dumps({"input": {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 40}})


async def test_a_repository_is_downloaded_once_and_answers_with_and_without_the_hub(tmp_path: Path) -> None:
    variables = cpu_engine() | {"MODEL": "org/demo", "HF_HOME": str(tmp_path / "home"), "BAKED_MODELS": str(tmp_path / "none")}
    with ModelHub() as hub:
        hub.add("org/demo", DEMO)
        async with Worker(variables, {"HF_ENDPOINT": hub.url}, arguments=("--test_input", JOB)) as worker:
            assert await worker.wait(40) == 0
            assert "demo" in worker.output
    async with Worker(variables, {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}, arguments=("--test_input", JOB)) as worker:
        assert await worker.wait(40) == 0
        assert "demo" in worker.output


async def test_a_repository_that_is_not_there_is_one_clear_sentence(tmp_path: Path) -> None:
    variables = cpu_engine() | {"MODEL": "org/nothing", "HF_HOME": str(tmp_path / "home")}
    with ModelHub() as hub:
        async with Worker(variables, {"HF_ENDPOINT": hub.url}, arguments=("--test_input", JOB)) as worker:
            assert await worker.wait(40) == 1
            assert "error: MODEL=org/nothing" in worker.output
            assert "Traceback" not in worker.output


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("HF_TOKEN", "hf_hidden\nhf_other", "HF_TOKEN: got ***, expected printable ASCII"),
        ("HF_TOKEN", "hf_hidden…", "HF_TOKEN: got ***, expected printable ASCII"),
        ("HF_ENDPOINT", "https://hub.example.com:port", "HF_ENDPOINT: got 'https://hub.example.com:port', expected the address of a hub"),
        ("MODEL", "~nobody-has-this-name/model", "MODEL: got '~nobody-has-this-name/model', which is no directory here"),
    ],
)
async def test_a_value_that_nothing_can_be_done_with_is_one_clear_sentence(
    tmp_path: Path, variable: str, value: str, expected: str
) -> None:
    variables = cpu_engine() | {"MODEL": "org/nothing", "HF_HOME": str(tmp_path / "home")}
    with ModelHub() as hub:
        async with Worker(
            variables | {variable: value}, {"HF_ENDPOINT": hub.url} | {variable: value}, arguments=("--test_input", JOB)
        ) as worker:
            assert await worker.wait(40) == 1
            assert expected in worker.output
            assert "Traceback" not in worker.output
            assert "hf_hidden" not in worker.output
