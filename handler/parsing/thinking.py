"""What a chat template knows of thinking: the variable that turns it on or off, and whether the prompt opens the thought.

The template is read as text, not rendered: its variables are found in its expressions, and the end of the prompt in what follows the last
`add_generation_prompt`. The templates that this was read from: Qwen3, Qwen3-Thinking-2507, Qwen3.5 (enable_thinking), GLM-4.5 to 4.7
(enable_thinking), DeepSeek-R1, DeepSeek-V3.1 (thinking, off by default), gpt-oss (reasoning_effort), ERNIE-4.5-VL-28B-A3B-Thinking
(options.thinking_mode; FastDeploy, docs/features/reasoning_output.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from handler.errors import InvalidJob
from handler.parsing.reading import Reasoning

__all__ = ["EFFORTS", "Thinking", "reasoning_of", "template_kwargs", "thinking_of"]

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
"""What OpenAI's API takes as reasoning_effort."""

_USUAL_EFFORTS = frozenset({"low", "medium", "high"})
_EXPRESSION = re.compile(r"\{[%{](.*?)[%}]\}", re.DOTALL)
_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_EMPTY_THOUGHT = re.compile(r"<think>(?:\\n|\s)*</think>")
_OFF_UNLESS_SET = re.compile(
    r"\bset\s+(?:enable_)?thinking\s*=\s*false|(?<!defined or )\benable_thinking is (?:true|defined and enable_thinking(?! is false))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """What a chat template knows of thinking."""

    marks: bool
    """The model thinks between `<think>` and `</think>`."""
    switch: str | None
    """The variable that turns thinking on and off: enable_thinking, thinking, or options, which holds a thinking_mode."""
    default: bool
    """The model thinks when it is not told."""
    opens: bool
    """The prompt of a model that is to think ends with the opening mark."""
    opens_after_tools: bool
    """It does so after the result of a tool, too."""
    efforts: frozenset[str]
    """What the template's variable reasoning_effort may be; empty if it has none."""


def thinking_of(chat_template: str) -> Thinking:
    """Return what a chat template knows of thinking."""
    code = _LITERAL.sub("''", " ".join(_EXPRESSION.findall(chat_template)))
    switch = next((name for name in ("enable_thinking", "thinking") if re.search(rf"(?<![.\w]){name}\b", code)), None)
    effort = re.search(r"(?<![.\w])reasoning_effort\b", code)
    marks = "</think>" in chat_template or "<think>" in chat_template
    _, asked, prompt = chat_template.rpartition("add_generation_prompt")
    return Thinking(
        marks=marks,
        switch="options" if "thinking_mode" in chat_template else switch,
        default=(marks or bool(effort)) and not _OFF_UNLESS_SET.search(chat_template),
        opens=bool(asked) and "<think>" in _EMPTY_THOUGHT.sub("", prompt),
        opens_after_tools="is_tool" not in prompt.partition("%}")[0],
        efforts=frozenset(one for one in EFFORTS if one in _USUAL_EFFORTS or f"'{one}'" in chat_template) if effort else frozenset(),
    )


def template_kwargs(thinking: Thinking, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat_template_kwargs that say what enable_thinking and reasoning_effort of a chat request ask for, with those it has.

    Raises:
        InvalidJob: the template cannot be told so, or the request contradicts itself; the error names the field.
    """
    given = body.get("chat_template_kwargs") or {}
    on, effort = body.get("enable_thinking"), body.get("reasoning_effort")
    if on is not None and not isinstance(on, bool):
        _refuse("enable_thinking", f"got {on!r}, expected true or false")
    if effort is not None and effort not in EFFORTS:
        _refuse("reasoning_effort", f"got {effort!r}, expected one of {', '.join(EFFORTS)}")
    field = "enable_thinking" if effort is None else "reasoning_effort"
    wanted = on if effort is None else effort != "none"
    if on is not None and wanted != on:
        _refuse(field, f"got {effort!r} beside enable_thinking {on}, expected one of them")
    told: dict[str, Any] = {}
    if effort in thinking.efforts:
        told["reasoning_effort"] = effort
    elif effort is not None and effort != "none" and (thinking.efforts or not thinking.switch):
        expected = (
            f"one of {', '.join(sorted(thinking.efforts))}" if thinking.efforts else "none: this model's chat template has no such setting"
        )
        _refuse(field, f"got {effort!r}, expected {expected}")
    elif thinking.switch and wanted is not None:
        told[thinking.switch] = {"thinking_mode": "open" if wanted else "close"} if thinking.switch == "options" else wanted
    elif wanted is not None and wanted != thinking.default:
        _refuse(
            field,
            f"got {body[field]!r}, but this model {'always' if thinking.default else 'never'} thinks: its chat template has no switch",
        )
    for name, value in told.items():
        if name in given and given[name] != value:
            _refuse(field, f"got {body[field]!r} beside chat_template_kwargs.{name} {given[name]!r}, expected one of them")
    return given | told


def reasoning_of(thinking: Thinking, body: Mapping[str, Any]) -> Reasoning | None:
    """Return how the answer to a chat request begins; None if the model has no `<think>`.

    Raises:
        InvalidJob: as `template_kwargs` does.
    """
    kwargs = template_kwargs(thinking, body)
    if not thinking.marks:
        return None
    value = kwargs.get(thinking.switch or "")
    if isinstance(value, Mapping):
        value = value.get("thinking_mode") in ("open", "true", True)
    on = thinking.default if value is None else bool(value)
    messages = body.get("messages") or [{}]
    after_tool = messages[-1].get("role") == "tool"
    return Reasoning(opened=thinking.opens and on and (thinking.opens_after_tools or not after_tool))


def _refuse(field: str, message: str) -> NoReturn:
    raise InvalidJob(f"{field}: {message}", param=field)
