"""Answers as a model writes them, as an engine streams them, and as a client joins them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from handler.parsing.families import FAMILIES
from handler.parsing.reading import Reasoning
from handler.parsing.rewriter import Rewriter
from tests.strategies import JSON_VALUES

Call = tuple[str, dict[str, Any]]
Part = str | Call

STRINGS = {"type": "string"}
TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {"city": STRINGS, "days": {"type": "integer"}, "units": {"enum": ["c", "f"]}},
    "get_weather_map": {"box": {"type": "array"}, "note": {"anyOf": [STRINGS, {"type": "null"}]}},
    "now": {},
    "function": {"code": STRINGS, "options": {"type": ["object", "null"]}, "exact": {"type": "number"}},
}
BODY = {
    "messages": [{"role": "user", "content": "hello"}],
    "tools": [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
        for name, properties in TOOLS.items()
    ],
}
DONE = b"data: [DONE]\n\n"
BEGIN, END, SEP, BLOCK, BLOCK_END = (f"<\uff5ctool▁{word}\uff5c>" for word in ("call▁begin", "call▁end", "sep", "calls▁begin", "calls▁end"))
MARKS = sorted(
    {"<think>", "</think>", "<response>", "</response>", "</tool_call>", "<|message|>", BLOCK, BLOCK_END, BEGIN, END, SEP}
    | {word for family in FAMILIES.values() for word in family.opens.words}
)


def render(family: str, parts: Sequence[Part]) -> str:
    """Write text and calls as the chat template of the family does."""
    if family == "gpt-oss":
        return "<|start|>assistant".join(map(_message, parts))
    if family != "deepseek":
        return "".join(part if isinstance(part, str) else _call(family, *part) for part in parts)
    text, block = "", False
    for part in parts:
        if isinstance(part, str):
            text, block = text + (BLOCK_END if block else "") + part, False
        else:
            text, block = text + ("\n" if block else BLOCK) + _call(family, *part), True
    return text + (BLOCK_END if block else "")


def _message(part: Part) -> str:
    if isinstance(part, str):
        return f"<|channel|>final<|message|>{part}<|end|>"
    return f"<|channel|>commentary to=functions.{part[0]} <|constrain|>json<|message|>{spelled(part[1])}<|call|>"


def _call(family: str, name: str, arguments: Mapping[str, Any]) -> str:
    if family == "glm":
        members = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{_value(value)}</arg_value>\n" for key, value in arguments.items())
        return f"<tool_call>{name}\n{members}</tool_call>"
    if family == "qwen-xml":
        members = "".join(f"<parameter={key}>\n{_value(value)}\n</parameter>\n" for key, value in arguments.items())
        return f"<tool_call>\n<function={name}>\n{members}</function>\n</tool_call>"
    if family == "deepseek":
        if len(arguments) % 2 and name != "function":
            return f"{BEGIN}{name}{SEP}{spelled(arguments)}{END}"
        return f"{BEGIN}function{SEP}{name}\n```json\n{spelled(arguments)}\n```{END}"
    return f'<tool_call>\n{{"name": "{name}", "arguments": {spelled(arguments)}}}\n</tool_call>'


def spelled(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _value(value: object) -> str:
    return value if isinstance(value, str) else spelled(value)


def frames(pieces: Iterable[str], index: int = 0, reason: str = "stop", *, logprobs: bool = False) -> list[bytes]:
    """Return the frames in which FastDeploy streams pieces of a text."""
    chunks: list[dict[str, Any]] = [
        {"index": index, "delta": {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": None}}
    ]
    for position, piece in enumerate([*pieces, ""]):
        delta = {"content": piece, "prompt_token_ids": None, "reasoning_content": "", "tool_calls": None}
        chunks.append({"index": index, "delta": delta, "logprobs": {"content": [{"token": piece, "at": position}]} if logprobs else None})
    chunks[-1]["finish_reason"] = reason
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return [
        b"data: " + json.dumps(head | {"choices": [chunk]}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
        for chunk in chunks
    ]


def streamed(
    stream: Iterable[bytes], family: str | None, reasoning: Reasoning | None = None, body: Mapping[str, Any] = BODY
) -> list[bytes]:
    rewriter = Rewriter(FAMILIES[family] if family else None, reasoning, body)
    return [left for frame in [*stream, DONE] for left in rewriter.frame(frame)]


def chunks_of(leaving: Iterable[bytes]) -> list[dict[str, Any]]:
    return [json.loads(frame.removeprefix(b"data: ")) for frame in leaving if frame != DONE]


def joined(leaving: Iterable[bytes], index: int = 0) -> dict[str, Any]:
    """Return what an OpenAI client makes of the frames of one choice."""
    answer: dict[str, Any] = {"content": "", "thought": "", "calls": [], "finish_reason": None}
    for chunk in chunks_of(leaving):
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            answer["content"] += delta.get("content") or ""
            answer["thought"] += delta.get("reasoning_content") or ""
            for piece in delta.get("tool_calls") or ():
                function = piece["function"]
                if "id" in piece:
                    assert piece["index"] == len(answer["calls"])
                    assert piece["type"] == "function"
                    answer["calls"].append((function["name"], ""))
                name, arguments = answer["calls"][piece["index"]]
                answer["calls"][piece["index"]] = (name, arguments + function["arguments"])
            answer["finish_reason"] = choice.get("finish_reason") or answer["finish_reason"]
    return answer


def whole(
    text: str, family: str | None, reasoning: Reasoning | None = None, body: Mapping[str, Any] = BODY, reason: str = "stop"
) -> dict[str, Any]:
    """Return the same of an answer that was not streamed."""
    message = {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": None}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    (choice,) = Rewriter(FAMILIES[family] if family else None, reasoning, body).whole(answer)["choices"]
    message = choice["message"]
    return {
        "content": message["content"] or "",
        "thought": message["reasoning_content"] or "",
        "calls": [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"] or ()],
        "finish_reason": choice["finish_reason"],
    }


def cut(text: str, how: int | list[int]) -> list[str]:
    """Cut a text into pieces of some length, or at some positions."""
    if isinstance(how, int):
        return [text[at : at + how] for at in range(0, len(text), how)]
    at = [0, *sorted(position % (len(text) + 1) for position in how), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(at)]


CUTS: st.SearchStrategy[int | list[int]] = st.one_of(st.integers(1, 9), st.lists(st.integers(0, 400), max_size=12))
_FRAGMENTS = [
    "<",
    "</",
    "<tool",
    "tool_call>",
    "a < b",
    "<|",
    "<\uff5ctool▁",
    "\n",
    " ",
    "日本",
    "😀",
    '"',
    "{",
    "}",
    "</parameter",
    "\\",
    "<b>",
]
WORDS = st.lists(st.one_of(st.sampled_from(_FRAGMENTS), st.text(max_size=6)), max_size=6).map("".join)
TEXTS = WORDS.filter(lambda text: not any(mark in text for mark in MARKS))
"""Text without a whole mark, with halves of them."""
_STRINGS = st.one_of(st.text(max_size=12), st.sampled_from([*MARKS, 'say "hi"', "a\\b", "line\nline", "}]", "\n"]))


def _values(family: str, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if family not in {"glm", "qwen-xml"}:
        return st.one_of(_STRINGS, JSON_VALUES)
    kinds = {
        "string": _STRINGS,
        "integer": st.integers(),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "array": st.lists(_STRINGS, max_size=3),
    }
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(st.none(), st.text("ab <", min_size=1))
    return (
        kinds[schema["type"]] if isinstance(schema["type"], str) else st.one_of(st.none(), st.dictionaries(_STRINGS, _STRINGS, max_size=2))
    )


@st.composite
def calls(draw: st.DrawFn, family: str) -> Call:
    """Draw one call of an offered tool whose arguments the format can hold."""
    name = draw(st.sampled_from(sorted(TOOLS)))
    keys = draw(st.permutations(sorted(TOOLS[name]))) if TOOLS[name] else []
    keys = keys[: draw(st.integers(0, len(keys)))]
    arguments = {key: draw(_values(family, TOOLS[name][key])) for key in keys}
    if family in {"glm", "qwen-xml"}:
        end = "</arg_value>" if family == "glm" else "</parameter>"
        arguments = {key: value for key, value in arguments.items() if end not in _value(value)}
    return name, arguments


def answers(family: str) -> st.SearchStrategy[list[Part]]:
    return st.lists(st.one_of(TEXTS, calls(family)), max_size=5)
