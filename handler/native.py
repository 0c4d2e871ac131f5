"""The native answer shape, made from the engine's OpenAI answers.

    {"choices": [{"tokens": ["text", ...]}, ...], "usage": {"input": 12, "output": 34}}

A whole answer holds one text per choice. A streamed piece holds the texts that arrived since the one before it, choice by choice; the last
piece carries the usage, which the engine reports at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from handler.sse import data_of, is_done

__all__ = ["native_answer", "native_piece"]


def native_answer(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a chat or text completion in the native shape; text of a message that is null counts as empty."""
    choices = [{"tokens": [_text(choice)]} for choice in answer.get("choices", [])]
    return {"choices": choices, "usage": _usage(answer.get("usage") or {})}


def native_piece(frames: Iterable[bytes]) -> dict[str, Any] | None:
    """Return what some frames of a stream carry in the native shape, or None when it is neither text nor usage."""
    tokens: dict[int, list[str]] = {}
    usage: dict[str, int] | None = None
    for frame in frames:
        data = data_of(frame)
        if data is None or is_done(frame):
            continue
        chunk = json.loads(data)
        if chunk.get("usage"):
            usage = _usage(chunk["usage"])
        for choice in chunk.get("choices", []):
            if text := _text(choice):
                tokens.setdefault(choice.get("index", 0), []).append(text)
    if not tokens and usage is None:
        return None
    choices = [{"tokens": tokens.get(index, [])} for index in range(max(tokens, default=-1) + 1)]
    return {"choices": choices} if usage is None else {"choices": choices, "usage": usage}


def _text(choice: dict[str, Any]) -> str:
    message = choice.get("delta") or choice.get("message") or {}
    return str(message.get("content") or choice.get("text") or "")


def _usage(usage: dict[str, Any]) -> dict[str, int]:
    return {"input": usage.get("prompt_tokens", 0), "output": usage.get("completion_tokens", 0)}
