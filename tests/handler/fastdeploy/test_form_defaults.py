"""What a deployment form fills in by itself has to start the engine on every release, or be refused by the one name that is wrong."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from handler.errors import InvalidSettings
from handler.fastdeploy.flags import RELEASES, variable_names
from handler.fastdeploy.start import FastDeployEngine
from handler.settings import TABLE
from tests.handler.fastdeploy.starts import engine
from tests.handler.fastdeploy.test_flags import accepted

FORM: Mapping[str, str] = {
    "MODEL": "baidu/ERNIE-4.5-0.3B-Paddle",
    "MODEL_REPO": "baidu/ERNIE-4.5-0.3B-Paddle",
    "ENABLE_V1_KVCACHE_SCHEDULER": "1",
    "MAX_CONCURRENCY": "512",
    "MAX_MODEL_LEN": "2048",
    "TENSOR_PARALLEL_SIZE": "1",
    "DATA_PARALLEL_SIZE": "1",
    "BLOCK_SIZE": "64",
    "MAX_NUM_SEQS": "8",
    "TOKENIZER": "",
    "USE_WARMUP": "1",
    "QUANTIZATION": "BF16",
    "GPU_MEMORY_UTILIZATION": "0.9",
    "KV_CACHE_RATIO": "0.75",
    "ENABLE_PREFIX_CACHING": "false",
    "SWAP_SPACE": "",
    "ENABLE_CHUNKED_PREFILL": "false",
    "MAX_NUM_PARTIAL_PREFILLS": "1",
    "MAX_LONG_PARTIAL_PREFILLS": "1",
    "LONG_PREFILL_TOKEN_THRESHOLD": "",
    "STATIC_DECODE_BLOCKS": "2",
    "REASONING_PARSER": "",
    "DISABLE_CUSTOM_ALL_REDUCE": "false",
    "USE_INTERNODE_LL_TWO_STAGE": "false",
    "DISABLE_SEQUENCE_PARALLEL_MOE": "false",
    "SPLITWISE_ROLE": "mixed",
    "INNODE_PREFILL_PORTS": "",
    "GUIDED_DECODING_BACKEND": "off",
    "GUIDED_DECODING_DISABLE_ANY_WHITESPACE": "false",
    "SPECULATIVE_CONFIG": "",
    "DYNAMIC_LOAD_WEIGHT": "0",
    "ENABLE_EXPERT_PARALLEL": "false",
    "ENABLE_LOGPROB": "false",
    "LOGPROBS_MODE": "raw_logprobs",
    "MAX_LOGPROBS": "20",
    "SERVED_MODEL_NAME": "",
    "REVISION": "",
    "CHAT_TEMPLATE": "",
    "TOOL_CALL_PARSER": "",
    "TOOL_PARSER_PLUGIN": "",
    "LOAD_CHOICES": "default",
    "MAX_ENCODER_CACHE": "0",
    "MAX_PROCESSOR_CACHE": "0",
    "MAX_NUM_BATCHED_TOKENS": "2048",
    "API_KEY": "",
}
CONFIG = {
    "architectures": ["Ernie4_5_ForCausalLM"],
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}


def started(release: str, **changed: str) -> FastDeployEngine:
    return engine({**FORM, **changed}, CONFIG, release)


def flags(release: str, **changed: str) -> dict[str, object]:
    """What the release's parser makes of the command, which here has no interpreter and no script in front."""
    return accepted(started(release, **changed).command(8999)[2:], release)


def problems(release: str, **changed: str) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        started(release, **changed)
    return caught.value.problems


@pytest.mark.parametrize("release", RELEASES)
def test_the_form_s_own_defaults_start_the_engine(release: str) -> None:
    found = flags(release)
    assert (found["model"], found["use_warmup"], found["quantization"], found["kv_cache_ratio"]) == ("/model", 1, None, 0.75)


@pytest.mark.parametrize("release", RELEASES)
def test_zero_for_a_switch_is_no_flag_and_not_a_stray_word(release: str) -> None:
    assert flags(release, DYNAMIC_LOAD_WEIGHT="0")["dynamic_load_weight"] is False
    assert flags(release, DYNAMIC_LOAD_WEIGHT="1")["dynamic_load_weight"] is True


@pytest.mark.parametrize("release", RELEASES)
def test_the_whitespace_switch_has_its_real_name_and_off_is_not_the_text_false(release: str) -> None:
    assert flags(release, GUIDED_DECODING_DISABLE_ANY_WHITESPACE="true")["guided_decoding_disable_any_whitespace"] == "true"
    assert flags(release, GUIDED_DECODING_DISABLE_ANY_WHITESPACE="false")["guided_decoding_disable_any_whitespace"] is False


def test_a_flag_that_was_removed_is_refused_by_name_where_it_is_gone() -> None:
    assert flags("2.3", INNODE_PREFILL_PORTS="8010,8011")["innode_prefill_ports"] == ["8010", "8011"]
    for release in RELEASES[1:]:
        (problem,) = problems(release, INNODE_PREFILL_PORTS="8010,8011")
        assert problem.startswith("INNODE_PREFILL_PORTS: got '8010,8011'")
        assert problem.endswith(f"FastDeploy {release} has no --innode-prefill-ports (2.3 has it)")


@pytest.mark.parametrize("release", RELEASES)
def test_false_turns_off_what_the_engine_has_on(release: str) -> None:
    assert flags(release, ENABLE_PREFIX_CACHING="false")["enable_prefix_caching"] is False
    assert flags(release, ENABLE_PREFIX_CACHING="")["enable_prefix_caching"] is True


@pytest.mark.parametrize("release", RELEASES)
def test_every_variable_of_the_form_is_read_by_somebody(release: str) -> None:
    workers = {name for variable in TABLE for name in (variable.name, *variable.aliases)}
    assert FORM.keys() - workers - variable_names() == {"API_KEY"}  # no key stands between the worker and its engine
    found = flags(release, USE_WARMUP="0", MAX_PROCESSOR_CACHE="1.5", API_KEY="sk-secret")
    assert (found["use_warmup"], found["max_processor_cache"], found["api_key"]) == (0, 1.5, None)
    assert started(release).variables()["ENABLE_V1_KVCACHE_SCHEDULER"] == "1"


@pytest.mark.parametrize("release", RELEASES)
def test_settings_that_are_json_reach_the_engine(release: str) -> None:
    limits, graph = '{"image": 4}', '{"use_cudagraph": false}'
    found = flags(release, LIMIT_MM_PER_PROMPT=limits, MM_PROCESSOR_KWARGS='{"fps": 2}', GRAPH_OPTIMIZATION_CONFIG=graph)
    assert found["limit_mm_per_prompt"] == {"image": 4}
    assert found["mm_processor_kwargs"] == {"fps": 2}
    assert found["graph_optimization_config"] == {"use_cudagraph": False}
    assert problems(release, LIMIT_MM_PER_PROMPT="image=4") == ["LIMIT_MM_PER_PROMPT: got 'image=4', expected a JSON object"]


@pytest.mark.parametrize("release", RELEASES)
def test_limits_of_a_form_agree_with_each_other_and_with_the_engine(release: str) -> None:
    found = flags(release, MAX_MODEL_LEN="65536")
    assert (found["max_model_len"], found["max_num_batched_tokens"], found["max_concurrency"]) == (65536, 2048, 512)
    assert found["load_choices"] == "default"
    assert flags(release, MAX_CONCURRENCY="600")["max_concurrency"] == 600
    assert problems(release, MAX_MODEL_LEN="65536", FD_DISABLE_CHUNKED_PREFILL="1") == [
        "MAX_NUM_BATCHED_TOKENS: got 2048, expected at least MAX_MODEL_LEN, which is 65536"
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_a_value_that_is_neither_true_nor_false_is_refused_and_never_the_default(release: str) -> None:
    for name in ("ENABLE_LOGPROB", "ENABLE_PREFIX_CACHING", "GUIDED_DECODING_DISABLE_ANY_WHITESPACE", "DYNAMIC_LOAD_WEIGHT"):
        assert problems(release, **{name: "maybe"}) == [f"{name}: got 'maybe', expected true, false, 1 or 0"]
