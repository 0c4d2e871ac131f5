"""Render a table of chat templates and conversations with transformers, as data for the CPU engine's tests.

    python -m ci.parity.make_template_references [FILE]        default: tests/data/templates.json

Runs in an environment of its own with transformers and jinja2, without torch and without a model. The templates are written for this
table; together they use the names, filters and tags that templates of the served families use. null stands for a rendering that fails.
"""

import json
import sys
from pathlib import Path
from typing import Any

DEFAULT_FILE = Path("tests/data/templates.json")
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

CALLS = """
{%- if tools %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{ tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<' + message.role + '>' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {%- set call = call.function if call.function else call %}
        {{- '<call>{"name": "' + call.name + '", "arguments": ' }}
        {%- if call.arguments is string %}{{ call.arguments }}{%- else %}{{ call.arguments | tojson }}{%- endif %}
        {{- '}</call>' }}
    {%- endfor %}
    {{- eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""

TEMPLATES: dict[str, dict[str, str]] = {
    "turns": {
        "default": "{{ bos_token }}{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant: {% endif %}"
    },
    "concatenated": {"default": "{% for m in messages %}{{ bos_token + m['role'] + m['content'] + eos_token }}{% endfor %}"},
    "calls": {"default": CALLS},
    "thoughts": {
        "default": """{%- for m in messages %}
{%- if '</think>' in m.content %}
{%- set text = m.content.split('</think>')[-1].lstrip('\\n') %}
{%- else %}{%- set text = m.content %}{%- endif %}
<|{{ m.role }}|>{{ '/nothink ' if enable_thinking is defined and not enable_thinking }}{{ text }}{{ m.reasoning_content or '' }}
{{- m.thinking }}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '<think></think>' if enable_thinking is false else '<think>' }}{% endif %}"""
    },
    "json": {
        "default": "{{ messages | tojson(ensure_ascii=False) }}\n{{ messages | tojson(ensure_ascii=True) }}\n"
        "{{ messages | tojson(indent=2) }}\n{{ tools | tojson(separators=(',', ':'), sort_keys=true) }}\n{{ messages | tojson(False, 1) }}"
    },
    "alternating": {
        "default": """{% set ns = namespace(turn=0, system='') %}
{% for m in messages %}
    {% if m.role == 'system' %}{% set ns.system = m.content %}{% continue %}{% endif %}
    {% if (m.role == 'user') != (ns.turn % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {% set ns.turn = ns.turn + 1 %}
{{ loop.index }}/{{ loop.length }} {{ m.content }}
{% endfor %}
{{ ns.system }}"""
    },
    "white space": {
        "default": "  {% if true %}\n  a\n  {%- endif %}\n\n{#- gone -#}\n\n    {% for m in messages -%}\n"
        "  {{ m.role }}  \n    {% endfor %}\n  z\n\n"
    },
    "macros": {
        "default": """{% macro turn(m, first=false) %}{{ '* ' if first }}{{ m.role | upper }}{{ caller() if caller }}{% endmacro %}
{% for m in messages %}{% call turn(m, loop.first) %} {{ m.content | length }}{% endcall %}
{% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}"""
    },
    "generation": {
        "default": """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set seen = m.content %}{{ seen }}
{% endgeneration %}{{ seen }}{% else %}{{ m.content }}{% endif %}
{% endfor %}"""
    },
    "filters": {
        "default": """{{ messages | map(attribute='role') | join(',') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | list }}
{{ messages[0].content | replace('a', 'b') | upper }} {{ (messages | last).role }} {{ messages[::-1][0].role }} {{ messages[1:] | length }}
{{ 'x' in messages[0] }} {{ messages[0].items() | list }} {{ messages[0].keys() | list }} {{ messages[0] }}
{% for name, value in messages[0] | dictsort %}{{ name }}={{ value }};{% endfor %}
{{ messages[0].content is string }} {{ messages is iterable }} {{ messages[0] is mapping }}
{{ messages[0].nothing is defined }} {{ messages[0].nothing | default('none') }} {{ 7 // 2 }} {{ 7 / 2 }} {{ '%05.1f' | format(2.25) }}
{{ range(3) | list }} {{ dict(a=1) }} {{ messages[0].content.split(' ') | first | e }} {{ '<b>' }}"""
    },
    "variables": {
        "default": "{{ mood | default('calm') }} {{ documents | tojson }} {{ documents is none }} {{ unk_token is defined }}"
        " {{ pad_token }} {{ date_string | default(strftime_now('%%%Z')) }} {{ add_generation_prompt }}"
        " {{ tools is none }} {{ messages | length }}"
    },
    "two": {"default": "plain {{ messages[-1].content }}", "tool_use": "tools {{ tools | length }} {{ messages[-1].content }}"},
    "inside": {"default": "{{ messages.__class__ }}{{ ''.__class__.__mro__ }}{{ messages[0].content.format }}"},
    "missing": {"default": "{{ messages[0].content }}{{ messages[0].meta.name }}"},
    "division": {"default": "{{ 1 // (messages | length - 2) }}"},
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "It's <b>now</b> & here: Wetter in 東京 \U0001f600",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
    },
}
ASK = {"role": "user", "content": "What's the weather?"}
ANSWER = {"role": "assistant", "content": "  <think>Sun & rain</think>\n\nIt is fine. 晴れ "}
QUOTES = "a 'b' \"c\" \\ \n{{ d }}"


def _called(arguments: object) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"now": "sunny"}'},
    ]


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "question": {"messages": [ASK]},
    "turns": {"messages": [{"role": "system", "content": "Be brief."}, ASK, ANSWER, {"role": "user", "content": QUOTES}]},
    "many": {"messages": [ASK, ANSWER, ASK, ANSWER, ASK]},
    "unicode": {"messages": [{"role": "user", "content": "日本語 é \u2028 \U0001f600 <|x|> </s> \t"}]},
    "empty": {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "", "reasoning_content": "so"}]},
    "thoughts": {"messages": [ASK, {"role": "assistant", "content": "yes", "reasoning": "since", "name": None, "tool_calls": None}, ASK]},
    "tools": {"messages": [ASK], "tools": [WEATHER]},
    "called": {"messages": _called({"city": "東京", "days": 2, "deep": {"a": [1.5, None, True]}}), "tools": [WEATHER]},
    "called with text": {"messages": _called('{"city": "Tōkyō"}'), "tools": [WEATHER, WEATHER]},
    "no thoughts": {"messages": [ASK, ANSWER, ASK], "arguments": {"enable_thinking": False, "mood": "happy"}},
    "no prompt": {"messages": [ASK, ANSWER], "arguments": {"add_generation_prompt": False, "date_string": "today"}},
    "documents": {"messages": [ASK], "arguments": {"documents": [{"title": "a", "text": "b"}], "pad_token": "own"}},
    "extra fields": {"messages": [{"role": "user", "name": "Ann", "content": "hi", "weight": 1}, {"role": "narrator", "content": "later"}]},
    "without content": {"messages": [ASK, {"role": "assistant", "tool_calls": []}]},
}


def rendered(template: str, conversation: str) -> str | None:
    """Return what transformers makes of one conversation; None where it fails."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL_TOKENS)
    sources = TEMPLATES[template]
    tokenizer.chat_template = sources["default"] if len(sources) == 1 else sources
    given = CONVERSATIONS[conversation]
    arguments = {"add_generation_prompt": True, **given.get("arguments", {})}
    try:
        text = tokenizer.apply_chat_template(given["messages"], tools=given.get("tools"), tokenize=False, **arguments)
    except Exception as error:  # noqa: BLE001 - of any kind: that it fails is what is kept
        print(f"{template} / {conversation}: {type(error).__name__}: {error}")
        return None
    return str(text)


def main(arguments: list[str]) -> None:
    """Write the table."""
    import jinja2
    import transformers

    file = Path(arguments[0]) if arguments else DEFAULT_FILE
    table = {
        "versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "special_tokens": SPECIAL_TOKENS,
        "templates": TEMPLATES,
        "conversations": CONVERSATIONS,
        "rendered": {template: {name: rendered(template, name) for name in CONVERSATIONS} for template in TEMPLATES},
    }
    file.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
