"""What quantization leaves of a checkpoint, as FastDeploy's own rules say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoint.size import Estimate, shape_of, weights_size
from tests.checkpoint.checkpoints import CONFIG, write_safetensors

ROUTED, SHARED = "model.layers.1.mlp.experts.3.up_gate_proj.weight", "model.layers.1.mlp.shared_experts.up_gate_proj.weight"
ATTENTION, EMBEDDING, NORM = "model.layers.1.self_attn.qkv_proj.weight", "model.embed_tokens.weight", "model.norm.weight"
NUMBERS = 64 * 64


def checkpoint(folder: Path, architecture: str, *names: str) -> Path:
    write_safetensors(folder / "model.safetensors", {name: ("BF16", [64, 64], 2 * NUMBERS) for name in names})
    (folder / "config.json").write_text(json.dumps(CONFIG | {"architectures": [architecture]}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("architecture", "name", "bits"),
    [
        ("Ernie4_5_MoeForCausalLM", ROUTED, 4),
        ("Ernie4_5_MoeForCausalLM", SHARED, 8),
        ("Ernie4_5_MoeForCausalLM", ATTENTION, 8),
        ("Ernie4_5_MoeForCausalLM", EMBEDDING, 16),
        ("Ernie4_5_MoeForCausalLM", NORM, 16),
        ("Ernie4_5_ForCausalLM", ATTENTION, 8),
        ("Qwen3MoeForCausalLM", ROUTED, 4),
        ("Qwen3MoeForCausalLM", ATTENTION, 4),
    ],
)
def test_wint4_leaves_an_ernie_model_4_bits_only_in_routed_experts(tmp_path: Path, architecture: str, name: str, bits: int) -> None:
    assert weights_size(checkpoint(tmp_path, architecture, name), "wint4") == NUMBERS * bits // 8


@pytest.mark.parametrize("architecture", ["Ernie4_5_MoeForCausalLM", "Qwen3MoeForCausalLM"])
def test_wint8_leaves_8_bits_everywhere_and_a_word_in_capitals_is_the_same(tmp_path: Path, architecture: str) -> None:
    folder = checkpoint(tmp_path, architecture, ROUTED, SHARED, ATTENTION)
    assert weights_size(folder, "wint8") == weights_size(folder, "WINT8") == 3 * NUMBERS


def test_experts_for_texts_and_for_images_are_counted_each_with_its_own_width() -> None:
    ernie = CONFIG | {
        "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
        "moe_num_experts": [8, 4],
        "moe_intermediate_size": [32, 16],
        "moe_layer_start_index": 1,
    }
    shape = shape_of(ernie)
    assert shape is not None
    assert shape.experts == 2 * 3 * 64 * (8 * 32 + 4 * 16), "two of three layers, three matrices each"
    every_other = shape_of(ernie | {"moe_layer_start_index": [0, 0], "moe_layer_end_index": [2, 2], "moe_layer_interval": 2})
    assert every_other is not None
    assert every_other.experts == shape.experts


def test_a_config_that_is_none_has_no_shape() -> None:
    for config in (
        {},
        CONFIG | {"hidden_size": "wide"},
        CONFIG | {"num_attention_heads": 0, "head_dim": 0},
        {"text_config": None},
    ):
        assert shape_of(config) is None


def test_cache_is_what_weights_and_the_rest_leave() -> None:
    needed = Estimate(weights=600, per_token=3, sequence=30, margin=100)
    assert (needed.tokens(1000), needed.tokens(702), needed.tokens(700), needed.tokens(0)) == (100, 0, 0, 0)
