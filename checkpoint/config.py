"""A checkpoint's config.json: read in one place, and what it says of a model whichever engine runs it.

Multimodal models keep the language model's numbers in a part of their own, `text_config`. What one engine can or cannot read of a
checkpoint is that engine's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint.files import read_json
from checkpoint.unavailable import ModelUnavailable

__all__ = ["head_counts", "language_part", "longest_context", "read_config"]

MOST_STRETCHED = 1024
"""The largest rope_scaling factor that is believed; published checkpoints stretch their positions up to 64 times."""


def read_config(directory: Path) -> dict[str, Any]:
    """Return what the config.json in a directory holds.

    Raises:
        ModelUnavailable: naming the file, when it cannot be read or holds no JSON object.
    """
    try:
        return read_json(directory / "config.json")
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{directory / 'config.json'}: cannot be read ({error})") from None


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of config.json that describes the language model, over the keys of the whole."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def head_counts(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers of attention heads and of key/value heads by their names in config.json, those that it tells."""
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
