"""What a checkpoint's config.json says about how FastDeploy can run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["head_counts", "is_misread", "language_part", "layout_problems", "longest_context"]

MOST_STRETCHED = 1024
"""The largest rope_scaling factor that is believed; published checkpoints stretch their positions up to 64 times."""


_TOP_LEVEL_ONLY = ("2.3", "2.4")
"""Releases that tell the layout of the weights by the top level of config.json alone."""


def head_counts(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers of attention heads and of key/value heads by their names in config.json: tensor parallelism deals them out."""
    found = ((name, language_part(config).get(name)) for name in ("num_attention_heads", "num_key_value_heads"))
    return {name: count for name, count in found if isinstance(count, int) and count > 0}


def longest_context(config: Mapping[str, Any]) -> int:
    """Return the most positions the checkpoint was made for, stretched positions (rope_scaling) included; 0 when it does not say."""
    model = language_part(config)
    positions = model.get("max_position_embeddings")
    if not isinstance(positions, int):
        return 0
    scaling = model.get("rope_scaling") or model.get("rope_parameters")  # the name since transformers 5
    scaling = scaling if isinstance(scaling, Mapping) else {}
    factor, original = scaling.get("factor", 1), scaling.get("original_max_position_embeddings", positions)
    if not isinstance(factor, int | float) or not isinstance(original, int) or not 1 <= factor <= MOST_STRETCHED:
        return positions
    return max(positions, int(factor * original))


def is_misread(config: Mapping[str, Any], release: str) -> bool:
    """Whether config.json would be misread: since 4.56 transformers writes `dtype`, which to FastDeploy means Paddle's transposed layout.

    FastDeploy 2.5 and 2.6 look at the version as well, but only past 4.56.0; 2.3 and 2.4 do not.
    """
    config = _as_read(config, release)
    parts = str(config.get("transformers_version", "")).split(".")[:2]
    if "dtype" not in config or not all(part.isdecimal() for part in parts):
        return False
    return [int(part) for part in parts] >= [4, 56]


def layout_problems(config: Mapping[str, Any], release: str) -> list[str]:
    """Return what FastDeploy would stop over when it reads the layout of the weights out of config.json; an empty one is not judged."""
    if not config:
        return []
    found = [key for key in ("torch_dtype", "dtype") if key in _as_read(config, release)]
    if len(found) == 1 or (not found and _is_mxfp4(config) and release not in _TOP_LEVEL_ONLY):
        return []
    got = "neither" if not found else "both"
    return [
        f"config.json: got {got} of torch_dtype and dtype, expected one: FastDeploy tells the weights' layout by it and stops otherwise"
    ]


def _as_read(config: Mapping[str, Any], release: str) -> Mapping[str, Any]:
    """Return the keys by which a release tells the layout (ModelConfig.read_model_config): its own before those of the language part."""
    inner = config.get("text_config")
    return {**inner, **config} if isinstance(inner, Mapping) and release not in _TOP_LEVEL_ONLY else config


def _is_mxfp4(config: Mapping[str, Any]) -> bool:
    """Whether the weights are stored as gpt-oss's are, which is the torch layout."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of config.json that describes the language model: multimodal models keep it in a part of its own."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config
