"""The parts of chat templates that decide about thinking, and what is made of them; Jinja itself is the oracle of where a prompt ends."""

from __future__ import annotations

import itertools
from typing import Any

import jinja2
import pytest

from handler.errors import InvalidJob
from handler.parsing.reading import Reasoning
from handler.parsing.thinking import EFFORTS, Thinking, reasoning_of, template_kwargs, thinking_of

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
SWITCHED = [name for name, thinking in FOUND.items() if thinking.switch]


def prompt(name: str, body: dict[str, Any]) -> str:
    kwargs = template_kwargs(FOUND[name], body)
    template = jinja2.Environment(autoescape=False).from_string(TEMPLATES[name])  # noqa: S701  # prompts are no HTML
    return template.render(messages=body["messages"], add_generation_prompt=True, **kwargs)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("role", "on"), list(itertools.product(("user", "tool"), (None, True, False))))
def test_an_answer_begins_inside_a_thought_where_the_rendered_prompt_ends_in_one(name: str, role: str, on: bool | None) -> None:
    body = {"messages": [{"role": role, "content": "<think> and </think> that a user typed"}], "enable_thinking": on}
    if on is not None and not FOUND[name].switch:
        body.pop("enable_thinking")
    reasoning = reasoning_of(FOUND[name], body)
    end = prompt(name, body).rpartition("typed")[2]
    assert (reasoning is not None and reasoning.opened) == ("<think>" in end and not end.rstrip().endswith("</think>"))


@pytest.mark.parametrize(
    ("name", "switch", "default", "efforts"),
    [
        ("qwen3", "enable_thinking", True, False),
        ("qwen3-thinking", None, True, False),
        ("qwen3.5", "enable_thinking", True, False),
        ("qwen3.5-small", "enable_thinking", False, False),
        ("glm-4.6", "enable_thinking", True, False),
        ("glm-4.7", "enable_thinking", True, False),
        ("deepseek-r1", None, True, False),
        ("deepseek-v3.1", "thinking", False, False),
        ("ernie-vl", "options", True, False),
        ("gpt-oss", None, True, True),
        ("plain", None, False, False),
    ],
)
def test_a_template_tells_its_switch_and_whether_the_model_thinks_by_itself(
    name: str, switch: str | None, default: bool, efforts: bool
) -> None:
    found = FOUND[name]
    assert (found.switch, found.default, bool(found.efforts)) == (switch, default, efforts)


def test_a_template_without_marks_has_no_reasoning() -> None:
    assert reasoning_of(FOUND["plain"], {"messages": []}) is None
    assert reasoning_of(FOUND["gpt-oss"], {}) is None
    assert reasoning_of(FOUND["qwen3-thinking"], {}) == Reasoning(opened=True)


@pytest.mark.parametrize("name", SWITCHED)
@pytest.mark.parametrize("on", [True, False])
def test_a_switch_is_set_by_its_own_name(name: str, on: bool) -> None:
    told = template_kwargs(FOUND[name], {"enable_thinking": on, "chat_template_kwargs": {"other": 1}})
    switch = FOUND[name].switch
    assert told == {"other": 1, switch: {"thinking_mode": "open" if on else "close"} if switch == "options" else on}


@pytest.mark.parametrize(("name", "effort"), list(itertools.product(SWITCHED, EFFORTS)))
def test_an_effort_turns_a_switch_on_and_none_turns_it_off(name: str, effort: str) -> None:
    assert template_kwargs(FOUND[name], {"reasoning_effort": effort}) == template_kwargs(FOUND[name], {"enable_thinking": effort != "none"})


def test_an_effort_that_the_template_knows_is_passed_on() -> None:
    assert template_kwargs(FOUND["gpt-oss"], {"reasoning_effort": "high"}) == {"reasoning_effort": "high"}
    named = thinking_of("{% if reasoning_effort in ['xhigh'] and enable_thinking %}<think>{% endif %}")
    assert named.efforts == {"low", "medium", "high", "xhigh"}
    assert template_kwargs(named, {"reasoning_effort": "xhigh"}) == {"reasoning_effort": "xhigh"}
    assert template_kwargs(named, {"reasoning_effort": "none"}) == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("qwen3-thinking", {"enable_thinking": True}),
        ("plain", {"enable_thinking": False}),
        ("plain", {"reasoning_effort": "none"}),
        ("plain", {}),
        ("qwen3", {"chat_template_kwargs": None}),
    ],
)
def test_what_a_model_does_anyway_needs_no_switch(name: str, body: dict[str, Any]) -> None:
    assert template_kwargs(FOUND[name], body) == {}


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("qwen3", {"enable_thinking": "yes"}, "enable_thinking"),
        ("qwen3", {"reasoning_effort": "huge"}, "reasoning_effort"),
        ("qwen3", {"reasoning_effort": ["low"]}, "reasoning_effort"),
        ("qwen3", {"reasoning_effort": "none", "enable_thinking": True}, "reasoning_effort"),
        ("qwen3", {"reasoning_effort": "low", "enable_thinking": False}, "reasoning_effort"),
        ("qwen3", {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}}, "enable_thinking"),
        ("qwen3-thinking", {"enable_thinking": False}, "enable_thinking"),
        ("qwen3-thinking", {"reasoning_effort": "none"}, "reasoning_effort"),
        ("qwen3-thinking", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("plain", {"enable_thinking": True}, "enable_thinking"),
        ("plain", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("gpt-oss", {"reasoning_effort": "minimal"}, "reasoning_effort"),
        ("gpt-oss", {"reasoning_effort": "none"}, "reasoning_effort"),
        ("gpt-oss", {"enable_thinking": False}, "enable_thinking"),
    ],
)
def test_what_cannot_be_told_to_the_model_is_refused_by_name(name: str, body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob, match=f"^{field}: ") as refused:
        template_kwargs(FOUND[name], body)
    assert refused.value.param == field


def test_thinking_is_a_value() -> None:
    assert (
        thinking_of(TEMPLATES["qwen3"])
        == FOUND["qwen3"]
        == Thinking(marks=True, switch="enable_thinking", default=True, opens=False, opens_after_tools=True, efforts=frozenset())
    )
