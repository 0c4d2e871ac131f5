"""The formats in which models write tool calls into their text, each one value, and `detect`, which finds a checkpoint's.

A call's name leaves once it is whole, and is a call only if a tool of that name is offered; its arguments leave as they are written. What
the formats are was read in these places:

hermes    `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, Qwen2.5 and Qwen3: the chat template of Qwen/Qwen3-8B.
ernie     The same, and `<response>...</response>` around the answer after a thought, ERNIE-4.5-Thinking and X1: FastDeploy,
          entrypoints/openai/tool_parsers/ernie_x1_tool_parser.py, reasoning/ernie_x1_reasoning_parsers.py.
qwen-xml  `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`, Qwen3-Coder and Qwen3.5; the first mark is
          left out at times: the chat template of Qwen/Qwen3-Coder-30B-A3B-Instruct.
glm       `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`, GLM-4.5 to 4.7, which differ in newlines: the
          chat templates of zai-org/GLM-4.5, 4.6 and 4.7.
deepseek  `<|tool▁calls▁begin|><|tool▁call▁begin|>...<|tool▁call▁end|><|tool▁calls▁end|>`, each bar a U+FF5C; in a call R1 and V3 write
          `function<|tool▁sep|>NAME`, a newline and a fenced block of JSON, V3.1 `NAME<|tool▁sep|>` and JSON: their chat templates, and
          FastDeploy's deepseek_tool_parser.py.
gpt-oss   `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>`, thoughts in the channel analysis, answers
          in final: openai/harmony, docs/format.md. The marks are special tokens, and FastDeploy's text has them: it decodes with
          PaddleFormers' `decode_token`, whose `skip_special_tokens` is False. With FD_USE_HF_TOKENIZER=1 they are gone, and no parser
          that reads text can help.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from handler.parsing.source import Marks, Source, Steps
from handler.parsing.values import ValueEnd, escaped, spelled, types_of

__all__ = ["FAMILIES", "Family", "Tools", "detect"]

Tools = Mapping[str, Mapping[str, Any]]
"""The tools that may be called: of each name the schemas of its parameters."""

_CALL = "<tool_call>"
_CALL_END = "</tool_call>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One format. `read` is called after a mark of `opens`; True means that it was a call, or another part of the format."""

    name: str
    opens: Marks
    read: Callable[[Source, str, Tools], Steps[bool]]
    answer: tuple[str, str] | None = None
    """The marks around the text that follows a thought."""
    channels: bool = False
    """Thoughts and answers have marks of this format's own."""


def _json_call(source: Source, _mark: str, tools: Tools) -> Steps[bool]:
    if not (yield from source.words("{", '"name"', ":", '"')):
        return False
    name = yield from source.name('"', tools)
    if name is None:
        return False
    source.call(name)
    yield from source.literal('"')
    if (yield from source.optional("}")):
        source.emit("arguments", "{}")
    elif (yield from source.words(",", '"arguments"', ":")):
        yield from _json(source)
        yield from source.optional("}")
    yield from source.optional(_CALL_END)
    return True


def _xml_call(source: Source, mark: str, tools: Tools) -> Steps[bool]:
    if mark == _CALL and not (yield from source.words("<function=")):
        return False
    name = yield from source.name(">", tools)
    if name is None:
        return False
    source.call(name)
    yield from source.literal(">")
    opening = "{"
    while (yield from source.optional("<parameter=")):
        key = yield from _key(source, _ANGLE)
        yield from source.literal("\n")
        if not (yield from _member(source, opening, key, tools[name], _PARAMETER_END, trim=1)):
            return True
        opening = ", "
    yield from _close(source, opening, "</function>")
    yield from source.optional(_CALL_END)
    return True


def _glm_call(source: Source, _mark: str, tools: Tools) -> Steps[bool]:
    name = yield from source.name("\n<", tools)
    if name is None:
        return False
    source.call(name)
    opening = "{"
    while (yield from source.optional("<arg_key>")):
        key = yield from _key(source, _KEY_END)
        if not (yield from source.words("<arg_value>")):
            return True
        if not (yield from _member(source, opening, key, tools[name], _VALUE_END)):
            return True
        opening = ", "
    yield from _close(source, opening, _CALL_END)
    return True


def _deepseek_call(source: Source, mark: str, tools: Tools) -> Steps[bool]:
    if mark == _BLOCK and not (yield from source.words(_BEGIN)):
        return False
    name = yield from source.name("<", {"function": {}, **tools})
    if name is None or not (yield from source.words(_SEPARATOR)):
        return False
    if name == "function" and not ("function" in tools and (yield from source.optional("{", read=False))):
        name = yield from source.name("\n", tools)
        if name is None:
            return False
    source.call(name)
    yield from source.optional("```json")
    yield from _json(source)
    yield from source.optional("```")
    yield from source.optional(_END)
    yield from source.optional(_BLOCK_END)
    return True


def _channel(source: Source, mark: str, tools: Tools) -> Steps[bool]:
    if mark in {"<|end|>", "<|return|>", "<|call|>"}:
        source.commit()
        return True
    header = yield from source.until(_MESSAGE, most=256)
    if header is None:
        return False
    recipient = re.search(r"to=(?:functions\.)?([^\s<]+)", header)
    if recipient:
        if recipient[1] not in tools:
            return False
        source.call(recipient[1])
        yield from _json(source)
        return True
    source.commit()
    if "analysis" in header:
        yield from source.upto(_THOUGHT_END, "thought")
        source.commit()
    return True


def _json(source: Source) -> Steps[None]:
    yield from source.skip()
    yield from source.scan(ValueEnd(), "arguments")


def _key(source: Source, end: Marks) -> Steps[str]:
    key = yield from source.until(end)
    return source.rest() if key is None else key


def _member(source: Source, opening: str, key: str, schemas: Mapping[str, Any], end: Marks, *, trim: int = 0) -> Steps[bool]:
    """Emit one member of the arguments, a string as it arrives, any other value when it is whole; False if the text ended in it."""
    types = types_of(schemas.get(key))
    head = f'{opening}"{escaped(key)}": '
    if types == {"string"}:
        source.emit("arguments", head + '"')
        if (yield from source.upto(end, "arguments", escaped, trim=trim)):
            source.emit("arguments", '"')
            return True
        return False
    source.emit("arguments", head)
    text = yield from source.until(end)
    if text is None:
        source.emit("arguments", source.rest())
        return False
    source.emit("arguments", spelled(text[: len(text) - trim] if trim and text.endswith("\n") else text, types))
    return True


def _close(source: Source, opening: str, mark: str) -> Steps[None]:
    """Emit the end of the arguments, if the model has ended them or itself."""
    if (yield from source.optional(mark)) or source.over:
        source.emit("arguments", "{}" if opening == "{" else "}")


_ANGLE, _KEY_END, _VALUE_END, _PARAMETER_END = (Marks.of(mark) for mark in (">", "</arg_key>", "</arg_value>", "</parameter>"))
_MESSAGE, _THOUGHT_END = Marks.of("<|message|>"), Marks.of("<|end|>")
_BLOCK, _BLOCK_END, _BEGIN, _SEPARATOR, _END = (
    f"<\uff5ctool▁{word}\uff5c>" for word in ("calls▁begin", "calls▁end", "call▁begin", "sep", "call▁end")
)

_HERMES = Family(name="hermes", opens=Marks.of(_CALL), read=_json_call)
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _HERMES,
        Family(name="ernie", opens=_HERMES.opens, read=_json_call, answer=("<response>", "</response>")),
        Family(name="qwen-xml", opens=Marks.of(_CALL, "<function="), read=_xml_call),
        Family(name="glm", opens=Marks.of(_CALL), read=_glm_call),
        Family(name="deepseek", opens=Marks.of(_BLOCK, _BEGIN), read=_deepseek_call),
        Family(
            name="gpt-oss",
            opens=Marks.of("<|channel|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>"),
            read=_channel,
            channels=True,
        ),
    )
}


def detect(chat_template: str, special_tokens: Collection[str]) -> str | None:
    """Return the name of the family whose marks a checkpoint's chat template has, or None.

    A template without them renders no tools either. The special tokens tell ERNIE's format from the one that it shares with Qwen.
    """
    for mark, name in (("<arg_key>", "glm"), ("<function=", "qwen-xml"), (_BEGIN, "deepseek"), ("<|channel|>", "gpt-oss")):
        if mark in chat_template:
            return name
    if _CALL not in chat_template:
        return None
    return "ernie" if "<response>" in special_tokens or "<response>" in chat_template else "hermes"
