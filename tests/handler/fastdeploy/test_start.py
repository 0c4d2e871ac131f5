from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkpoint.find import Weights
from handler.engine import free_ports
from handler.errors import EngineFailedToStart, InvalidSettings
from handler.fastdeploy.flags import RELEASES
from handler.fastdeploy.gpus import Gpu
from handler.fastdeploy.start import FastDeployStart, release_of
from handler.settings import read_settings
from tests.handler.fastdeploy.stand_in import install
from tests.handler.fastdeploy.starts import ERNIE, LOGS, engine, flags, problems, start, weights


@pytest.mark.parametrize(
    "path", ["/my models/x", "/models/$HOME", "/models/a;b", "/models/a'b", "/models/(a)", "/models/a\tb", "/models/*"]
)
def test_a_path_that_the_launchers_shell_would_take_apart_is_refused(path: str) -> None:
    """FastDeploy builds its launcher's command as one text, in which --model and --log_dir stand unquoted."""
    with pytest.raises(InvalidSettings) as caught:
        start().prepare(weights(ERNIE, path))
    expected = "expected a path without white space and characters of the shell: FastDeploy's launcher does not quote it"
    assert caught.value.problems == [f"MODEL: its weights are in {path!r}, {expected}"]
    assert problems({"FD_LOG_DIR": path}) == [f"FD_LOG_DIR: got {path!r}, {expected}"]


@pytest.mark.parametrize("path", ["/models/models--org--Name-1.5_x/snapshots/0a1b", "/models/a+b@c,d:e=f%", "/models/模型"])
def test_a_path_that_every_shell_leaves_alone_is_taken(path: str) -> None:
    assert engine({"FD_LOG_DIR": path}).variables()["FD_LOG_DIR"] == path


@pytest.mark.parametrize(("texts", "refused"), [
    ({"QUANTIZATION": "int3"}, True),
    ({"MAX_MODEL_LEN": "8", "MAX_NUM_SEQS": "2"}, True),
    ({"TENSOR_PARALLEL_SIZE": "4"}, True),
    ({"CUDA_VISIBLE_DEVICES": "7"}, True),
    ({"FD_LOG_DIR": "/my logs"}, True),
    ({"TENSOR_PARALLEL_SIZE": "2", "MAX_MODEL_LEN": "9999999"}, False),
    ({"FD_DISABLE_CHUNKED_PREFILL": "1", "MAX_NUM_BATCHED_TOKENS": "1024"}, False),
])  # fmt: skip
def test_only_what_no_checkpoint_could_make_right_is_refused_without_one(texts: dict[str, str], refused: bool) -> None:
    if refused:
        with pytest.raises(InvalidSettings):
            start(texts, count=2)
        return
    ready = start(texts, count=2)
    config = {**ERNIE, "max_position_embeddings": 512 if "MAX_MODEL_LEN" not in texts else 99999999}
    ready.accept(config)
    assert ready.prepare(weights(config)).variables()["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize("release", RELEASES)
def test_the_engine_s_environment_holds_what_it_needs_and_no_key(release: str) -> None:
    texts = {
        "FD_MODEL_SOURCE": "HUGGINGFACE",
        "FD_API_KEY": "sk-1",
        "API_KEY": "sk-2",
        "FD_DEBUG": "",
        "FD_TOKEN_PROCESSOR_HEALTH_TIMEOUT": "60",
    }
    environment = engine({**texts, "RUNPOD_AI_API_KEY": "r", "HF_TOKEN": "t"}, release=release, count=1).variables()
    assert environment.pop("FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE", None) == ("1" if release == "2.5" else None)
    assert environment.pop("FD_LOG_REQUESTS", None) == ("0" if release == "2.6" else None), "prompts stay out of its logs"
    assert environment == {
        "CUDA_VISIBLE_DEVICES": "0",
        "DO_NOT_TRACK": "1",
        "FD_LOG_DIR": LOGS,
        "FD_MODEL_SOURCE": "HUGGINGFACE",
        "FD_TOKEN_PROCESSOR_HEALTH_TIMEOUT": "60",
    }


def test_a_relative_log_directory_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert engine({"FD_LOG_DIR": "log"}).variables()["FD_LOG_DIR"] == str(tmp_path / "log")


@pytest.mark.parametrize("release", RELEASES)
def test_every_port_is_pinned_free_and_of_its_own(release: str) -> None:
    prepared = engine({"DATA_PARALLEL_SIZE": "4", "CONTROLLER_PORT": "41003", "CACHE_QUEUE_PORT": "0"}, release=release, count=4)
    found = flags(prepared, port=41001)
    ports = [*found["engine_worker_queue_port"], *found["cache_queue_port"], str(found["port"]), str(found["controller_port"])]
    ports += [str(found["metrics_port"])] if release == "2.3" else []
    assert len(set(ports)) == len(ports) == (11 if release == "2.3" else 10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command of a prepared engine, really run, with the stand-in where FastDeploy would be."""
    texts = {"ENGINE_PYTHON": sys.executable, "CHAT_TEMPLATE": "-{{ x }} 'y'", "FD_LOG_DIR": str(tmp_path / "log")}
    prepared = start(texts, "2.4", 1).prepare(weights(ERNIE, str(tmp_path)))
    environment = {**os.environ, **prepared.variables(), "PYTHONPATH": str(install(tmp_path, "2.4"))}
    command = prepared.command(*free_ports(1))
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, json.loads([process.stdout.readline(), process.stdout.readline()][1])
        process.communicate("\n", timeout=30)
    assert process.returncode == 0


def test_no_queue_of_the_running_server_listens_beyond_loopback(server: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    process, said = server
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = {tuple(found.laddr) for member in family for found in member.net_connections("inet") if found.status == psutil.CONN_LISTEN}
    queues = [int(said["arguments"][dest][0]) for dest in ("engine_worker_queue_port", "cache_queue_port")]
    assert listening == {("127.0.0.1", port) for port in queues}


def test_the_running_server_was_given_what_was_prepared(server: tuple[subprocess.Popen[str], dict[str, Any]], tmp_path: Path) -> None:
    _, said = server
    assert said["environment"] == {"CUDA_VISIBLE_DEVICES": "0", "FD_LOG_DIR": str(tmp_path / "log"), "DO_NOT_TRACK": "1"}
    assert (said["arguments"]["chat_template"], said["arguments"]["host"]) == ("-{{ x }} 'y'", "127.0.0.1")


def test_an_image_without_kernels_for_the_first_gpu_is_refused_before_there_is_a_checkpoint() -> None:
    texts = {"MODEL": "org/name", "FASTDEPLOY_RELEASE": "2.5", "IMAGE_ARCHITECTURES": "86,89"}
    gpu = Gpu(index=0, name="NVIDIA H100", capability=90, driver="550.54")
    with pytest.raises(EngineFailedToStart, match="use the sm90 image"):
        FastDeployStart(read_settings(texts), lambda: (gpu,))
    FastDeployStart(read_settings(texts | {"IMAGE_ARCHITECTURES": "90"}), lambda: (gpu,))


def test_the_release_is_the_named_one_or_the_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"MODEL": "org/name", "ENGINE_PYTHON": sys.executable}
    with pytest.raises(InvalidSettings, match=r"FASTDEPLOY_RELEASE: not set, and ENGINE_PYTHON=.* has no FastDeploy; expected one of 2\.3"):
        release_of(read_settings(texts).engine)
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path, "2.4")))
    assert release_of(read_settings(texts).engine) == "2.4"
    assert release_of(read_settings(texts | {"FASTDEPLOY_RELEASE": "2.6"}).engine) == "2.6"


def test_a_model_that_fastdeploy_downloads_itself_has_its_name_and_its_source() -> None:
    """Rule: what the weights need beside is of the engine's environment, and nothing is judged by a config.json that is not there."""
    found = Weights(model="org/name", directory=None, origin="engine", variables={"FD_MODEL_SOURCE": "MODELSCOPE"})
    prepared = start().prepare(found)
    assert (flags(prepared)["model"], prepared.variables()["FD_MODEL_SOURCE"]) == ("org/name", "MODELSCOPE")
    prepared.examine()


def test_the_operators_word_on_requests_reaches_their_rules() -> None:
    rules = engine({"STRICT_REQUESTS": "1", "ALLOW_PRIVATE_MEDIA": "true", "MAX_TOKENS_LIMIT": "7"}, release="2.4").rules
    assert (rules.strict, rules.private_media, rules.max_tokens_limit, rules.engine.name) == (True, True, 7, "FastDeploy 2.4")
    assert not engine().rules.private_media
