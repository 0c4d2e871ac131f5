"""The form of a release's streams, taken from a recorded one, and a whole answer cut into it.

Each token is an event, the end of text is the last of them, with nothing but the reason; choices take turns; a chat tells its usage once,
a text completion tells one after each choice (read in FastDeploy's serving_completion.py; the recorded streams have one choice).
"""

from __future__ import annotations

import codecs
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any, Final

from .said import Json, events_of
from .wire import Answer

CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The frames of a route's streams, as one release sends them: a recorded stream of one choice with its usage."""

    chat: bool
    answer: Answer
    opening: Json | None
    """A chat's first event, with the role."""
    piece: Json
    last: Json
    usage: Json

    @classmethod
    def of(cls, answer: Answer, *, chat: bool) -> Form:
        """Take the form from a stream of one choice, of several tokens, that ends with its usage."""
        events = events_of(answer.pieces)
        return cls(chat=chat, answer=answer, opening=events[0] if chat else None, piece=events[1], last=events[-2], usage=events[-1])

    def frame(self, event: Json) -> bytes:
        """The bytes of one event; the space before the line end is FastDeploy's, in the first event of each choice of a chat."""
        opens = self.chat and any((choice.get("delta") or {}).get("role") for choice in event["choices"])
        return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + (b" \n\n" if opens else b"\n\n")

    def events(self, whole: Json, n: int) -> Iterator[Json]:
        """The events of a whole answer to a request for `n` answers of each prompt, without a usage: choices take turns."""
        head = {name: whole[name] for name in ("id", "created", "model")}
        shares = _shares(whole["usage"], len(whole["choices"]), n)
        if self.opening:
            for choice in whole["choices"]:
                said = choice["message"]
                opening = self._event(self.opening, head, choice["index"])
                opening["choices"][0]["delta"]["prompt_token_ids"] = said["prompt_token_ids"]
                if said["prompt_tokens"] is not None:
                    opening["choices"][0]["delta"]["prompt_tokens"] = said["prompt_tokens"]
                yield opening
        streams = [list(self._pieces(choice, head, share)) for choice, share in zip(whole["choices"], shares, strict=True)]
        for turn in zip_longest(*streams):
            yield from (event for event in turn if event)

    def with_usage(self, events: list[Json], usage: Json, n: int) -> Iterator[Json]:
        """The events with the usage: a chat tells it at the end, a text completion tells each choice's own after that choice."""
        head = {name: events[0][name] for name in ("id", "created", "model")}
        ended = [choice["index"] for event in events for choice in event["choices"] if choice.get("finish_reason")]
        shares = dict(zip(sorted(ended), _shares(usage, len(ended), n), strict=True))
        for event in events:
            yield event
            for choice in () if self.chat else event["choices"]:
                if choice.get("finish_reason"):
                    yield self._usage_event(head, shares[choice["index"]])
        if self.chat:
            yield self._usage_event(head, usage)

    def _pieces(self, choice: Json, head: Json, usage: Json) -> Iterator[Json]:
        said = choice["message"] if self.chat else choice
        logprobs = _entries(choice.get("logprobs"))
        ids = said.get("completion_token_ids")
        tokens = len(logprobs or ids or ()) or usage["completion_tokens"]
        texts = _texts(said, "content" if self.chat else "text", tokens, usage, logprobs)
        for position, part in enumerate([*texts, {}]):
            ends = position == len(texts)
            event = self._event(self.last if ends else self.piece, head, choice["index"])
            entry = event["choices"][0]
            delta = entry["delta"] if self.chat else entry
            delta.update({"content" if self.chat else "text": "", "reasoning_content": ""}, **part)
            if logprobs and position < len(logprobs):
                entry["logprobs"] = logprobs[position]
            if ids and position < len(ids):
                delta["completion_token_ids"] = [ids[position]]
                delta["completion_tokens"] = part.get("content") or part.get("text") or ""
            if ends:
                entry["finish_reason"] = choice["finish_reason"]
            yield event

    def _event(self, template: Json, head: Json, index: int) -> Json:
        event = copy.deepcopy(template) | head
        event["choices"][0]["index"] = index
        return event

    def _usage_event(self, head: Json, usage: Json) -> Json:
        return self.usage | head | {"usage": _in_the_form_of(self.usage["usage"], usage)}


def _texts(said: Json, name: str, tokens: int, usage: Json, logprobs: list[Json] | None) -> list[Json]:
    """What each event but the last adds: thoughts, then text, then tool calls."""
    thought, text = said.get("reasoning_content") or "", said.get(name) or ""
    words = [_word(entry) for entry in logprobs or ()][:-1]
    if words and "".join(words) == text:
        return [{name: word} for word in words]
    details = usage.get("completion_tokens_details") or {}
    thinking = max(1, min(details.get("reasoning_tokens") or 0, tokens - 2)) if thought else 0
    parts: list[Json] = [{"reasoning_content": piece} for piece in spread(thought, thinking)]
    parts += [{name: piece} for piece in spread(text, max(tokens - 1 - thinking, 1 if text else 0))]
    for index, call in enumerate(said.get("tool_calls") or ()):
        named = {name: call[name] for name in ("id", "type")} | {"index": index, "function": {"name": call["function"]["name"]}}
        pieces = spread(call["function"]["arguments"], 4)
        parts += [{"tool_calls": [named]}, *({"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces)]
    return parts


def spread(text: str, count: int) -> list[str]:
    """`count` pieces of a text, cut at bytes as tokens are: a piece that ends within a character leaves it to the next."""
    data, decoder = text.encode(), codecs.getincrementaldecoder("utf-8")()
    cuts = [len(data) * position // count for position in range(count + 1)] if count else []
    return [decoder.decode(data[start:end]) for start, end in pairwise(cuts)]


def _entries(logprobs: Json | None) -> list[Json] | None:
    """The logprobs of each token, in the form of a stream: without the fields that only a whole answer has."""
    if not logprobs:
        return None
    if "content" in logprobs:
        bare = ("token", "logprob", "bytes")
        others = [[{name: other[name] for name in bare} for other in entry["top_logprobs"]] for entry in logprobs["content"]]
        return [{"content": [entry | {"top_logprobs": top}]} for entry, top in zip(logprobs["content"], others, strict=True)]
    names = ("tokens", "token_logprobs", "top_logprobs")
    return [dict(zip(names, ([value] for value in entry), strict=True)) for entry in zip(*(logprobs[name] for name in names), strict=True)]


def _word(entry: Json) -> str:
    return str(entry["content"][0]["token"] if "content" in entry else entry["tokens"][0])


def _shares(usage: Json, choices: int, n: int) -> list[Json]:
    """The usage of each choice: every prompt is told for each of its `n` answers, the output is dealt out evenly."""
    prompts = max(1, choices // n)
    details: Json = usage.get("completion_tokens_details") or {}
    thoughts = _dealt(details.get("reasoning_tokens") or 0, choices)
    prompt = [tokens for tokens in _dealt(usage["prompt_tokens"], prompts) for _ in range(n)]
    pairs = zip(prompt, _dealt(usage["completion_tokens"], choices), thoughts, strict=False)
    return [
        {
            "prompt_tokens": before,
            "completion_tokens": after,
            "total_tokens": before + after,
            "completion_tokens_details": {"reasoning_tokens": thought},
        }
        for before, after, thought in pairs
    ]


def _dealt(total: int, hands: int) -> list[int]:
    return [total // hands + (hand < total % hands) for hand in range(hands)]


def _in_the_form_of(template: Json, usage: Json) -> Json:
    """The fields of `template`, with the values of `usage`, or 0."""
    made: Json = {}
    for name, value in template.items():
        given: Any = usage.get(name)
        made[name] = _in_the_form_of(value, given or {}) if isinstance(value, dict) else given or 0
    return made
