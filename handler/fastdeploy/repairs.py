"""Repair what FastDeploy's answers have against OpenAI's schema and what hurts its clients for it, rule by rule.

RULES names them. A frame that no rule touches leaves as it came, byte for byte; whether one does is mostly told by looking for a few bytes,
since every token of every stream passes here. A quotation mark inside a JSON text is escaped, so `"delta":` is always a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handler.errors import EngineRejected
from handler.fastdeploy.assemble import merge_choice, merge_usage
from handler.fastdeploy.rules import Rules
from handler.job import CHAT
from handler.sse import data_of, is_done

__all__ = ["RULES", "Facts", "Repairer", "facts_of", "with_usage"]

RULES = {
    "model": "The model is named as the request named it; without --served-model-name the engine names the path of the weights.",
    "space": "The space that follows the JSON of the first chat frame of each choice goes.",
    "object": "Frames of text completions get their `object`, which the official client requires.",
    "finish": "Frames before the last of a choice get a `finish_reason` of null, which OpenAI's schema requires.",
    "entries": "An event with several pieces of one choice is put together to one piece; an event carries one choice.",
    "empty": "Frames without text, finish, ids or logprobs go: half of a character, a swallowed token.",
    "usage": "The usage comes once, last, for all choices; a text completion tells one after each choice.",
    "cut": "2.3 calls an answer that filled the context finished ('stop') unless max_tokens was smaller: it was cut ('length').",
    "arguments": "2.3 begins the arguments of a streamed tool call with a space, which goes.",
    "nameless": "2.3 streams a second tool call without id and name, which nobody can call: it goes, and the first is left to be made.",
    "nulls": "Counts and offsets that the engine does not tell are left out; OpenAI's schema has numbers and lists there.",
    "aborted": "An answer that the engine broke off ('abort', 'pd_reschedule'), or that holds no choice, is an error.",
}

_MODEL = re.compile(rb'"model":("(?:[^"\\]|\\.)*")')
_EMPTY_CHAT = (b'"reasoning_content":""', b'"tool_calls":null', b'"logprobs":null', b'_token_ids":null,"completion_token_ids":null')
_BROKEN_OFF = ("abort", "pd_reschedule")
_BROKEN_OFF_FRAME = tuple(f'"finish_reason":"{reason}"'.encode() for reason in _BROKEN_OFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the repairs of one answer must know of its request."""

    path: str
    model: str
    """The name to echo."""
    n: int = 1
    context: int | None = None
    """The most tokens of prompt and answer together, where the engine cannot be trusted to tell that an answer was cut; else None."""
    hide_usage: bool = False
    """The worker asked for the usage, and the caller did not."""


def facts_of(asked: Mapping[str, Any], path: str, rules: Rules, *, hide_usage: bool = False) -> Facts:
    """Return the facts of the request as the caller made it."""
    name, n = asked.get("model"), asked.get("n")
    return Facts(
        path=path,
        model=name if isinstance(name, str) and name else rules.served_name,
        n=int(n) if isinstance(n, (int, float)) and n >= 1 else 1,
        context=None if rules.engine.says_cut else rules.max_model_len,
        hide_usage=hide_usage,
    )


def with_usage(body: dict[str, Any], rules: Rules) -> tuple[dict[str, Any], bool]:
    """Return a streaming request that tells its usage where the rule `cut` needs it, and whether the usage is to be hidden again."""
    options = body.get("stream_options") or {}
    if rules.engine.says_cut or rules.max_model_len is None or ("stream_options" in body and options.get("include_usage", True)):
        return body, False
    return body | {"stream_options": options | {"include_usage": True}}, True


class Repairer:
    """Repairs one answer: `frame` for each frame of a stream in order, or `answer` for a whole one."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._chat = facts.path == CHAT
        self._entry = b'"delta":' if self._chat else b'"text":'
        self._rename: tuple[bytes, bytes] | None = None
        self._learned = False
        self._named_calls: set[tuple[int, int]] = set()
        self._begun: set[tuple[int, int]] = set()
        self._held: list[bytes] = []
        self._usages: list[dict[str, Any]] = []
        self._usage_frame = b""
        self.applied: set[str] = set()
        """The rules that changed something, for the log."""

    def frame(self, frame: bytes) -> list[bytes]:
        """Return what leaves instead of the next frame: that frame, another, several, or none yet.

        Raises:
            EngineRejected: the engine broke the answer off.
        """
        if not frame.startswith(b'data: {"id"'):
            return [*self._end(), frame] if is_done(frame) else [frame]
        if not self._learned:
            self._learn_name(frame)
        if self._rename:
            frame = frame.replace(*self._rename, 1)
        if frame.endswith(b"} \n\n"):
            frame = frame[:-3] + b"\n\n"
            self.applied.add("space")
        if b'"choices":[],' in frame:
            return self._usage(frame if self._chat else self._complete_text(frame))
        frame = self._complete_chat(frame) if self._chat else self._complete_text(frame)
        if self._is_empty(frame):
            self.applied.add("empty")
            return []
        if frame.count(self._entry) != 1 or b'"tool_calls":[' in frame:
            return self._pieces(frame)
        return self._last(frame) if b'"finish_reason":"' in frame else [frame]

    def answer(self, answer: object) -> dict[str, Any]:
        """Return a whole answer repaired.

        Raises:
            EngineRejected: the answer holds no choice, or the engine broke it off.
        """
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise _broken_off("answered without an answer")
        choices = answer["choices"]
        if all(choice.get("finish_reason") in _BROKEN_OFF for choice in choices):
            raise _broken_off(f"broke the answer off ({choices[0]['finish_reason']})")
        if answer.get("model") != self._facts.model:
            self.applied.add("model")
        usage = _counts(answer.get("usage") or {})
        offsets = [choice | {"logprobs": _without_nulls(choice["logprobs"])} if choice.get("logprobs") else choice for choice in choices]
        if (usage, offsets) != (answer.get("usage") or {}, choices):
            choices = offsets
            self.applied.add("nulls")
        if self._was_cut([answer.get("usage") or {}], len(choices)):
            choices = [choice | {"finish_reason": _cut(choice.get("finish_reason"))} for choice in choices]
            self.applied.add("cut")
        return answer | {"model": self._facts.model, "choices": choices, **({"usage": usage} if usage else {})}

    def _learn_name(self, frame: bytes) -> None:
        self._learned = True
        found = _MODEL.search(frame)
        if found and (asked := json.dumps(self._facts.model).encode()) != found[1] and json.loads(found[1]) != self._facts.model:
            self._rename = (found[0], b'"model":' + asked)
            self.applied.add("model")

    def _complete_chat(self, frame: bytes) -> bytes:
        if b'"finish_reason":' in frame:
            return frame
        self.applied.add("finish")
        return frame.replace(b'"delta":', b'"finish_reason":null,"delta":')

    def _complete_text(self, frame: bytes) -> bytes:
        if b'"object":' not in frame:
            frame = frame.replace(b'"created":', b'"object":"text_completion","created":', 1)
            self.applied.add("object")
        if b'"finish_reason":' not in frame and b'"tool_calls":' in frame:
            frame = frame.replace(b'"tool_calls":', b'"finish_reason":null,"tool_calls":')
            self.applied.add("finish")
        return frame

    def _is_empty(self, frame: bytes) -> bool:
        if (b'"content":"",' if self._chat else b'"text":"",') not in frame:
            return False
        return (
            all(part in frame for part in _EMPTY_CHAT)
            and b'"finish_reason":"' not in frame
            and b'"role":' not in frame
            and b'"usage":{' not in frame
            and frame.count(self._entry) == 1
        )

    def _pieces(self, frame: bytes) -> list[bytes]:
        """Rebuild a frame that holds several entries or tool calls."""
        chunk = json.loads(data_of(frame) or b"")
        merged: dict[int, dict[str, Any]] = {}
        for choice in chunk.get("choices") or []:
            index = choice.get("index", 0)
            merged[index] = merge_choice(merged[index], choice) if index in merged else choice
        if not merged:
            return [frame]
        changed = len(chunk["choices"]) > 1
        if changed:
            self.applied.add("entries")
        pieces = []
        for index, choice in merged.items():
            calls = self._callable(index, choice.get("delta") or {})
            changed = changed or calls
            if not changed:
                return self._last(frame) if choice.get("finish_reason") else [frame]
            if not self._chat:
                choice.setdefault("finish_reason", None)
            piece = _frame(chunk | {"choices": [choice]})
            if not self._is_empty(piece):
                pieces += self._last(piece) if choice.get("finish_reason") else [piece]
        return pieces

    def _callable(self, index: int, delta: dict[str, Any]) -> bool:
        """Repair the tool calls of a delta in place, and tell whether there was anything to repair."""
        kept, changed = [], False
        for call in delta.get("tool_calls") or []:
            key, function = (index, call.get("index", 0)), call.get("function") or {}
            first = key not in self._named_calls and bool(function.get("name"))
            if first:
                self._named_calls.add(key)
            elif key not in self._named_calls:
                self.applied.add("nameless")
                changed = True
                continue
            text = function.get("arguments")
            if text is not None and not first and key not in self._begun:
                self._begun.add(key)
                if text[:1] == " ":
                    function["arguments"] = text[1:]
                    self.applied.add("arguments")
                    changed = True
            kept.append(call)
        if changed:
            delta["tool_calls"] = kept or None
        return changed

    def _last(self, frame: bytes) -> list[bytes]:
        """Hold the last frame of a choice until the usage tells whether it was cut, where that is in doubt."""
        if any(part in frame for part in _BROKEN_OFF_FRAME):
            raise _broken_off("broke the answer off")
        if self._facts.context is None:
            return [frame]
        self._held.append(frame)
        return []

    def _usage(self, frame: bytes) -> list[bytes]:
        self._usages.append(json.loads(data_of(frame) or b"")["usage"])
        self._usage_frame = frame
        return []

    def _end(self) -> list[bytes]:
        frames, self._held = self._held, []
        if self._was_cut(self._usages, len(frames)):
            frames = [frame.replace(b'"finish_reason":"stop"', b'"finish_reason":"length"') for frame in frames]
            self.applied.add("cut")
        if not self._usages or self._facts.hide_usage:
            return frames
        if len(self._usages) > 1:
            total = _counts(merge_usage(self._usages, n=self._facts.n, unknown=None))
            self._usage_frame = _frame(json.loads(data_of(self._usage_frame) or b"") | {"usage": total})
            self.applied.add("usage")
        return [*frames, self._usage_frame]

    def _was_cut(self, usages: list[dict[str, Any]], choices: int) -> bool:
        """Tell whether all choices filled the context; where only some of several did, the engine's word stands."""
        context = self._facts.context
        if context is None or not usages or not choices:
            return False
        # One usage counts each prompt once, whatever n is; of several, each counts its own.
        prompts = sum(usage.get("prompt_tokens", 0) for usage in usages) * (1 if len(usages) > 1 else self._facts.n)
        return bool(prompts + sum(usage.get("completion_tokens", 0) for usage in usages) >= context * choices)


def _cut(reason: object) -> object:
    return "length" if reason == "stop" else reason


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_nulls(value) if isinstance(value, dict) else value for name, value in usage.items()}


def _without_nulls(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if value is not None}


def _frame(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _broken_off(what: str) -> EngineRejected:
    return EngineRejected(502, json.dumps({"error": {"message": f"the engine {what}", "code": "engine_broke_off"}}).encode())
