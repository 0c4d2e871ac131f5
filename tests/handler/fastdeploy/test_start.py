from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidSettings
from handler.fastdeploy.flags import EXTRA_ARGS, RELEASES, flag_table
from handler.fastdeploy.start import FastDeployEngine, Gpu, Host, check, prepare
from handler.settings import read_settings
from tests.handler.fastdeploy.stand_in import install
from tests.handler.fastdeploy.test_laws import accepted
from tests.strategies import SETTINGS

ERNIE = {"num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 131072, "torch_dtype": "bfloat16"}
LOGS = Path("/var/log/engine")


def gpus(count: int) -> tuple[Gpu, ...]:
    return tuple(Gpu(index=index, uuid=f"GPU-{index}a5b0c9e-0000") for index in range(count))


def engine(
    texts: Mapping[str, str] | None = None, config: Mapping[str, Any] | None = None, release: str = "2.5", count: int = 0
) -> FastDeployEngine:
    texts = {"MODEL": "org/name", **(texts or {})}
    host = Host(gpus=gpus(count), free_ports=lambda wanted: range(41000, 41000 + wanted), log_directory=LOGS)
    return prepare(read_settings(texts), Path("/model"), ERNIE if config is None else config, host=host, texts=texts, release=release)


def flags(prepared: FastDeployEngine, port: int = 40999) -> dict[str, Any]:
    return accepted(prepared.command(port)[2:], prepared.release)


def problems(texts: Mapping[str, str], config: Mapping[str, Any] | None = None, release: str = "2.5", count: int = 0) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        engine(texts, config, release, count)
    return caught.value.problems


@pytest.mark.parametrize("release", RELEASES)
def test_with_a_model_alone_the_engine_gets_flags_that_work(release: str) -> None:
    found = flags(engine(release=release))
    expected = {
        "host": "127.0.0.1",
        "port": 40999,
        "model": "/model",
        "served_model_name": "org/name",
        "workers": 1,
        "max_concurrency": 512,
        "timeout_graceful_shutdown": 10,
        "tensor_parallel_size": 1,
        "max_model_len": 2048,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 8192,
        "engine_worker_queue_port": ["41000"],
        "cache_queue_port": ["41001"],
        "metrics_port": 41002 if release == "2.3" else None,
    }
    assert {dest: found[dest] for dest in expected} == expected


@pytest.mark.parametrize("release", RELEASES)
def test_what_the_operator_says_beats_every_default(release: str) -> None:
    texts = {
        "TENSOR_PARALLEL_SIZE": "1",
        "MAX_NUM_BATCHED_TOKENS": "4096",
        "TIMEOUT_GRACEFUL_SHUTDOWN": "3",
        "ENGINE_WORKER_QUEUE_PORT": "41001",
        "METRICS_PORT": "9100",
        EXTRA_ARGS: "--workers 2 --max-concurrency 7 --max-model-len 3000 --max-num-seqs 4",
        "MAX_MODEL_LEN": "1000",
        "DO_NOT_TRACK": "0",
        "FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE": "0",
        "FD_FOR_TORCH_MODEL_FORMAT": "0",
    }
    prepared = engine(texts, {**ERNIE, "transformers_version": "5.1.0"}, release, count=4)
    found = flags(prepared, port=41000)
    assert (found["tensor_parallel_size"], found["max_num_batched_tokens"], found["timeout_graceful_shutdown"]) == (1, 4096, 3)
    assert (found["workers"], found["max_concurrency"], found["max_model_len"], found["max_num_seqs"]) == (2, 7, 3000, 4)
    assert (found["engine_worker_queue_port"], found["cache_queue_port"], found["metrics_port"]) == (["41001"], ["41003"], 9100)
    environment = prepared.variables()
    assert (environment["DO_NOT_TRACK"], environment["FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE"]) == ("0", "0")
    assert environment["FD_FOR_TORCH_MODEL_FORMAT"] == "0"


def test_contradictions_are_reported_together_and_before_anything_is_loaded() -> None:
    texts = {"TENSOR_PARALLEL_SIZE": "3", "KV_CACHE_RATIO": "2", "MAX_MODEL_LEN": "200000", "QUANTIZATION": "int3", "FD_DEBUG": "true"}
    assert problems(texts, {**ERNIE, "num_attention_heads": 8, "num_key_value_heads": 8}) == [
        "KV_CACHE_RATIO: got '2', expected a number from 0 to 1",
        "QUANTIZATION: got 'int3', expected one of " + ", ".join(flag_table("2.5")["quantization"].choices),
        "FD_DEBUG: got 'true', expected a whole number; FastDeploy's switches are 1 and 0",
        "MAX_MODEL_LEN: got 200000, expected at most 131072, which is what the model's config.json allows",
        "TENSOR_PARALLEL_SIZE: got 3, expected a divisor of the model's num_attention_heads, which is 8",
        "TENSOR_PARALLEL_SIZE: got 3, expected a divisor or a multiple of the model's num_key_value_heads, which is 8",
    ]


@pytest.mark.parametrize(("texts", "count", "parallel", "devices"), [
    ({}, 0, 1, None),
    ({}, 1, 1, "0"),
    ({}, 4, 4, "0,1,2,3"),
    ({}, 3, 2, "0,1"),
    ({"TENSOR_PARALLEL_SIZE": "1"}, 4, 1, "0"),
    ({"DATA_PARALLEL_SIZE": "4"}, 4, 1, "0,1,2,3"),
    ({"CUDA_VISIBLE_DEVICES": "3,1"}, 4, 2, "3,1"),
    ({"CUDA_VISIBLE_DEVICES": " 2 "}, 4, 1, "2"),
    ({"CUDA_VISIBLE_DEVICES": "1,2,3"}, 0, 2, "1,2"),
    ({"TENSOR_PARALLEL_SIZE": "8"}, 8, 8, "0,1,2,3,4,5,6,7"),
    ({"CUDA_VISIBLE_DEVICES": "GPU-3a5b,0"}, 4, 2, "3,0"),
])  # fmt: skip
def test_the_model_is_spread_over_the_gpus_that_its_heads_divide(
    texts: Mapping[str, str], count: int, parallel: int, devices: str | None
) -> None:
    prepared = engine(texts, count=count)
    assert flags(prepared)["tensor_parallel_size"] == parallel
    assert prepared.variables().get("CUDA_VISIBLE_DEVICES") == devices


@pytest.mark.parametrize(("texts", "count", "expected"), [
    ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, 1, [
        "got 'MIG-1', expected whole numbers: FastDeploy cannot run on a slice of a GPU (MIG), take a whole one",
    ]),
    ({"CUDA_VISIBLE_DEVICES": "GPU-ff"}, 2, ["got 'GPU-ff', expected whole numbers (0, 1): no one GPU here has this uuid"]),
    ({"CUDA_VISIBLE_DEVICES": "GPU-"}, 2, ["got 'GPU-', expected whole numbers (0, 1): no one GPU here has this uuid"]),
    ({"CUDA_VISIBLE_DEVICES": "GPU-0"}, 0, ["got 'GPU-0', expected whole numbers: no one GPU here has this uuid"]),
    ({"CUDA_VISIBLE_DEVICES": "0,5,all"}, 2, [
        "got '5', expected a GPU of this machine: 0, 1",
        "got 'all', expected whole numbers separated by commas",
    ]),
    ({"CUDA_VISIBLE_DEVICES": "1,1"}, 2, ["got '1,1', which names GPU 1 twice, expected each once"]),
    ({"CUDA_VISIBLE_DEVICES": "0,"}, 2, ["got '', expected whole numbers separated by commas"]),
])  # fmt: skip
def test_devices_that_fastdeploy_would_crash_on_are_refused(texts: Mapping[str, str], count: int, expected: list[str]) -> None:
    assert problems(texts, count=count) == [f"CUDA_VISIBLE_DEVICES: {problem}" for problem in expected]


@pytest.mark.parametrize(("texts", "expected"), [
    (
        {"TENSOR_PARALLEL_SIZE": "2"},
        "TENSOR_PARALLEL_SIZE x DATA_PARALLEL_SIZE: got 2 x 1 = 2, expected at most 1, the number of visible GPUs",
    ),
    ({"METRICS_PORT": "9000", "CONTROLLER_PORT": "9000"}, "METRICS_PORT, CONTROLLER_PORT: got 9000 2 times, expected ports of their own"),
    ({"PORT": "8000", "METRICS_PORT": "8000"}, "METRICS_PORT, PORT: got 8000 2 times, expected ports of their own"),
    (
        {"ENGINE_WORKER_QUEUE_PORT": "9000,9001"},
        "ENGINE_WORKER_QUEUE_PORT: got 2 ports, expected one for each model copy (DATA_PARALLEL_SIZE), which is 1",
    ),
    ({"MAX_NUM_BATCHED_TOKENS": "63"}, "MAX_NUM_BATCHED_TOKENS: got 63, expected at least BLOCK_SIZE, which is 64"),
    (
        {"MAX_NUM_BATCHED_TOKENS": "99999"},
        "MAX_NUM_BATCHED_TOKENS: got 99999, expected at most MAX_MODEL_LEN x MAX_NUM_SEQS, which is 16384",
    ),
    ({"MAX_MODEL_LEN": "32", "MAX_NUM_SEQS": "1"}, "MAX_MODEL_LEN x MAX_NUM_SEQS: got 32, expected at least BLOCK_SIZE, which is 64"),
    ({"MAX_MODEL_LEN": "15"}, "MAX_MODEL_LEN: got 15, expected a number of at least 16"),
    ({"MAX_LONG_PARTIAL_PREFILLS": "2"}, "MAX_LONG_PARTIAL_PREFILLS: got 2, expected at most MAX_NUM_PARTIAL_PREFILLS, which is 1"),
    (
        {"MAX_NUM_PARTIAL_PREFILLS": "2", "FD_DISABLE_CHUNKED_PREFILL": "1"},
        "MAX_NUM_PARTIAL_PREFILLS: got 2, expected 1 unless ENABLE_CHUNKED_PREFILL is true",
    ),
    (
        {"GUIDED_DECODING_BACKEND": "auto", "SPECULATIVE_CONFIG": '{"method": "mtp"}'},
        "GUIDED_DECODING_BACKEND: expected off together with SPECULATIVE_CONFIG: FastDeploy cannot guide speculative decoding",
    ),
    ({"FD_DISABLED_RECOVER": "1"}, "FD_DISABLED_RECOVER: expected 0 unless ENABLE_V1_KVCACHE_SCHEDULER is 0"),
])  # fmt: skip
def test_values_that_fastdeploy_refuses_together_are_refused_before_it_starts(texts: Mapping[str, str], expected: str) -> None:
    assert problems(texts, count=1) == [expected]


@pytest.mark.parametrize(("texts", "tokens"), [
    ({}, 8192),
    ({"MAX_NUM_SEQS": "1"}, 2048),
    ({"MAX_MODEL_LEN": "100000"}, 8192),
    ({"ENABLE_V1_KVCACHE_SCHEDULER": "0"}, 2048),
    ({"FD_DISABLE_CHUNKED_PREFILL": "1", "MAX_MODEL_LEN": "100000"}, 100000),
    ({"FD_DISABLE_CHUNKED_PREFILL": "1", "ENABLE_CHUNKED_PREFILL": "true"}, 8192),
    ({"SPLITWISE_ROLE": "decode", "MAX_MODEL_LEN": "100000"}, 100000),
    ({"MAX_NUM_SEQS": "256", "MAX_MODEL_LEN": "16", "BLOCK_SIZE": "1"}, 4096),
])  # fmt: skip
def test_a_step_holds_as_many_tokens_as_the_other_limits_allow(texts: Mapping[str, str], tokens: int) -> None:
    assert flags(engine(texts))["max_num_batched_tokens"] == tokens


@SETTINGS
@given(st.integers(16, 200_000), st.integers(1, 256), st.booleans(), st.booleans(), st.sampled_from(RELEASES))
def test_the_engine_s_own_assertions_hold_for_any_limits(length: int, together: int, v1: bool, whole: bool, release: str) -> None:
    """Rule (FDConfig.check): max_num_seqs <= max_num_batched_tokens <= max_model_len * max_num_seqs, at least a block or a prompt."""
    texts = {
        "MAX_MODEL_LEN": str(length),
        "MAX_NUM_SEQS": str(together),
        "ENABLE_V1_KVCACHE_SCHEDULER": str(int(v1)),
        "FD_DISABLE_CHUNKED_PREFILL": str(int(whole)),
    }
    config = {**ERNIE, "max_position_embeddings": 200_000}
    if not whole and length * together < 64:
        assert problems(texts, config, release) == [
            f"MAX_MODEL_LEN x MAX_NUM_SEQS: got {length * together}, expected at least BLOCK_SIZE, which is 64"
        ]
        return
    tokens = flags(engine(texts, config, release))["max_num_batched_tokens"]
    assert together <= tokens <= length * together
    assert tokens >= (length if whole else 64)


@SETTINGS
@given(st.integers(1, 128), st.integers(1, 16), st.integers(0, 8), st.none() | st.integers(1, 8))
def test_parallelism_always_divides_the_heads_and_fits_the_gpus(heads: int, kv_heads: int, count: int, asked: int | None) -> None:
    """Rule: "tensor parallel = visible GPUs unless the user said otherwise, and only where the heads can be dealt out".

    FastDeploy (QKVParallelLinear) keeps a key/value head on several ranks where there are fewer of them than ranks and the ranks are a
    multiple of them.
    """

    def dealt(size: int) -> bool:
        return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)

    config = {**ERNIE, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    texts = {} if asked is None else {"TENSOR_PARALLEL_SIZE": str(asked)}
    try:
        prepared = engine(texts, config, count=count)
    except InvalidSettings:
        assert asked is not None
        assert not dealt(asked) or asked > (count or 8)
        return
    size = flags(prepared)["tensor_parallel_size"]
    assert asked in (None, size)
    assert dealt(size)
    assert not [more for more in range(size + 1, count + 1) if asked is None and dealt(more)]
    assert prepared.variables().get("CUDA_VISIBLE_DEVICES", "").count(",") == (size - 1 if count else 0)


@pytest.mark.parametrize(("config", "longest"), [
    ({"max_position_embeddings": 4096}, 4096),
    ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
    ({"max_position_embeddings": 4096, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 2048}}, 8192),
    ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2}}, 8192),
    ({"max_position_embeddings": 4096, "rope_scaling": {"factor": float("inf")}}, 4096),
    ({"max_position_embeddings": 4096, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, 4096),
    ({"text_config": {"max_position_embeddings": 4096}}, 4096),
])  # fmt: skip
def test_the_model_s_longest_context_is_the_limit(config: Mapping[str, Any], longest: int) -> None:
    assert flags(engine({"MAX_MODEL_LEN": str(longest)}, {"dtype": "bfloat16", **config}))["max_model_len"] == longest
    assert len(problems({"MAX_MODEL_LEN": str(longest + 1)}, {"dtype": "bfloat16", **config})) == 1


def test_a_model_that_is_shorter_than_the_engine_s_default_shortens_it() -> None:
    assert flags(engine({}, {"dtype": "bfloat16", "max_position_embeddings": 512}))["max_model_len"] == 512
    assert flags(engine({"MAX_MODEL_LEN": "9000000"}, {"dtype": "bfloat16"}))["max_model_len"] == 9000000


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("config", "misread"), [
    ({"torch_dtype": "bfloat16", "transformers_version": "4.55.0"}, False),
    ({"torch_dtype": "bfloat16", "transformers_version": "5.0.0"}, False),
    ({"dtype": "bfloat16"}, False),
    ({"dtype": "bfloat16", "transformers_version": "4.55.4"}, False),
    ({"dtype": "bfloat16", "transformers_version": "4.56.0"}, True),
    ({"dtype": "bfloat16", "transformers_version": "5.0.0.dev0"}, True),
    ({"dtype": "bfloat16", "transformers_version": None}, False),
])  # fmt: skip
def test_weights_whose_layout_would_be_misread_are_declared(release: str, config: Mapping[str, Any], misread: bool) -> None:
    assert engine({}, config, release).variables().get("FD_FOR_TORCH_MODEL_FORMAT") == ("1" if misread else None)


@pytest.mark.parametrize(("config", "got"), [({"torch_dtype": "x", "dtype": "x"}, "both"), ({"model_type": "ernie4_5"}, "neither")])
def test_a_config_that_fastdeploy_stops_over_is_refused(config: Mapping[str, Any], got: str) -> None:
    (problem,) = problems({}, config)
    assert problem.startswith(f"config.json: got {got} of torch_dtype and dtype, expected one")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("config", "declared"), [
    ({"text_config": {"dtype": "bfloat16"}, "vision_config": {}, "transformers_version": "4.57.0.dev0"}, "1"),
    ({"text_config": {"dtype": "bfloat16"}, "vision_config": {}}, None),
    ({"text_config": {"torch_dtype": "bfloat16"}, "vision_config": {}}, None),
    ({"quantization_config": {"quant_method": "mxfp4"}, "transformers_version": "4.55.0.dev0"}, None),
])  # fmt: skip
def test_from_2_5_on_the_layout_is_told_by_the_language_part_or_by_mxfp4(
    release: str, config: Mapping[str, Any], declared: str | None
) -> None:
    """Qwen3-VL has its dtype in text_config, and gpt-oss has none (ModelConfig.read_model_config)."""
    if release in ("2.3", "2.4"):
        assert problems({}, config, release)[0].startswith("config.json: got neither of torch_dtype and dtype")
    else:
        assert engine({}, config, release).variables().get("FD_FOR_TORCH_MODEL_FORMAT") == declared


@pytest.mark.parametrize("release", RELEASES)
def test_a_type_in_both_parts_is_one_only_where_the_parts_are_read_together(release: str) -> None:
    config = {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}
    if release in ("2.3", "2.4"):
        engine({}, config, release)
    else:
        assert "got both" in problems({}, config, release)[0]
    assert "got neither" in problems({}, {"quantization_config": {"quant_method": "fp8"}}, release)[0]


@pytest.mark.parametrize(
    "path", ["/my models/x", "/models/$HOME", "/models/a;b", "/models/a'b", "/models/(a)", "/models/a\tb", "/models/*"]
)
def test_a_path_that_the_launchers_shell_would_take_apart_is_refused(path: str) -> None:
    """FastDeploy builds its launcher's command as one text, in which --model and --log_dir stand unquoted."""
    texts = {"MODEL": "org/name"}
    host = Host(gpus=(), free_ports=range, log_directory=LOGS)
    with pytest.raises(InvalidSettings) as caught:
        prepare(read_settings(texts), Path(path), ERNIE, host=host, texts=texts, release="2.5")
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
    texts |= {"MODEL": "org/name"}
    host = Host(gpus=gpus(2), free_ports=range, log_directory=LOGS)
    if refused:
        with pytest.raises(InvalidSettings):
            check(read_settings(texts), host=host, texts=texts, release="2.5")
        return
    assert check(read_settings(texts), host=host, texts=texts, release="2.5") == [0, 1]
    config = {**ERNIE, "max_position_embeddings": 512 if "MAX_MODEL_LEN" not in texts else 99999999}
    prepare(read_settings(texts), Path("/model"), config, host=host, texts=texts, release="2.5")


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
    assert environment == {
        "CUDA_VISIBLE_DEVICES": "0",
        "DO_NOT_TRACK": "1",
        "FD_LOG_DIR": str(LOGS),
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


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command of a prepared engine, really run, with the stand-in where FastDeploy would be."""
    texts = {"MODEL": "org/name", "ENGINE_PYTHON": sys.executable, "CHAT_TEMPLATE": "-{{ x }} 'y'"}
    host = Host(gpus=gpus(1), free_ports=free_ports, log_directory=tmp_path / "log")
    prepared = prepare(read_settings(texts), tmp_path, ERNIE, host=host, texts=texts, release="2.4")
    environment = {**os.environ, **prepared.variables(), "PYTHONPATH": str(install(tmp_path, "2.4"))}
    command = prepared.command(free_ports(1)[0])
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


def test_the_operators_word_on_requests_reaches_their_rules() -> None:
    rules = engine({"STRICT_REQUESTS": "1", "ALLOW_PRIVATE_MEDIA": "true", "MAX_TOKENS_LIMIT": "7"}, release="2.4").rules
    assert (rules.strict, rules.private_media, rules.max_tokens_limit, rules.engine.name) == (True, True, 7, "FastDeploy 2.4")
    assert not engine().rules.private_media
