"""Put the frames of an engine's stream together into the answer that the engine gives without a stream.

So every request can be streamed from FastDeploy: it then shows progress, can be aborted, and escapes the faults of the other form (with
the reasoning parser `qwen3` a chat that was cut while thinking is a 500 there, a text completion an empty 200). Recorded pairs of both
forms compare equal, but for `id`, `created`, `arrival_time`, the ids of tool calls and `DIFFERENCES`. `needs_whole` names the requests
whose answer only the other form holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from handler.errors import EngineDied, EngineRejected
from handler.fastdeploy.rules import Rules
from handler.job import CHAT, COMPLETIONS
from handler.sse import data_of, is_done

__all__ = ["DIFFERENCES", "Assembler", "as_stream", "merge_choice", "merge_usage", "needs_whole"]

DIFFERENCES = {
    "white space around thoughts": "Where a model's text has `</think>` without `<think>`, the parser `qwen3` strips the white space"
    " around both parts of a whole answer and keeps it in a stream.",
    "swallowed tokens": "A stream leaves out the frame of a `<think>` or `</think>`, and with it the token's logprobs and id.",
}
"""What stays different, and why."""

_JOINED = frozenset({"content", "reasoning_content", "text", "completion_tokens", "arguments"})
_CHAT_MESSAGE = """role content multimodal_content reasoning_content tool_calls prompt_token_ids completion_token_ids prompt_tokens
completion_tokens""".split()
_TEXT_CHOICE = """text prompt_token_ids completion_token_ids prompt_tokens completion_tokens logprobs draft_logprobs reasoning_content
finish_reason tool_calls""".split()


def needs_whole(body: Mapping[str, Any], path: str, rules: Rules) -> bool:
    """Tell whether only the form without a stream holds all of the answer to a request that was not asked to stream.

    - `echo`, `prompt_logprobs` and what else the engine's row names (`whole_only`): no recording shows them in a stream.
    - `logprobs: 0` of a text completion: a stream of FastDeploy has none (measured on 2.3).
    - images and videos: how many of the prompt's tokens are theirs is told only there.
    - token ids of text completions: a stream tells them in a frame of its own, of which there is no recording.
    - tools and a tool parser: of a second call the stream loses id and name (recorded on 2.3).
    - logprobs or token ids and a reasoning or tool parser: see `DIFFERENCES`, swallowed tokens.

    The last two do not hold for the parser `qwen3`: it fails on whole answers that were cut while thinking, which is worse.
    """
    if path not in {CHAT, COMPLETIONS} or any(_asked(body, name) for name in rules.engine.whole_only):
        return True
    if _has_media(body.get("messages")):
        return True
    if path == COMPLETIONS and (body.get("return_token_ids") or (body.get("logprobs") == 0 and not rules.engine.streams_logprobs_of_0)):
        return True
    if rules.reasoning_parser == "qwen3":
        return False
    ids = _asked(body, "return_token_ids") or _asked(body, "logprobs")
    return bool((rules.tool_parser and body.get("tools")) or (ids and (rules.tool_parser or rules.reasoning_parser)))


def as_stream(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request with a stream that ends with the usage, which is what `Assembler` takes."""
    rest = {name: value for name, value in body.items() if name != "max_streaming_response_tokens"}
    return rest | {"stream": True, "stream_options": {"include_usage": True}}


class Assembler:
    """Takes the frames of one stream in order; `n` is the request's own, by which FastDeploy divides the tokens of the prompts."""

    def __init__(self, path: str, *, n: int = 1) -> None:
        self._chat, self._n = path == CHAT, n
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usages: list[dict[str, Any]] = []

    def feed(self, frame: bytes) -> None:
        """Take the next frame.

        Raises:
            EngineRejected: the frame is an error, or no JSON object.
        """
        data = data_of(frame)
        if data is None or is_done(frame):
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict) or "error" in chunk:
            raise EngineRejected(500 if isinstance(chunk, dict) else 502, data)
        self._head = self._head or chunk
        choices = chunk.get("choices") or []
        if chunk.get("usage") and not choices:
            self._usages.append(chunk["usage"])
        for choice in choices:
            index = choice.get("index", 0)
            self._choices[index] = merge_choice(self._choices[index], choice) if index in self._choices else choice

    def answer(self) -> dict[str, Any]:
        """Return the whole answer.

        Raises:
            EngineDied: the stream ended before each choice was finished and the usage told.
        """
        unfinished = [index for index, choice in self._choices.items() if not choice.get("finish_reason")]
        if not self._choices or unfinished or not self._usages:
            missing = f"choice {unfinished[0]}" if unfinished else "its usage" if self._choices else "any choice"
            raise EngineDied(f"the engine's stream ended before it had told {missing} whole")
        whole = _chat_choice if self._chat else _text_choice
        return {
            "id": self._head.get("id"),
            "object": "chat.completion" if self._chat else "text_completion",
            "created": self._head.get("created"),
            "model": self._head.get("model"),
            "choices": [whole(index, self._choices[index]) for index in sorted(self._choices)],
            "usage": merge_usage(self._usages, n=self._n, unknown=0 if self._chat else None),
        }


def merge_choice(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """Return two pieces of a choice, or of a part of one, as one: texts and lists joined in order, else the newest value that is one."""
    merged = dict(one)
    for name, value in two.items():
        old = merged.get(name)
        if value is None:
            merged.setdefault(name, None)
        elif old is None:
            merged[name] = value
        elif name == "tool_calls":
            merged[name] = _merge_calls(old, value)
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[name] = merge_choice(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            merged[name] = [*old, *value]
        elif name in _JOINED and isinstance(old, str) and isinstance(value, str):
            merged[name] = old + value
        else:
            merged[name] = value
    return merged


def merge_usage(usages: list[dict[str, Any]], *, n: int, unknown: int | None) -> dict[str, Any]:
    """Return the usage of a request from the usages of its choices, with what a stream does not tell set to `unknown`.

    A chat tells one usage; a text completion one for each choice, the prompt's tokens in each.
    """
    prompt, output = sum(usage["prompt_tokens"] for usage in usages), sum(usage["completion_tokens"] for usage in usages)
    if len(usages) > 1:
        prompt //= n
    details: dict[str, dict[str, int | None]] = {
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": unknown, "video_tokens": unknown},
        "completion_tokens_details": {},
    }
    for kind, total in details.items():
        for usage in usages:
            for name, value in (usage.get(kind) or {}).items():
                if isinstance(value, int):
                    total[name] = value + (total.get(name) or 0)
    return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output, **details}


def _asked(body: Mapping[str, Any], name: str) -> bool:
    return body.get(name) is not None and body[name] is not False


def _merge_calls(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls = {call.get("index", position): call for position, call in enumerate(old)}
    for position, piece in enumerate(new):
        index = piece.get("index", position)
        calls[index] = merge_choice(calls[index], piece) if index in calls else piece
    return list(calls.values())


def _chat_choice(index: int, merged: dict[str, Any]) -> dict[str, Any]:
    later = "speculate_metrics" in merged  # fields that came with 2.4
    message = dict.fromkeys(_CHAT_MESSAGE) | ({"audio_content": None} if later else {}) | merged["delta"]
    rest = {name: value for name, value in merged.items() if name not in {"index", "delta", "arrival_time"}}
    unset = dict.fromkeys(("logprobs", "draft_logprobs", *(("prompt_logprobs",) if later else ()), "finish_reason"))
    for name in ("logprobs", "draft_logprobs"):
        if rest.get(name):
            rest[name] = {"content": [_whole_entry(entry) for entry in rest[name].get("content") or []], "refusal": None}
    return {"index": index, "message": _settled(message)} | unset | rest


def _text_choice(index: int, merged: dict[str, Any]) -> dict[str, Any]:
    later = "speculate_metrics" in merged
    choice: dict[str, Any] = {"index": index, **dict.fromkeys(_TEXT_CHOICE), **({"prompt_logprobs": None} if later else {}), **merged}
    for name in ("logprobs", "draft_logprobs"):
        if choice.get(name):
            choice[name] = {"text_offset": None} | choice[name]
    return _settled(choice) | {"arrival_time": None}


def _settled(part: dict[str, Any]) -> dict[str, Any]:
    """Write what a stream spells empty as a whole answer does."""
    calls = part.get("tool_calls")
    return part | {
        "reasoning_content": part.get("reasoning_content") or None,
        "tool_calls": [{name: value for name, value in call.items() if name != "index"} for call in calls] if calls else None,
    }


def _whole_entry(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"top_logprobs": [{"top_logprobs": None} | other for other in entry.get("top_logprobs") or []]}


def _has_media(messages: object) -> bool:
    parts = [message.get("content") for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    return any(isinstance(part, dict) and part.get("type") != "text" for content in parts if isinstance(content, list) for part in content)
