"""Chat answers to translate: what is said, as the frames of a stream cut in any way, or as one answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from handler.translation.answer import Translation

Json = dict[str, Any]

HEAD: Json = {"id": "chatcmpl-7", "created": 1700000000, "model": "demo"}


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
        message: Json = {"role": "assistant", "content": self.text, "reasoning_content": self.thought, "tool_calls": calls or None}
        choice: Json = {"index": 0, "message": message, "finish_reason": self.reason}
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
        choices: list[Json] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
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

IMAGES = st.sampled_from(["https://example.com/cat.png", "data:image/png;base64,AAAA"])
PARTS = st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), max_size=2).flatmap(
    lambda texts: IMAGES.map(lambda url: [*texts, {"type": "image_url", "image_url": {"url": url}}])
)
CONTENTS: st.SearchStrategy[Any] = TEXTS | PARTS


@st.composite
def _turns(draw: st.DrawFn) -> list[Json]:
    """One turn of a chat: the user's, an instruction, or the assistant's with what its calls gave."""
    kind = draw(st.sampled_from(["user", "assistant", "system"]))
    if kind != "assistant":
        return [{"role": kind, "content": draw(CONTENTS if kind == "user" else TEXTS)}]
    said: Json = {"role": "assistant", "content": draw(st.just("") | TEXTS)}
    if draw(st.booleans()):
        said["reasoning_content"] = draw(TEXTS)
    numbers = draw(st.lists(st.integers(), unique=True, max_size=2))
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": draw(NAMES), "arguments": json.dumps(draw(OBJECTS))}} for n in numbers
    ]
    if calls:
        said["tool_calls"] = calls
    if not (said["content"] or calls or "reasoning_content" in said):
        said["content"] = "."
    # Two turns of the assistant side by side are one.
    return [said, *({"role": "tool", "tool_call_id": call["id"], "content": draw(CONTENTS)} for call in calls)] + (
        [] if calls else [{"role": "user", "content": draw(CONTENTS)}]
    )


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """The messages of any chat that another API can hold: instructions at the start are one, and the user has the last word."""
    instructions = draw(st.none() | TEXTS)
    begin = [] if instructions is None else [{"role": "system", "content": instructions}]
    turns = [message for turn in draw(st.lists(_turns(), max_size=4)) for message in turn]
    return [*begin, {"role": "user", "content": draw(CONTENTS)}, *turns, {"role": "user", "content": draw(TEXTS)}]


@st.composite
def functions(draw: st.DrawFn) -> list[Json]:
    """Tools of a chat, at least one."""
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=3))
    parameters: Json = {"type": "object", "properties": {"city": {"type": "string"}}}
    made = []
    for name in names:
        function: Json = {"name": name, "parameters": parameters}
        function |= draw(st.just({}) | TEXTS.map(lambda text: {"description": text})) | draw(st.sampled_from([{}, {"strict": True}]))
        made.append({"type": "function", "function": function})
    return made


@st.composite
def chats(draw: st.DrawFn) -> Json:
    """The body of a chat, as far as both APIs can ask for it."""
    chat: Json = {"model": "demo", "messages": draw(conversations()), "max_completion_tokens": draw(st.integers(1, 10**6))}
    if draw(st.booleans()):
        tools = draw(functions())
        choice: Any = draw(
            st.sampled_from([None, "none", "required", {"type": "function", "function": {"name": tools[-1]["function"]["name"]}}])
        )
        chat |= {"tools": tools} | ({"tool_choice": choice} if choice else {}) | draw(st.sampled_from([{}, {"parallel_tool_calls": False}]))
    if draw(st.booleans()):
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    optional: Json = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "seed": 1,
        "stop": ["end", "."],
        "reasoning_effort": "low",
        "chat_template_kwargs": {"a": 1},
        "response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True}},
    }
    return chat | {name: optional[name] for name in draw(st.sets(st.sampled_from(sorted(optional))))}
