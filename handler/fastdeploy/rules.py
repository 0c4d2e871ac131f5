"""What the deployment lets requests do: known when the engine is started, asked when a request comes (checks.py)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Rules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is known of the deployment; None where it is not."""

    release: str
    """FastDeploy's, such as 2.4."""
    served_name: str
    """The name that the engine takes (--served-model-name)."""
    aliases: frozenset[str] = frozenset()
    """Further names of the model, such as its repository; the last part of each is taken too."""
    vocab_size: int | None = None
    max_model_len: int | None = None
    guided_decoding: bool = False
    tool_parser: bool = False
    reasoning_parser: str | None = None
    logprobs: bool | None = None
    vision: bool | None = None
    max_stops: int = 5
    """FD_MAX_STOP_SEQS_NUM."""
    max_tokens_limit: int | None = None
    strict: bool = False
