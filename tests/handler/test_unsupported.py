"""Variables of other workers: what has no effect here is named once, with what to set instead, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from handler.errors import InvalidSettings
from handler.fastdeploy.flags import OWN, RELEASES, collect_flags, variable_names
from handler.settings import TABLE, Settings, read_settings
from handler.unsupported import INSTEAD, REFUSED

OURS = {name for variable in TABLE for name in variable.names} | variable_names()

VLLM_FORM = """
    BASE_PATH BLOCK_SIZE CUSTOM_CHAT_TEMPLATE DEFAULT_BATCH_SIZE DEFAULT_BATCH_SIZE_GROWTH_FACTOR DEFAULT_MIN_BATCH_SIZE DEVICE
    DISABLE_CUSTOM_ALL_REDUCE DISABLE_LOG_STATS DISABLE_SLIDING_WINDOW DISTRIBUTED_EXECUTOR_BACKEND DOWNLOAD_DIR DTYPE
    ENABLE_AUTO_TOOL_CHOICE ENABLE_CHUNKED_PREFILL ENABLE_EXPERT_PARALLEL ENABLE_LOG_REQUESTS ENABLE_LORA ENABLE_PREFIX_CACHING
    ENFORCE_EAGER FULLY_SHARDED_LORAS GPU_MEMORY_UTILIZATION KV_CACHE_DTYPE LOAD_FORMAT LORA_DTYPE MAX_CONCURRENCY MAX_CPU_LORAS
    MAX_LOGPROBS MAX_LORAS MAX_LORA_RANK MAX_MODEL_LEN MAX_NUM_SEQS MAX_PARALLEL_LOADING_WORKERS MODEL_LOADER_EXTRA_CONFIG MODEL_NAME
    MODEL_REVISION NGRAM_PROMPT_LOOKUP_MAX NUM_SPECULATIVE_TOKENS OPENAI_RESPONSE_ROLE OPENAI_SERVED_MODEL_NAME_OVERRIDE
    PIPELINE_PARALLEL_SIZE PYTORCH_ALLOC_CONF QUANTIZATION RAW_OPENAI_OUTPUT RAY_WORKERS_USE_NSIGHT REASONING_PARSER
    SCHEDULER_DELAY_FACTOR SEED SKIP_TOKENIZER_INIT SPECULATIVE_CONFIG SPECULATIVE_METHOD SPECULATIVE_MODEL TENSOR_PARALLEL_SIZE TOKENIZER
    TOKENIZER_MODE TOKENIZER_NAME TOKENIZER_REVISION TOOL_CALL_PARSER TRUST_REMOTE_CODE VLLM_USE_DEEP_GEMM
""".split()
"""What .runpod/hub.json of runpod-workers/worker-vllm 7a92503 sends."""

SGLANG_FORM = """
    API_KEY CHAT_TEMPLATE CHUNKED_PREFILL_SIZE CONTEXT_LENGTH DATA_PARALLEL_SIZE DISABLE_CUDA_GRAPH DISABLE_OUTLINES_DISK_CACHE
    DISABLE_RADIX_CACHE DTYPE ENABLE_FLASHINFER_MLA ENABLE_P2P_CHECK ENABLE_TORCH_COMPILE FILE_STORAGE_PATH LOAD_BALANCE_METHOD
    LOAD_FORMAT LOG_LEVEL LOG_LEVEL_HTTP LOG_REQUESTS MAX_PREFILL_TOKENS MAX_RUNNING_REQUESTS MAX_TOTAL_TOKENS MEM_FRACTION_STATIC
    MODEL_NAME QUANTIZATION RANDOM_SEED REASONING_PARSER SCHEDULE_CONSERVATIVENESS SCHEDULE_POLICY SERVED_MODEL_NAME SHOW_TIME_COST
    SKIP_TOKENIZER_INIT STREAM_INTERVAL TENSOR_PARALLEL_SIZE TOKENIZER_MODE TOKENIZER_PATH TOOL_CALL_PARSER
    TRITON_ATTENTION_REDUCE_IN_FP32 TRUST_REMOTE_CODE
""".split()
"""What .runpod/hub.json of runpod-workers/worker-sglang 1b924c9 sends."""


def read(**environment: str) -> Settings:
    return read_settings({"MODEL": "m"} | environment, baked=Path("/nonexistent"), engine_names=variable_names())


def test_every_field_of_the_other_workers_forms_is_a_variable_here_or_named_as_none() -> None:
    assert {*VLLM_FORM, *SGLANG_FORM} <= OURS | {*INSTEAD} | {*REFUSED}


def test_no_variable_that_is_read_here_is_named_as_one_without_effect() -> None:
    assert not OURS & {*INSTEAD, *REFUSED}
    assert not {*INSTEAD} & {*REFUSED}


@pytest.mark.parametrize("instead", sorted({instead for instead in INSTEAD.values() if instead}))
def test_what_to_set_instead_is_a_variable_that_is_read_here(instead: str) -> None:
    assert {*re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|(?<=set )[A-Z]+", instead)} <= OURS


def test_all_variables_without_effect_are_listed_in_one_warning_with_what_to_set_instead() -> None:
    [warning] = read(CUSTOM_CHAT_TEMPLATE="{{ x }}", DTYPE="half", KV_CACHE_DTYPE="fp8", VLLM_EXTRA_ARGS="-x", MAX_NUM_SEQS="4").warnings
    assert warning.removeprefix("these variables of other workers have no effect here: ").split(", ") == [
        "CUSTOM_CHAT_TEMPLATE (set CHAT_TEMPLATE)",
        "DTYPE (the checkpoint's own files decide)",
        "KV_CACHE_DTYPE",
        "VLLM_EXTRA_ARGS (set FASTDEPLOY_EXTRA_ARGS)",
    ]


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_a_variable_without_effect_is_a_warning_and_no_misspelt_name(name: str) -> None:
    [warning] = read(**{name: "x"}).warnings
    assert name in warning
    assert "'x'" not in warning


@pytest.mark.parametrize("text", ["", " ", "0", "false", "False", "auto", "None", "no", "off", "[]"])
def test_a_field_that_a_form_sends_untouched_is_neither_named_nor_refused(text: str) -> None:
    assert read(**dict.fromkeys({*INSTEAD, *REFUSED}, text)).warnings == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [("ENABLE_LORA", "true"), ("ENABLE_LORA", "1"), ("LORA_MODULES", '[{"name": "a", "path": "b"}]'), ("LORA_ADAPTERS", "a=b")],
)
def test_adapters_are_refused_since_the_base_model_would_answer_in_their_place(name: str, text: str) -> None:
    with pytest.raises(InvalidSettings, match=f"^{name}: got a value, expected it unset: .* base model would answer in their place; serve"):
        read(**{name: text}, MAX_LORAS="2")


@pytest.mark.parametrize("name", ["IPS", "SCHEDULER_PASSWORD"])
def test_what_fastdeploys_extra_arguments_refuse_is_refused_as_a_variable_too(name: str) -> None:
    with pytest.raises(InvalidSettings, match=f"^{name}: got a value, expected it unset: "):
        read(**{name: "10.0.0.1"})
    dest = name.lower()
    assert dest in OWN
    for release in RELEASES:
        _, problems = collect_flags({"FASTDEPLOY_EXTRA_ARGS": f"--{dest.replace('_', '-')} 10.0.0.1"}, release)
        assert "the worker's own flag" in " ".join(problems)
