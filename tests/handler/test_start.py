"""Starting with what is wrong: one clear error, exit code 1, nothing left running."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests import DEMO, ROOT
from tests.handler.worker_process import Worker, cpu_engine, replayed_engine
from tests.twins.model_hub import ModelHub
from tools.serve.job_server import JobServer

pytestmark = pytest.mark.anyio


async def fails(worker: Worker, *words: str) -> None:
    async with worker:
        assert await worker.wait(30) == 1
        for word in words:
            assert word in worker.output, worker.output
        assert "Traceback" not in worker.output, worker.output
        assert not worker.left_behind()


async def test_all_wrong_variables_are_named_at_once() -> None:
    wrong = {"MODEL": "", "ENGINE": "gpu", "MAX_NUM_SEQ": "9", "DEFAULT_BATCH_SIZE": "none"}
    await fails(
        Worker(wrong),
        "MODEL: not set",
        "ENGINE: got 'gpu', expected one of auto, fastdeploy, cpu",
        "MAX_NUM_SEQ: unknown; did you mean MAX_NUM_SEQS?",
        "DEFAULT_BATCH_SIZE: got 'none', expected a whole number",
    )


async def test_a_model_that_is_no_directory_is_named(tmp_path: Path) -> None:
    await fails(Worker(cpu_engine(tmp_path / "none")), "MODEL: got", "no directory")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda model: (model / "config.json").unlink(), ["config.json"]),
        (lambda model: (model / "config.json").write_text("{"), ["config.json"]),
        (
            lambda model: (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1000]),
            ["model.safetensors"],
        ),
        (lambda model: (model / "model.safetensors").unlink(), ["safetensors"]),
        (lambda model: [(model / name).unlink() for name in ("tokenizer.model", "tokenizer.json")], ["tokenizer"]),
        (
            lambda model: (model / "config.json").write_text(
                json.dumps(json.loads((model / "config.json").read_text()) | {"architectures": ["MoonForCausalLM"]})
            ),
            ["MoonForCausalLM"],
        ),
    ],
    ids=["no-config", "broken-config", "truncated-weights", "no-weights", "no-tokenizer", "unknown-architecture"],
)
async def test_a_damaged_checkpoint_is_named_and_no_job_is_taken(tmp_path: Path, jobs: JobServer, damage: object, words: list[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    damage(model)  # type: ignore[operator]
    worker = Worker(cpu_engine(model), jobs.environment())
    async with worker:
        assert await worker.wait(30) == 1
        assert "\nerror: " in "\n" + worker.output
        for word in words:
            assert word in worker.output, worker.output
    assert not jobs.takes


@pytest.mark.parametrize(("fault", "code"), [("exit-0-while-loading", 0), ("exit-1-while-loading", 1)])
async def test_an_engine_that_ends_while_loading_is_a_failure_whatever_its_code(jobs: JobServer, fault: str, code: int) -> None:
    worker = Worker(replayed_engine("--fault", fault), jobs.environment())
    await fails(worker, f"error: the fastdeploy engine ended with exit code {code} before it was ready; its last lines:")
    assert not jobs.takes


async def test_an_engine_that_never_gets_ready_is_given_up(jobs: JobServer) -> None:
    worker = Worker(replayed_engine("--fault", "hang-while-loading"), jobs.environment(), {"ENGINE_STARTUP_TIMEOUT": "2"})
    await fails(worker, "error: the fastdeploy engine was not ready within 2 s (ENGINE_STARTUP_TIMEOUT)")


async def test_an_engine_that_listens_but_does_not_answer_is_not_ready(jobs: JobServer) -> None:
    worker = Worker(replayed_engine("--fault", "never-answer"), jobs.environment(), {"ENGINE_STARTUP_TIMEOUT": "3"})
    await fails(worker, "was not ready within 3 s")
    assert not jobs.takes


async def test_an_interpreter_that_is_not_there_is_named() -> None:
    await fails(Worker(replayed_engine(), {"ENGINE_PYTHON": "/nonexistent/python"}), "ENGINE_PYTHON: got '/nonexistent/python'")


async def test_auto_takes_the_cpu_engine_where_fastdeploy_is_not_installed(tmp_path: Path) -> None:
    job = json.dumps({"input": {"prompt": "Hello", "max_tokens": 2}})
    async with Worker(cpu_engine(), {"ENGINE": "auto"}, arguments=("--test_input", job)) as worker:
        assert await worker.wait(30) == 0
        assert "starting the cpu engine" in worker.output


async def test_auto_takes_fastdeploy_where_it_is_installed() -> None:
    job = json.dumps({"input": {"prompt": "Hello", "max_tokens": 2}})
    async with Worker(replayed_engine(), {"ENGINE": "auto"}, arguments=("--test_input", job)) as worker:
        assert await worker.wait(30) == 0
        assert "starting the fastdeploy engine" in worker.output


async def test_secrets_reach_neither_the_engine_nor_the_log() -> None:
    secrets = {"HF_TOKEN": "hf_abcdef", "RUNPOD_AI_API_KEY": "rp_abcdef", "MY_API_KEY": "ak_abcdef", "RUNPOD_POD_ID": "pod_abcdef"}
    async with Worker(replayed_engine("--start-delay", "30"), secrets, {"PORT": "0", "LOG_LEVEL": "DEBUG"}) as worker:
        await worker.wait_line("starting the fastdeploy engine")
        await worker.wait_line("Waiting")
        for line in [worker.output, *worker.engine().cmdline(), *worker.engine().environ().values()]:
            assert "abcdef" not in line


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"QUANTIZATION": "wint3", "KV_CACHE_RATIO": "2"}, ["QUANTIZATION: got 'wint3'", "KV_CACHE_RATIO: got '2'"]),
        ({"TENSOR_PARALLEL_SIZE": "two", "FD_DEBUG": "true"}, ["TENSOR_PARALLEL_SIZE: got 'two'", "FD_DEBUG: got 'true'"]),
        ({"TENSOR_PARALLEL_SIZE": "2"}, ["got 2 x 1 = 2, expected at most 1, the number of visible GPUs"]),
        ({"CUDA_VISIBLE_DEVICES": "5"}, ["CUDA_VISIBLE_DEVICES: got '5', expected a GPU of this machine: 0"]),
        ({"FD_LOG_DIR": "/my logs"}, ["FD_LOG_DIR: got '/my logs', expected a path without white space"]),
        (
            {"IMAGE_ARCHITECTURES": "86,89"},
            ["this image holds kernels for SM86/SM89; the GPU is an NVIDIA H100 80GB HBM3 (SM90): use the sm90 image"],
        ),
        ({"IMAGE_ARCHITECTURES": "ampere"}, ["IMAGE_ARCHITECTURES: got 'ampere', expected compute capabilities"]),
        ({"IMAGE_CUDA": "13.0"}, ["this image's CUDA 13.0 needs 580 or newer"]),
        ({"PATH": "/nowhere"}, ["nvidia-smi is not there, so this container has no GPU driver"]),
        ({"FASTDEPLOY_RELEASE": "", "PYTHONPATH": str(ROOT)}, ["FASTDEPLOY_RELEASE: not set"]),
    ],
)
async def test_what_needs_no_checkpoint_is_refused_before_the_hub_is_asked(
    tmp_path: Path, variables: dict[str, str], words: list[str]
) -> None:
    with ModelHub() as hub:
        hub.add("org/demo", DEMO)
        model = hub.environment() | {"MODEL": "org/demo", "HF_HOME": str(tmp_path), "BAKED_MODELS": str(tmp_path)}
        await fails(Worker(replayed_engine(), model, variables), *words)
    assert not hub.requests


async def test_what_the_checkpoint_does_not_allow_is_told_together_before_the_engine_starts(tmp_path: Path) -> None:
    wrong = {"TENSOR_PARALLEL_SIZE": "3", "MAX_MODEL_LEN": "9999999"}
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\nfor gpu in 0 1 2; do echo "$gpu, NVIDIA H100, 9.0, 81559, 81079, 550.90.07, GPU-$gpu"; done\n')
    program.chmod(0o755)
    worker = Worker(replayed_engine(), wrong, {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    await fails(worker, *(f"{name}: got" for name in wrong))
    assert "starting the" not in worker.output


async def test_a_folder_for_downloads_in_somebodys_home_is_where_the_hubs_library_looks_too(tmp_path: Path) -> None:
    job = json.dumps({"input": {"prompt": "Hello", "max_tokens": 2}})
    with ModelHub() as hub:
        hub.add("org/demo", DEMO)
        model = cpu_engine() | hub.environment() | {"MODEL": "org/demo", "BAKED_MODELS": str(tmp_path), "HOME": str(tmp_path)}
        async with Worker(model, {"HF_HOME": "~/hf"}, arguments=("--test_input", job), cwd=tmp_path) as worker:
            assert await worker.wait(30) == 0
        assert (tmp_path / "hf" / "hub" / "models--org--demo").is_dir()
        assert not (tmp_path / "~").exists()
        await fails(Worker(model, {"HF_HOME": "~nobody-of-this-name/hf"}), "HF_HOME: got '~nobody-of-this-name/hf', expected a folder")


async def test_a_release_that_nobody_knows_is_told_with_the_known_ones() -> None:
    unknown = replayed_engine() | {"FASTDEPLOY_RELEASE": ""}
    package = ROOT / "tests" / "twins" / "replayed_fastdeploy"
    assert (package / "fastdeploy" / "version.txt").read_text().split()[-1] == "2.3.0"
    async with Worker(unknown, arguments=("--test_input", '{"input": {"prompt": "Hello"}}')) as worker:
        assert await worker.wait(30) == 0, "2.3.0 is looked up and known"
    await fails(
        Worker(unknown, {"ENGINE": "fastdeploy", "PYTHONPATH": str(ROOT)}), "FASTDEPLOY_RELEASE: not set", "no FastDeploy", "2.3, 2.4"
    )


async def test_the_cpu_engine_downloads_nothing_itself() -> None:
    await fails(
        Worker(cpu_engine() | {"MODEL": "org/name", "MODEL_SOURCE": "modelscope"}), "MODEL_SOURCE=modelscope: the CPU engine downloads"
    )


async def test_flags_of_fastdeploy_have_no_effect_on_the_cpu_engine_and_are_named() -> None:
    job = json.dumps({"input": {"prompt": "Hello", "max_tokens": 2}})
    async with Worker(cpu_engine(), {"TENSOR_PARALLEL_SIZE": "2"}, arguments=("--test_input", job)) as worker:
        assert await worker.wait(30) == 0
        assert "the CPU engine ignores TENSOR_PARALLEL_SIZE" in worker.output


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"FASTDEPLOY_RELEASE": "2.3"}, 1, "could not be asked"),
        ({"FASTDEPLOY_RELEASE": "", "PYTHONPATH": str(ROOT)}, 1, "has FastDeploy not installed, expected one of 2.3"),
    ],
)
async def test_the_flag_check_says_why_it_cannot_compare(variables: dict[str, str], code: int, words: str) -> None:
    async with Worker(replayed_engine() | variables, arguments=("flags", "--check")) as worker:
        assert await worker.wait(30) == code
        assert words in worker.output


async def test_the_cold_start_is_told_phase_by_phase(jobs: JobServer) -> None:
    async with Worker(replayed_engine(), jobs.environment()) as worker:
        line = await worker.wait_line("cold start: ")
        phases = ["machine checked", "weights found", "engine chosen", "engine started", "engine answered", "SDK imported", "taking jobs"]
        found = {phase: float(seconds) for phase, seconds in re.findall(r"([\w ]+) (\d+\.\d\d) s", line.partition("cold start: ")[2])}
        assert sorted(name.strip() for name in found) == sorted(phases)
        assert found[" taking jobs"] == max(found.values())
