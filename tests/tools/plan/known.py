"""The five known models: their config.json, and the size of their weights counted matrix by matrix.

A whole config.json of ERNIE-4.5-VL-28B-A3B, for which FastDeploy's documentation has a table too, was not found, so it is not among them.
"""

from __future__ import annotations

import json
from typing import Any

from tests import DATA

FOLDER = DATA / "plan"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
PUBLISHED = {
    "ernie-4.5-0.3b": 0.361e9,  # the model's own page: 0.36B
    "ernie-4.5-21b-a3b": 21.8e9,
    "ernie-4.5-300b-a47b": 300e9,
    "qwen3-8b": 8.2e9,  # Qwen3-8B's page
    "qwen3-30b-a3b": 30.5e9,  # Qwen3-30B-A3B's page
}
"""Parameters that each model's makers tell."""


def config_of(name: str) -> dict[str, Any]:
    """Return the config.json of one of NAMES."""
    config: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["config"]
    return config


def parameters(config: dict[str, Any]) -> int:
    """Count a decoder's matrices; norms, a ten-thousandth of it, are left out."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    width = config.get("head_dim") or hidden // config["num_attention_heads"]
    attention = 2 * hidden * width * (config["num_attention_heads"] + config["num_key_value_heads"])
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    experts = config.get("moe_num_experts", config.get("num_experts", 0))
    sparse = layers - config.get("moe_layer_start_index", 0) if experts else 0
    routed = sparse * (experts + config.get("moe_num_shared_experts", 0)) * 3 * hidden * config.get("moe_intermediate_size", 0)
    gates = sparse * experts * hidden
    dense = (layers - sparse) * 3 * hidden * config["intermediate_size"]
    return int(embeddings + layers * attention + routed + gates + dense)


def stored(name: str) -> int:
    """Return the bytes of a model's weights in 16 bits."""
    return 2 * parameters(config_of(name))
