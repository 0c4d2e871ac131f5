"""The engine that is chosen, and the look at machine and checkpoint, with a program that answers as nvidia-smi does."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint.find import Weights
from checkpoint.unavailable import ModelUnavailable
from handler.engine import EngineKind
from handler.engines import choose_engine, further_problems
from handler.errors import EngineFailedToStart, InvalidJob, InvalidSettings
from handler.fastdeploy.flags import variable_names
from handler.job import CHAT, Request
from handler.settings import BatchLimits, read_settings
from tests import DEMO

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "torch_dtype": "bfloat16",
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 48,
    "vocab_size": 150000,
    "max_position_embeddings": 32768,
}
RTX = "NVIDIA GeForce RTX 4090, 8.9, 24564, 24000, 560.35"
MATRIX = (4096, 1 << 20)  # 8.6 GB in 16 bits


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return the way to say which GPUs this machine has: one word of nvidia-smi's answer for each, in the order of their numbers."""

    def have(*properties: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        lines = "".join(f"{number}, {said}, GPU-{number}aaa\n" for number, said in enumerate(properties))
        program.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return have


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of 34 GB, half of it experts, whose file holds nothing but its header."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = ["layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight", "layers.0.mlp.experts.0.w", "layers.0.mlp.experts.1.w"]
    size = 2 * MATRIX[0] * MATRIX[1]
    header = json.dumps(
        {
            name: {"dtype": "BF16", "shape": MATRIX, "data_offsets": [number * size, (number + 1) * size]}
            for number, name in enumerate(names)
        }
    ).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + len(names) * size)
    return folder


def chosen(checkpoint: Path, **texts: str) -> EngineKind:
    written = {"MODEL": str(checkpoint), "ENGINE": "fastdeploy", "FASTDEPLOY_RELEASE": "2.5", "FD_LOG_DIR": "/logs", **texts}
    settings = read_settings(written, engine_names=variable_names())
    return choose_engine(settings).prepare(Weights(model=str(checkpoint), directory=checkpoint, origin="directory"))


@pytest.mark.parametrize("quantization", [
    "wint4",
    "WINT4",
    '{"quantization": "wint4"}',
    '{"quantization": "mix_quant", "dense_quant_type": "wint8", "moe_quant_type": "wint4"}',
])  # fmt: skip
def test_a_model_that_fits_once_it_is_quantized_is_not_refused(gpus: Callable[..., None], checkpoint: Path, quantization: str) -> None:
    gpus(RTX)
    engine = chosen(checkpoint, QUANTIZATION=quantization)
    engine.examine()


@pytest.mark.parametrize(("quantization", "need"), [
    ("", "34.4 GB"),
    ("kvcache", "34.4 GB"),
    ('{"quantization": "mix_quant", "dense_quant_type": "wint8", "moe_quant_type": "kvcache"}', "25.8 GB"),
    ('{"quantization": "mix_quant", "dense_quant_type": "kvcache", "moe_quant_type": "wint8"}', "25.8 GB"),
])  # fmt: skip
def test_a_model_that_no_quantization_makes_small_enough_is_refused(
    gpus: Callable[..., None], checkpoint: Path, quantization: str, need: str
) -> None:
    gpus(RTX)
    engine = chosen(checkpoint, QUANTIZATION=quantization)
    with pytest.raises(EngineFailedToStart, match=f"the weights alone need {need} on GPU 0"):
        engine.examine()


@pytest.mark.parametrize("quantization", [
    "mix_quant",
    '{"quantization": "mix_quant", "dense_quant_type": "wint8", "moe_quant_type": "w4w2"}',
])  # fmt: skip
def test_a_mixture_whose_bits_are_not_known_is_noted_and_not_refused(
    gpus: Callable[..., None], checkpoint: Path, quantization: str, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(RTX)
    engine = chosen(checkpoint, QUANTIZATION=quantization)
    with caplog.at_level("INFO"):
        engine.examine()
    assert "the GPU memory that the weights need could not be estimated: QUANTIZATION" in caplog.text


T4 = "Tesla T4, 7.5, 81559, 81559, 560.35"
H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 81079, 560.35"


@pytest.mark.parametrize(("visible", "devices"), [("", "0,1"), (" ", "0,1"), ("00", "0"), ("1", "1"), ("GPU-1a,00", "1,0")])
def test_the_gpus_that_are_looked_at_are_those_that_the_engine_gets(
    gpus: Callable[..., None], checkpoint: Path, visible: str, devices: str
) -> None:
    gpus(H100, H100, T4)
    engine = chosen(checkpoint, CUDA_VISIBLE_DEVICES=visible, IMAGE_ARCHITECTURES="90", IMAGE_CUDA="12.6")
    assert engine.variables()["CUDA_VISIBLE_DEVICES"] == devices
    engine.examine()


def test_every_gpu_that_the_engine_gets_is_looked_at(gpus: Callable[..., None], checkpoint: Path) -> None:
    gpus(H100, T4)
    engine = chosen(checkpoint, IMAGE_ARCHITECTURES="90", DATA_PARALLEL_SIZE="2")
    with pytest.raises(EngineFailedToStart, match=r"the GPU is a Tesla T4 \(SM75\)"):
        engine.examine()


def test_what_the_engine_finds_is_named_beside_what_is_wrong_with_the_worker_s_own_variables(gpus: Callable[..., None]) -> None:
    """Rule: every problem is named at once, whoever looks for it."""
    gpus(RTX)
    texts = {"MODEL": "org/name", "ENGINE": "fastdeploy", "FASTDEPLOY_RELEASE": "2.5"}
    wrong = {"MAX_NUM_SEQ": "4", "MAX_MODEL_LEN": "abc", "QUANTIZATION": "int3", "TENSOR_PARALLEL_SIZE": "2"}
    with pytest.raises(InvalidSettings) as caught:
        read_settings(texts | wrong, engine_names=variable_names())
    problems = caught.value.problems + further_problems(caught.value)
    assert [problem.partition(":")[0] for problem in problems] == [
        "MAX_NUM_SEQ",
        "MAX_MODEL_LEN",
        "QUANTIZATION",
        "TENSOR_PARALLEL_SIZE x DATA_PARALLEL_SIZE",
    ]


@pytest.mark.parametrize("texts", [
    {"ENGINE": "cpu"},
    {"FASTDEPLOY_RELEASE": "2.9"},
    {"FASTDEPLOY_RELEASE": "", "ENGINE_PYTHON": "/nowhere/python"},
    {"QUANTIZATION": "wint4"},
])  # fmt: skip
def test_nothing_more_is_named_where_the_engine_finds_nothing_or_cannot_be_told(
    texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # nor is a missing driver, which is no variable
    written = {"MODEL": "org/name", "ENGINE": "fastdeploy", "FASTDEPLOY_RELEASE": "2.5", "MAX_NUM_SEQ": "4", **texts}
    with pytest.raises(InvalidSettings) as caught:
        read_settings(written, engine_names=variable_names())
    named = {problem.partition(":")[0] for problem in caught.value.problems}
    assert not {problem.partition(":")[0] for problem in further_problems(caught.value)} - named - {"FASTDEPLOY_RELEASE"}


def test_wrong_variables_are_named_before_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    texts = {"MODEL": "org/name", "ENGINE": "fastdeploy", "FASTDEPLOY_RELEASE": "2.5", "IMAGE_ARCHITECTURES": "ampere"}
    with pytest.raises(InvalidSettings) as caught:
        choose_engine(read_settings({**texts, "QUANTIZATION": "int3"}, engine_names=variable_names()))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["QUANTIZATION", "IMAGE_ARCHITECTURES"]
    with pytest.raises(EngineFailedToStart, match="nvidia-smi is not there"):
        choose_engine(read_settings(texts | {"IMAGE_ARCHITECTURES": "90"}, engine_names=variable_names()))


def test_the_gpus_memory_is_told_while_it_loads_and_is_unknown_without_a_driver(
    gpus: Callable[..., None], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(RTX, RTX)
    engine = chosen(checkpoint, TENSOR_PARALLEL_SIZE="1")
    assert engine.gpu_memory() == (24564 - 24000) << 20
    monkeypatch.setenv("PATH", "/nowhere")
    assert engine.gpu_memory() is None


def test_the_cpu_engine_has_the_same_steps_and_looks_for_itself(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = choose_engine(read_settings({"MODEL": str(checkpoint), "ENGINE": "cpu", "QUANTIZATION": "wint4"}))
    assert caplog.messages == ["the CPU engine ignores QUANTIZATION"]
    start.accept({"architectures": ["MoonForCausalLM"]})
    engine = start.prepare(Weights(model=str(checkpoint), directory=checkpoint, origin="directory"))
    engine.examine()
    engine.bound_logs()
    assert (engine.fatal("launch_worker.log: Pod failed"), engine.gpu_memory(), engine.polls) == (False, None, False)
    with pytest.raises(ModelUnavailable, match="the CPU engine downloads nothing"):
        start.prepare(Weights(model="org/name", directory=None, origin="engine"))


def test_the_operators_word_on_requests_holds_for_the_cpu_engine_too() -> None:
    written = {"MODEL": "org/demo", "SERVED_MODEL_NAME": "served", "ENGINE": "cpu", "STRICT_REQUESTS": "1", "MAX_TOKENS_LIMIT": "5"}
    engine = choose_engine(read_settings(written)).prepare(Weights(model="org/demo", directory=DEMO, origin="directory"))
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for name in ("served", "org/demo", "demo", "default"):
        sent = engine.exchange(Request(method="POST", path=CHAT, body={**body, "model": name}, batch=BatchLimits())).sent.body
        assert sent
        assert (sent["model"], sent["max_tokens"]) == ("served", 5)
    wrongs: list[dict[str, Any]] = [{"model": "gpt-4"}, {"prediction": {}}]
    for wrong in wrongs:
        with pytest.raises(InvalidJob):
            engine.exchange(Request(method="POST", path=CHAT, body=body | wrong, batch=BatchLimits()))


@pytest.mark.parametrize("engine", ["cpu", "fastdeploy"])
def test_how_requests_are_put_can_be_given_to_another_process(engine: str, gpus: Callable[..., None], checkpoint: Path) -> None:
    """Rule: JOB_LOOP=sdk puts requests in a process of its own."""
    gpus(RTX)
    texts = {"MODEL": str(checkpoint), "SERVED_MODEL_NAME": "m", "ENGINE": engine, "FASTDEPLOY_RELEASE": "2.5"}
    start = choose_engine(read_settings(texts, engine_names=variable_names()))
    put = start.prepare(Weights(model=str(checkpoint), directory=checkpoint, origin="directory")).exchange
    request = Request(method="POST", path=CHAT, body={"messages": [{"role": "user", "content": "hi"}]}, batch=BatchLimits())
    assert pickle.loads(pickle.dumps(put))(request).sent == put(request).sent  # noqa: S301
