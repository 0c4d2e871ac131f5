"""The worker starts with exactly the environment that the Hub's form gives it: its defaults, and each preset, on every release.

The stand-in for FastDeploy reads its flags with a real parser made from the release's own table, and then answers from recordings. The
models' names are found in a Hugging Face cache at BAKED_MODELS, as in an image with baked models, so nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from handler.fastdeploy.flags import RELEASES
from tests import DEMO, ROOT
from tests.handler.fastdeploy.stand_in import install
from tests.handler.fastdeploy.starts import ERNIE, engine
from tests.handler.fastdeploy.test_flags import accepted
from tests.handler.worker_process import Worker, cpu_engine, replayed_engine
from tests.tools.generate.injected import CHOICES, DEFAULTS, PRESETS, injected
from tools.serve.job_server import JobServer

TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text(encoding="utf-8"))
COMMIT = "0" * 40
QWEN3 = ERNIE | {"architectures": ["Qwen3ForCausalLM"], "num_attention_heads": 32, "num_key_value_heads": 8}
CASES = [(release, choice, empties) for release in RELEASES for choice in CHOICES for empties in (True, False)]


def flags(release: str, texts: Mapping[str, str], gpus: int) -> dict[str, Any]:
    """What the release's own parser makes of the engine's command; it ends the test where it does not accept it."""
    return accepted(engine(texts, QWEN3 if "Qwen3" in texts["MODEL"] else ERNIE, release, gpus).command(40999)[2:], release)


@pytest.mark.parametrize(("release", "choice", "empties"), CASES)
def test_the_releases_own_parser_accepts_what_the_form_sends(release: str, choice: str, empties: bool) -> None:
    texts = injected(choice, empties=empties)
    found = flags(release, texts, gpus=1)
    chosen = PRESETS.get(choice, {})
    assert found["quantization"] == ({"quantization": chosen["QUANTIZATION"]} if "QUANTIZATION" in chosen else None)
    assert found["max_model_len"] == chosen.get("MAX_MODEL_LEN", 2048)
    assert found["max_num_seqs"] == chosen.get("MAX_NUM_SEQS", 8)
    assert found["served_model_name"] == texts["MODEL"]
    assert (found["enable_prefix_caching"], found["enable_logprob"], found["load_choices"]) == (True, False, "default_v1")
    assert flags(release, texts, gpus=4)["tensor_parallel_size"] == 4, "the form leaves the number of GPUs to the worker"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A Hugging Face cache in which each preset's name is the demo checkpoint, with a context as long as the preset asks for."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in DEMO.iterdir():
        (checkpoint / file.name).symlink_to(file)
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}), encoding="utf-8")
    cache = tmp_path / "models"
    for name in {injected(choice, empties=False)["MODEL"] for choice in CHOICES}:
        folder = cache / ("models--" + name.replace("/", "--"))
        (folder / "snapshots").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "snapshots" / COMMIT).symlink_to(checkpoint)
        (folder / "refs" / "main").write_text(COMMIT, encoding="ascii")
    return cache


@pytest.fixture
def worker(tmp_path: Path, models: Path, jobs: JobServer) -> Any:
    def start(release: str, choice: str) -> Worker:
        package = install(tmp_path / "engine", release)
        server = package / "fastdeploy" / "entrypoints" / "openai" / "api_server.py"
        server.write_text(SERVER, encoding="utf-8")
        platform = replayed_engine(release=min(release, "2.5")) | {
            "FASTDEPLOY_RELEASE": release,
            "PYTHONPATH": f"{package}{os.pathsep}{ROOT}",
            "BAKED_MODELS": str(models),
        }
        for name in ("MODEL", "SERVED_MODEL_NAME"):
            del platform[name]
        return Worker(platform, injected(choice, empties=True), jobs.environment())

    return start


SERVER = """
import os, shlex, sys
from fastdeploy.entrypoints.openai.utils import make_arg_parser
from fastdeploy.utils import FlexibleArgumentParser
from tests.twins.replay.__main__ import main

make_arg_parser(FlexibleArgumentParser()).parse_args()
sys.argv[1:] += shlex.split(os.environ["REPLAY"])
sys.exit(main())
"""
"""Where FastDeploy's server would be: the release's parser ends it with code 2 for a wrong word, and recordings answer. Of 2.6 there are
none; its parser is real all the same."""


@pytest.mark.anyio
@pytest.mark.parametrize(("release", "choice"), [*((release, DEFAULTS) for release in RELEASES), *(("2.3", preset) for preset in PRESETS)])
async def test_a_worker_with_the_forms_environment_answers_the_hubs_first_test(
    release: str, choice: str, worker: Any, jobs: JobServer
) -> None:
    async with worker(release, choice):
        done = await jobs.submit(TESTS["tests"][0]["input"]).wait_done(60)
        [answer] = done["output"]
        assert answer["choices"][0]["message"]["content"]


@pytest.mark.anyio
async def test_a_word_that_the_release_does_not_know_ends_such_a_worker(worker: Any, jobs: JobServer) -> None:
    """The stand-in is as strict as the engine, so that the tests above prove something."""
    started = worker("2.3", DEFAULTS)
    server = (
        next(Path(folder) for folder in started._environment["PYTHONPATH"].split(os.pathsep))
        / "fastdeploy/entrypoints/openai/api_server.py"
    )
    server.write_text("import sys\nsys.argv.append('--dynamic-load-weight=0')\n" + server.read_text(encoding="utf-8"), encoding="utf-8")
    async with started:
        assert await started.wait(60) == 1
        assert "unrecognized arguments: --dynamic-load-weight=0" in started.output or "ignored explicit argument '0'" in started.output
    assert not jobs.takes


@pytest.mark.anyio
async def test_each_of_the_hubs_tests_is_answered_by_a_real_model(jobs: JobServer) -> None:
    async with Worker(cpu_engine(), jobs.environment()):
        for test in TESTS["tests"]:
            done = await jobs.submit(test["input"]).wait_done(60)
            assert done["output"], test["name"]
            assert "error" not in done, test["name"]
