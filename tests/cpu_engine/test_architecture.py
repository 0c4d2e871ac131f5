"""config.json: what the engine can compute is read, everything else is refused by name, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_engine.architecture import parse_config, read_config, read_sampling_defaults
from cpu_engine.refusals import StartupError
from tests import DEMO
from tests.cpu_engine.checkpoints import CONFIG

MISSING = "<missing>"

REFUSED = [
    ("architectures", ["Ernie4_5_MoeForCausalLM"], "mixture of experts"),
    ("architectures", ["DeepseekV3ForCausalLM"], "mixture of experts"),
    ("architectures", ["Ernie4_5_VLMoeForConditionalGeneration"], "mixture of experts"),
    ("architectures", ["Qwen2_5_VLForConditionalGeneration"], "vision"),
    ("architectures", ["GPT2LMHeadModel"], "'GPT2LMHeadModel'"),
    ("architectures", [7], "'7'"),
    ("architectures", "Qwen2ForCausalLM", "'Qwen2ForCausalLM'"),
    ("moe_num_experts", 64, "mixture-of-experts models are not supported"),
    ("num_experts", 8, "mixture-of-experts models are not supported"),
    ("moe_num_experts", [64, 64], "mixture-of-experts models are not supported"),
    ("vision_config", {"depth": 32}, "vision is not supported"),
    ("rope_3d", True, "vision is not supported"),
    ("quantization_config", {"quantization": "wint4"}, "quantised weights are not supported"),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}, "rope scaling is not supported"),
    ("rope_scaling", {"rope_type": "llama3"}, "rope scaling is not supported"),
    ("rope_scaling", "linear", "rope scaling is not supported"),
    ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4}, "rope scaling is not supported"),
    ("compression_ratio", 2.0, "rope scaling"),
    ("partial_rotary_factor", 0.5, "partial rotary"),
    ("sliding_window", 4096, "sliding windows are not supported"),
    ("use_sliding_window", True, "sliding windows are not supported"),
    ("layer_types", ["full_attention", "sliding_attention"], "sliding windows are not supported"),
    ("hidden_act", "gelu", "expected 'silu'"),
    ("hidden_size", MISSING, "got nothing, expected a whole number above 0"),
    ("hidden_size", "16", 'got "16", expected a whole number above 0'),
    ("hidden_size", True, "got true"),
    ("hidden_size", 0, "got 0"),
    ("vocab_size", 1.5, "got 1.5"),
    ("num_key_value_heads", 3, "a divisor of num_attention_heads (2)"),
    ("head_dim", 7, "an even number"),
    ("rms_norm_eps", "small", "a number from"),
    ("rope_theta", None, None),
    ("rope_theta", [10000], "a number from"),
    ("tie_word_embeddings", "yes", "true or false"),
    ("use_bias", 1, "true or false"),
    ("eos_token_id", "</s>", "a token id or a list of token ids"),
    ("eos_token_id", [2, -1], "a token id or a list of token ids"),
]


@pytest.mark.parametrize(("key", "value", "says"), REFUSED, ids=[f"{key}={value}"[:60] for key, value, _ in REFUSED])
def test_what_the_engine_cannot_compute_is_refused_by_name(key: str, value: object, says: str | None) -> None:
    raw = {**CONFIG, key: value}
    if value == MISSING:
        del raw[key]
    if says is None:
        assert parse_config(raw, "config.json").rope_theta == 10000.0
        return
    with pytest.raises(StartupError) as caught:
        parse_config(raw, "config.json")
    line = str(caught.value)
    assert says in line
    assert "config.json: " in line
    assert key in line
    assert "\n" not in line


@given(
    st.dictionaries(
        st.sampled_from(sorted(CONFIG)), st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
    )
)
@settings(max_examples=300, deadline=None)
def test_any_config_is_read_or_refused_and_nothing_else(changes: dict[str, object]) -> None:
    """Rule: a start-up refusal is one line that names the file; no other exception leaves the reader."""
    try:
        config = parse_config({**CONFIG, **changes}, "config.json")
    except StartupError as refusal:
        assert str(refusal).startswith("config.json: ")
        assert len(str(refusal).splitlines()) == 1
    else:
        assert config.heads % config.kv_heads == 0


def test_the_model_type_stands_in_for_missing_architectures() -> None:
    raw = {key: value for key, value in CONFIG.items() if key != "architectures"}
    assert parse_config(raw, "config.json").family == "ernie4_5"


def test_biases_follow_the_family() -> None:
    def biases(architecture: str, **keys: object) -> tuple[bool, bool, bool]:
        config = parse_config({**CONFIG, "architectures": [architecture], **keys}, "config.json")
        return config.qkv_bias, config.output_bias, config.mlp_bias

    assert biases("Ernie4_5ForCausalLM", use_bias=True) == (True, True, True)
    assert biases("Qwen2ForCausalLM") == (True, False, False)
    assert biases("Qwen3ForCausalLM", attention_bias=True) == (True, True, False)
    assert biases("LlamaForCausalLM", mlp_bias=True) == (False, False, True)


def test_the_nested_rope_theta_of_transformers_5_is_read() -> None:
    raw = {key: value for key, value in CONFIG.items() if key != "rope_theta"}
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 77.0}
    assert parse_config(raw, "config.json").rope_theta == 77.0


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "bad JSON"), (b"[1]", "got list, expected a JSON object"), (b"\xff\xfe", "bad JSON"), (b"[" * 100000, "bad JSON")],
    ids=["cut", "list", "not-utf-8", "deep"],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(StartupError, match=says):
        read_config(tmp_path)


def test_a_missing_directory_a_file_and_a_missing_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no such directory, expected a checkpoint directory"):
        read_config(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="got a file"):
        read_config(tmp_path / "file")
    with pytest.raises(StartupError, match=r"config\.json: got No such file"):
        read_config(tmp_path)


def test_sampling_defaults_come_from_generation_config_else_from_fastdeploy(tmp_path: Path) -> None:
    bare = read_sampling_defaults(tmp_path, 3)
    assert (bare.temperature, bare.top_p, bare.repetition_penalty) == (1.0, 0.7, 1.0)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.95, "eos_token_id": [2, 0, 2]}))
    read = read_sampling_defaults(tmp_path, 3)
    assert (read.temperature, read.top_p, read.eos_token_ids) == (0.6, 0.95, frozenset({0, 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(StartupError, match='temperature: got "hot", expected a number from 0'):
        read_sampling_defaults(tmp_path, 3)


def test_the_parameters_counted_are_those_of_the_matrices() -> None:
    config = read_config(DEMO)
    stored = (DEMO / "model.safetensors").stat().st_size / 2
    norms = (2 * config.layers + 1) * config.hidden_size
    assert config.parameters + norms == pytest.approx(stored, rel=0.01)
