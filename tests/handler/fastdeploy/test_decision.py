from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidSettings
from handler.fastdeploy.decision import decide
from handler.fastdeploy.flags import EXTRA_ARGS, RELEASES, flag_table
from handler.settings import read_settings
from tests.handler.fastdeploy.starts import ERNIE, PADDLE, engine, flags, problems
from tests.strategies import SETTINGS


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
    }
    assert {dest: found[dest] for dest in expected} == expected
    assert (found["metrics_port"] is not None) == (release == "2.3")


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
    found = flags(prepared)
    assert (found["tensor_parallel_size"], found["max_num_batched_tokens"], found["timeout_graceful_shutdown"]) == (1, 4096, 3)
    assert (found["workers"], found["max_concurrency"], found["max_model_len"], found["max_num_seqs"]) == (2, 7, 3000, 4)
    assert (found["engine_worker_queue_port"], found["metrics_port"]) == (["41001"], 9100)
    environment = prepared.variables()
    assert (environment["DO_NOT_TRACK"], environment["FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE"]) == ("0", "0")
    assert environment["FD_FOR_TORCH_MODEL_FORMAT"] == "0"


def test_contradictions_are_reported_together_and_before_anything_is_loaded() -> None:
    texts = {"TENSOR_PARALLEL_SIZE": "3", "KV_CACHE_RATIO": "2", "MAX_MODEL_LEN": "200000", "QUANTIZATION": "int3", "FD_DEBUG": "true"}
    config = {**ERNIE, "num_attention_heads": 8, "num_key_value_heads": 8}
    assert list(decide(read_settings({"MODEL": "org/name", **texts}), "2.5", (), config).problems) == [
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


def test_a_machine_is_taken_to_have_eight_gpus_at_most() -> None:
    assert problems({"TENSOR_PARALLEL_SIZE": "8", "DATA_PARALLEL_SIZE": "2"}, count=16) == [
        "TENSOR_PARALLEL_SIZE x DATA_PARALLEL_SIZE: got 8 x 2 = 16, expected at most 8, the GPUs of one machine"
    ]


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
    assert flags(engine({"MAX_MODEL_LEN": str(longest)}, {**PADDLE, **config}))["max_model_len"] == longest
    assert len(problems({"MAX_MODEL_LEN": str(longest + 1)}, {**PADDLE, **config})) == 1


def test_a_model_that_is_shorter_than_the_engine_s_default_shortens_it() -> None:
    assert flags(engine({}, {**PADDLE, "max_position_embeddings": 512}))["max_model_len"] == 512
    assert flags(engine({"MAX_MODEL_LEN": "9000000"}, PADDLE))["max_model_len"] == 9000000


# --- names that the engine does not have

PARSERS = {"REASONING_PARSER": "ernie-45-vl ernie-45-vl-thinking ernie-x1 qwen3", "TOOL_CALL_PARSER": "ernie-45-vl-thinking ernie-x1"}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("variable", "unknown"), [
    ("TOOL_CALL_PARSER", "mistral"),
    ("TOOL_CALL_PARSER", "qwen3"),
    ("REASONING_PARSER", "deepseek_r1"),
    ("REASONING_PARSER", "Qwen3"),
])  # fmt: skip
def test_a_parser_that_the_engine_lacks_is_refused_with_those_it_has_unless_a_plugin_may_register_it(
    release: str, variable: str, unknown: str, tmp_path: Path
) -> None:
    own = PARSERS[variable].split()
    (problem,) = problems({variable: unknown}, release=release)
    ours = "one of the worker's, auto, off, hermes, ernie, qwen-xml, glm, deepseek, gpt-oss, " if variable == "TOOL_CALL_PARSER" else ""
    assert problem == (
        f"{variable}: got {unknown!r}, expected {ours}one of FastDeploy {release}'s own, {', '.join(own)}, "
        "or a file that registers it (TOOL_PARSER_PLUGIN)"
    )
    assert problems({EXTRA_ARGS: f"--{variable.lower().replace('_', '-')} {unknown}"}, release=release) == [problem]
    plugin = tmp_path / "parsers.py"
    assert problems({variable: unknown, "TOOL_PARSER_PLUGIN": str(plugin)}) == [
        f"TOOL_PARSER_PLUGIN: got {str(plugin)!r}, expected a file of Python"
    ]
    plugin.touch()
    for how in ({"TOOL_PARSER_PLUGIN": str(plugin)}, {"FD_PLUGINS": "parsers"}):
        assert flags(engine({variable: unknown, **how}, release=release))[variable.lower()] == unknown
    for name in own:
        engine({variable: name}, release=release)
        engine({variable: name.replace("-", "_")}, release=release)


@pytest.mark.parametrize(("texts", "release", "expected"), [
    ({"SPECULATIVE_CONFIG": '{"method": "ngram"}'}, "2.5", "SPECULATIVE_CONFIG: got method 'ngram', expected one of mtp, ngram_match"),
    ({"SPECULATIVE_CONFIG": '{"method": "ngram_match"}'}, "2.6", "expected one of mtp, naive, ngram, suffix"),
    ({"SPECULATIVE_CONFIG": '{"method": 5}'}, "2.6", "got method 5, expected one of"),
    ({"SPECULATIVE_CONFIG": '{"method": "ngram"}'}, "2.6", ""),
    ({"SPECULATIVE_CONFIG": "{}"}, "2.3", ""),
    ({"FD_ATTENTION_BACKEND": "FLASHINFER"}, "2.3", "FD_ATTENTION_BACKEND: got 'FLASHINFER', expected one of NATIVE_ATTN, APPEND_ATTN"),
    ({"FD_ATTENTION_BACKEND": "DSA_ATTN"}, "2.5", "got 'DSA_ATTN'"),
    ({"FD_ATTENTION_BACKEND": "DSA_ATTN"}, "2.6", ""),
    ({"FD_SAMPLING_CLASS": "greedy"}, "2.4", "FD_SAMPLING_CLASS: got 'greedy', expected one of base, base_non_truncated, air, rejection"),
    ({"FD_SAMPLING_CLASS": "AIR"}, "2.4", ""),
    ({"FD_MODEL_SOURCE": "GITHUB"}, "2.3", "FD_MODEL_SOURCE: got 'GITHUB', expected one of AISTUDIO, MODELSCOPE, HUGGINGFACE"),
    ({"FD_MOE_BACKEND": "flashinfer-cutlass"}, "2.4", "FD_MOE_BACKEND: got 'flashinfer-cutlass', expected one of cutlass, marlin, triton"),
])  # fmt: skip
def test_a_name_of_what_the_release_does_not_have_is_refused_before_it_starts(texts: dict[str, str], release: str, expected: str) -> None:
    """Rule: such a name ends a worker once the model is loaded, or is read as the default without a word."""
    if expected:
        (problem,) = problems(texts, release=release)
        assert expected in problem
    else:
        engine(texts, release=release)


# --- what a start says that works


def notes(texts: Mapping[str, str], config: Mapping[str, Any], release: str = "2.5") -> tuple[str, ...]:
    return decide(read_settings({"MODEL": "org/name", **texts}), release, (), config).notes


@pytest.mark.parametrize("release", RELEASES)
def test_a_length_that_nobody_asked_for_is_told_with_what_the_model_allows_and_the_variable(release: str) -> None:
    """Rule: with MAX_MODEL_LEN unset FastDeploy serves 2048 tokens whatever the model allows."""
    (note,) = notes({}, ERNIE, release)
    assert note.startswith("MAX_MODEL_LEN: not set, so prompt and answer together may have 2048 tokens, FastDeploy's default;")
    assert note.endswith("the model allows 131072")
    for texts in ({"MAX_MODEL_LEN": "2048"}, {EXTRA_ARGS: "--max-model-len 4096"}):
        assert notes(texts, ERNIE, release) == ()
    assert notes({}, ERNIE | {"max_position_embeddings": 2048}, release) == notes({}, {}, release) == ()


def test_a_quantization_that_the_checkpoint_overrules_is_named() -> None:
    stored = {**ERNIE, "max_position_embeddings": 2048, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert notes({"QUANTIZATION": "wint4"}, stored) == (
        "QUANTIZATION: has no effect, since the weights are stored quantized (fp8) and FastDeploy uses that",
    )
    assert notes({}, stored) == ()


def test_a_model_that_only_paddleformers_may_run_is_said_to_be_one() -> None:
    llama = {**ERNIE, "max_position_embeddings": 2048, "architectures": ["LlamaForCausalLM"]}
    assert notes({}, llama) == ("FastDeploy 2.5 has no LlamaForCausalLM of its own: PaddleFormers' stands in, if it has one",)


def test_what_works_but_may_surprise_is_logged_when_the_engine_is_prepared(caplog: pytest.LogCaptureFixture) -> None:
    engine()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == list(notes({}, ERNIE))
