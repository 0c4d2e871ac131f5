"""A checkpoint's config.json and chat template: read in one place, and what the first says of a model whichever engine runs it.

Multimodal models keep the language model's numbers in a part of their own, `text_config`. What one engine can or cannot read of a
checkpoint is that engine's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint.files import read_json
from checkpoint.unavailable import ModelUnavailable

__all__ = ["head_counts", "language_part", "longest_context", "read_config", "read_template"]

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


def read_template(directory: Path) -> tuple[str, frozenset[str]]:
    """Return a checkpoint's chat template, "" if it has none that can be read, and the spellings of its special tokens.

    The template is a file of its own or, in older checkpoints, in tokenizer_config.json; of several the one for tools counts.
    """
    try:
        config = read_json(directory / "tokenizer_config.json")
    except (OSError, ValueError):
        config = {}
    added = config.get("added_tokens_decoder")
    entries = [*added.values()] if isinstance(added, Mapping) else []
    special = frozenset(str(entry["content"]) for entry in entries if isinstance(entry, Mapping) and "content" in entry)
    try:
        return (directory / "chat_template.jinja").read_text(encoding="utf-8"), special
    except (OSError, ValueError):
        found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, Mapping)}
        found = named.get("tool_use") or named.get("default")
    return found if isinstance(found, str) else "", special


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
