"""What a chat template knows of thinking: the variable that turns it on or off, and whether the prompt opens the thought.

The template is read as text, not rendered: its variables are found in its expressions, and the end of the prompt in what follows the last
`add_generation_prompt`. The templates that this was read from: Qwen3, Qwen3-Thinking-2507, Qwen3.5 (enable_thinking), GLM-4.5 to 4.7
(enable_thinking), DeepSeek-R1, DeepSeek-V3.1 (thinking, off by default), gpt-oss (reasoning_effort), ERNIE-4.5-VL-28B-A3B-Thinking
(options.thinking_mode; FastDeploy, docs/features/reasoning_output.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler.parsing.reading import Reasoning

__all__ = ["Thinking", "reasoning_of", "thinking_of"]

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
    )


def reasoning_of(thinking: Thinking, template_kwargs: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> Reasoning | None:
    """Return how the answer begins to a chat whose template gets these variables; None if the model has no `<think>`."""
    if not thinking.marks:
        return None
    value = template_kwargs.get(thinking.switch or "")
    if isinstance(value, Mapping):
        value = value.get("thinking_mode") in ("open", "true", True)
    on = thinking.default if value is None else bool(value)
    after_tool = bool(messages) and messages[-1].get("role") == "tool"
    return Reasoning(opened=thinking.opens and on and (thinking.opens_after_tools or not after_tool))
