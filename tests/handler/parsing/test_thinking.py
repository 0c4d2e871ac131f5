"""The parts of chat templates that decide about thinking, and what is made of them; Jinja itself is the oracle of where a prompt ends."""

from __future__ import annotations

import itertools
from typing import Any

import jinja2
import pytest

from handler.parsing.reading import Reasoning
from handler.parsing.thinking import Thinking, reasoning_of, thinking_of

HEAD = "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content.split('</think>')[-1] }}{%- endfor %}"
TEMPLATES = {
    # Qwen/Qwen3-8B
    "qwen3": HEAD + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    # Qwen/Qwen3-4B-Thinking-2507
    "qwen3-thinking": HEAD + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}",
    # Qwen/Qwen3.5
    "qwen3.5": HEAD
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}",
    # Qwen/Qwen3.5 in its small sizes
    "qwen3.5-small": HEAD
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is true %}"
    "{{- '<think>\\n' }}{%- else %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    # zai-org/GLM-4.6
    "glm-4.6": HEAD + "{%- if add_generation_prompt -%}"
    "<|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}{%- endif -%}",
    # zai-org/GLM-4.7
    "glm-4.7": HEAD + "{%- if add_generation_prompt -%}"
    "<|assistant|>{{- '</think>' if (enable_thinking is defined and not enable_thinking) else '<think>' -}}{%- endif -%}",
    # deepseek-ai/DeepSeek-R1
    "deepseek-r1": "{%- set ns = namespace(is_tool=false) -%}"
    + HEAD
    + "{%- if messages[-1].role == 'tool' %}{%- set ns.is_tool = true -%}{% endif %}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}",
    # deepseek-ai/DeepSeek-V3.1
    "deepseek-v3.1": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{%- set ns = namespace(is_tool=false) -%}"
    + HEAD
    + "{%- if messages[-1].role == 'tool' %}{%- set ns.is_tool = true -%}{% endif %}"
    "{%- if add_generation_prompt and not ns.is_tool -%}{{'<|Assistant|>'}}"
    "{%- if not thinking -%}{{'</think>'}}{%- else -%}{{'<think>'}}{%- endif -%}{% endif %}",
    # baidu/ERNIE-4.5-VL-28B-A3B-Thinking, whose switch is published; the end of its prompt is a guess
    "ernie-vl": "{%- if options is not defined -%}{%- set options = {'thinking_mode': true} -%}{%- endif -%}"
    "{%- set thinking_enabled = options.get('thinking_mode', true) in ['open', 'true', true] -%}"
    + HEAD
    + "{%- if add_generation_prompt -%}Assistant: {%- if thinking_enabled %}{{ '<think>\\n' }}{%- endif %}{%- endif -%}",
    # openai/gpt-oss-20b
    "gpt-oss": "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
    "{{- 'Reasoning: ' + reasoning_effort }}"
    "{%- for message in messages %}{%- if 'thinking' in message %}{{ message.thinking }}{%- endif %}"
    "{{ message.content }}{%- endfor %}"
    "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}",
    # A model that knows nothing of it
    "plain": "{%- for message in messages %}{{ message.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'Assistant: ' }}{%- endif %}",
}
FOUND = {name: thinking_of(template) for name, template in TEMPLATES.items()}


def kwargs(name: str, on: bool | None) -> dict[str, Any]:
    """What a template gets of a chat that turns thinking on or off, by the name that it has there."""
    switch = FOUND[name].switch
    if on is None or switch is None:
        return {}
    return {switch: {"thinking_mode": "open" if on else "close"} if switch == "options" else on}


def prompt(name: str, messages: list[dict[str, str]], on: bool | None) -> str:
    template = jinja2.Environment(autoescape=False).from_string(TEMPLATES[name])  # noqa: S701  # prompts are no HTML
    return template.render(messages=messages, add_generation_prompt=True, **kwargs(name, on))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("role", "on"), list(itertools.product(("user", "tool"), (None, True, False))))
def test_an_answer_begins_inside_a_thought_where_the_rendered_prompt_ends_in_one(name: str, role: str, on: bool | None) -> None:
    messages = [{"role": role, "content": "<think> and </think> that a user typed"}]
    reasoning = reasoning_of(FOUND[name], kwargs(name, on), messages)
    end = prompt(name, messages, on).rpartition("typed")[2]
    assert (reasoning is not None and reasoning.opened) == ("<think>" in end and not end.rstrip().endswith("</think>"))


@pytest.mark.parametrize(
    ("name", "switch", "default"),
    [
        ("qwen3", "enable_thinking", True),
        ("qwen3-thinking", None, True),
        ("qwen3.5", "enable_thinking", True),
        ("qwen3.5-small", "enable_thinking", False),
        ("glm-4.6", "enable_thinking", True),
        ("glm-4.7", "enable_thinking", True),
        ("deepseek-r1", None, True),
        ("deepseek-v3.1", "thinking", False),
        ("ernie-vl", "options", True),
        ("gpt-oss", None, True),
        ("plain", None, False),
    ],
)
def test_a_template_tells_its_switch_and_whether_the_model_thinks_by_itself(name: str, switch: str | None, default: bool) -> None:
    found = FOUND[name]
    assert (found.switch, found.default) == (switch, default)


def test_a_template_without_marks_has_no_reasoning() -> None:
    assert reasoning_of(FOUND["plain"], {}, []) is None
    assert reasoning_of(FOUND["gpt-oss"], {}, []) is None
    assert reasoning_of(FOUND["qwen3-thinking"], {}, []) == Reasoning(opened=True)


def test_thinking_is_a_value() -> None:
    assert (
        thinking_of(TEMPLATES["qwen3"])
        == FOUND["qwen3"]
        == Thinking(marks=True, switch="enable_thinking", default=True, opens=False, opens_after_tools=True)
    )
