"""OpenAI's published schema, as the types of its official client have it, and what answers have beyond it.

The types are generated from the schema. Where they forget what the API sends, that is written here; the fields of FastDeploy's dialect
are listed, so that a new one is a decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ValidationError

CHAT_FRAME, CHAT_ANSWER, TEXT = ChatCompletionChunk, ChatCompletion, Completion

DIALECT = frozenset(
    """arrival_time completion_token_ids completion_tokens draft_logprobs multimodal_content prompt_token_ids prompt_tokens
    reasoning_content tool_calls video_tokens audio_content metrics
    prompt_logprobs speculate_metrics image_tokens top_logprobs bytes""".split()
)
"""Fields that FastDeploy 2.3 to 2.5 adds, and the CPU engine with it."""

_NEVER_NULL = frozenset({"text_offset", "cached_tokens", "image_tokens", "video_tokens", "reasoning_tokens", "object", "model", "id"})
"""Fields that are a number, a list or a text wherever they stand; the client's types allow null for every optional one."""


def problems(model: type[BaseModel], value: dict[str, Any]) -> list[str]:
    """Return what a strict reader of the schema has against an answer or a frame; an empty list means nothing."""
    found = [f"{name} is null" for name, item in _fields(value) if item is None and name in _NEVER_NULL]
    if model is not CHAT_ANSWER:
        # Required, and null until it is told; the client's types leave it out of the one and forget the null of the other.
        found += ["a choice without finish_reason" for choice in value.get("choices", []) if "finish_reason" not in choice]
    try:
        parsed = model.model_validate(value, strict=True)
    except ValidationError as error:
        return found + [str(problem) for problem in error.errors() if not _is_sent_by_openai(problem["loc"], problem["input"])]
    return found + [f"{name} is neither OpenAI's nor FastDeploy's" for name in _extra(parsed) if name not in DIALECT]


def _is_sent_by_openai(place: tuple[int | str, ...], got: object) -> bool:
    """Tell whether the API sends what its client's types forget: no reason yet, and no score of the first token of an echoed prompt."""
    return got is None and (place[-1] == "finish_reason" or (place[-1] == 0 and place[-2] in {"token_logprobs", "top_logprobs"}))


def _fields(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield name, item
            yield from _fields(item)
    elif isinstance(value, list):
        for item in value:
            yield from _fields(item)


def _extra(value: object) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from _extra(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from _extra(item)
