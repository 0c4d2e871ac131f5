"""Chat answers to translate: what is said, as the frames of a stream cut in any way, or as one answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from handler.translation.answer import Translation

Json = dict[str, Any]

HEAD = {"id": "chatcmpl-7", "created": 1700000000, "model": "demo"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call, whose arguments are a JSON text."""

    id: str
    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One chat answer."""

    thought: str = ""
    text: str = ""
    calls: tuple[Call, ...] = ()
    reason: str = "stop"

    @property
    def usage(self) -> Json:
        """Five tokens of the prompt, of which two were cached."""
        return {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 3},
        }

    def whole(self) -> Json:
        """Return the answer without a stream."""
        calls = [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in self.calls]
        message = {"role": "assistant", "content": self.text, "reasoning_content": self.thought, "tool_calls": calls or None}
        choice = {"index": 0, "message": message, "finish_reason": self.reason}
        return HEAD | {"object": "chat.completion", "choices": [choice], "usage": self.usage}

    def chunks(self, sizes: Sequence[int] = (3,)) -> list[Json]:
        """Return the events of the stream, its texts cut into pieces of the sizes, taken in turn."""
        cut = _Cutter(sizes)
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": piece} for piece in cut(self.thought)]
        deltas += [{"content": piece} for piece in cut(self.text)]
        for index, call in enumerate(self.calls):
            deltas.append({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": {"name": call.name}}]})
            deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in cut(call.arguments)]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": self.reason})
        head = HEAD | {"object": "chat.completion.chunk"}
        return [head | {"choices": [choice]} for choice in choices] + [head | {"choices": [], "usage": self.usage}]

    def frames(self, sizes: Sequence[int] = (3,)) -> list[bytes]:
        """Return the frames of the stream."""
        return [*(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in self.chunks(sizes)), b"data: [DONE]\n\n"]


class _Cutter:
    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes, self._turn = sizes, 0

    def __call__(self, text: str) -> list[str]:
        pieces = []
        while text:
            size = self._sizes[self._turn % len(self._sizes)]
            self._turn += 1
            pieces.append(text[:size])
            text = text[size:]
        return pieces


def streamed(translation: Translation, frames: Sequence[bytes]) -> list[Json]:
    """Return the events that the frames become; each names its type twice, as both APIs do."""
    events = []
    for frame in (made for given in frames for made in translation.frame(given)):
        kind, data, *rest = frame.decode().split("\n")
        assert rest == ["", ""]
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        events.append(event)
    return events


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
OBJECTS = st.dictionaries(TEXTS, st.one_of(st.integers(), st.text(st.characters(codec="utf-8"), max_size=5), st.booleans()), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> Said:
    """Any answer in the order in which models give them: a thought, a text, calls."""
    calls = draw(st.lists(st.tuples(NAMES, OBJECTS), max_size=3))
    return Said(
        thought=draw(st.just("") | TEXTS),
        text=draw(st.just("") | TEXTS),
        calls=tuple(Call(id=f"call_{n}", name=name, arguments=json.dumps(given)) for n, (name, given) in enumerate(calls)),
        reason=draw(st.sampled_from(["stop", "length", "content_filter"] if not calls else ["tool_calls", "stop", "length"])),
    )


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
