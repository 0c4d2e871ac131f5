"""The size of a checkpoint's weights from its config.json alone, matrix by matrix.

Norms and biases, about a ten-thousandth, are left out. Where a family stores something that is not counted here, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoint.unavailable import ModelUnavailable

__all__ = ["weights_of"]

_EXPERTS = ("moe_num_experts", "num_experts")
"""ERNIE's name, and Qwen's."""
_NOT_COUNTED = (
    "vision_config",
    "kv_lora_rank",
    "n_routed_experts",
    "num_local_experts",
    "quantization_config",
    "shared_expert_intermediate_size",
)
"""Vision encoders, latent attention, other families' experts, and weights that are stored with fewer bits."""


def weights_of(config: Mapping[str, Any]) -> int:
    """Return the bytes of a decoder's weights in 16 bits.

    Raises:
        ModelUnavailable: when config.json does not tell enough.
    """
    odd = [name for name in _NOT_COUNTED if config.get(name)]
    if odd:
        raise ModelUnavailable(f"config.json: it has {odd[0]}, whose weights cannot be counted from it: name a directory or a repository")
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
        width = int(config.get("head_dim") or hidden // heads)
        attention = 2 * hidden * width * (heads + int(config.get("num_key_value_heads") or heads))
        embeddings = int(config["vocab_size"]) * hidden * (1 if config.get("tie_word_embeddings") else 2)
        experts = next((int(config[name]) for name in _EXPERTS if config.get(name)), 0)
        sparse = layers - _dense_layers(config) if experts else 0
        expert = 3 * hidden * int(config["moe_intermediate_size"]) if experts else 0
        routed = (experts + int(config.get("moe_num_shared_experts") or 0)) * expert + experts * hidden
        return 2 * (embeddings + layers * attention + (layers - sparse) * 3 * hidden * inner + sparse * routed)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(f"config.json: its weights cannot be counted ({error!r}): name a directory or a repository") from None


def _dense_layers(config: Mapping[str, Any]) -> int:
    """Return how many layers of a model with experts have none."""
    return int(config.get("moe_layer_start_index") or 0) + len(config.get("mlp_only_layers") or ())
