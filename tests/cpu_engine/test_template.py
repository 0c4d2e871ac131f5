"""Chat templates: rendered as transformers renders them, in a process with bounds; a failing template is the caller's 400."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jinja2
import pytest

from cpu_engine.refusals import BadRequest, StartupError
from cpu_engine.template import ChatTemplate, TemplateFailure
from cpu_engine.template_process import TemplateProcess, check_template, read_chat_template
from cpu_engine.tokenizer import read_tokenizer
from tests import DATA, DEMO

HELLO = [{"role": "user", "content": "hi"}]
REFERENCE = json.loads((DATA / "templates.json").read_text(encoding="utf-8"))
RENDERED = [(template, conversation) for template in REFERENCE["rendered"] for conversation in REFERENCE["rendered"][template]]


@pytest.mark.parametrize(("template", "conversation"), RENDERED)
def test_every_template_renders_every_conversation_exactly_as_transformers_does(template: str, conversation: str) -> None:
    """The law of B.2: what stands in tests/data was rendered by transformers; null stands for a failure there."""
    chat = ChatTemplate(REFERENCE["templates"][template], REFERENCE["special_tokens"])
    given: dict[str, Any] = {"tools": None, "arguments": None, **REFERENCE["conversations"][conversation]}
    expected = REFERENCE["rendered"][template][conversation]
    if expected is None:
        with pytest.raises(TemplateFailure):
            chat.render(given["messages"], tools=given["tools"], arguments=given["arguments"])
    else:
        assert chat.render(given["messages"], tools=given["tools"], arguments=given["arguments"]) == expected


def test_the_reference_holds_successes_and_failures_of_every_template() -> None:
    assert len(REFERENCE["templates"]) >= 10
    assert len(RENDERED) == len(REFERENCE["templates"]) * len(REFERENCE["conversations"]) >= 100
    assert sum(REFERENCE["rendered"][template][conversation] is None for template, conversation in RENDERED) > 5


def demo() -> TemplateProcess:
    return read_chat_template(DEMO, read_tokenizer(DEMO, prefer_sentencepiece=True).special_tokens)


def test_the_template_of_the_checkpoint_makes_the_prompt() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hello!"}, *HELLO]
    expected = "<|begin_of_sentence|>Be brief.\nUser: hi\nAssistant: Hello!<|end_of_sentence|>User: hi\nAssistant: "
    with closing(demo()) as template:
        assert template.problem() is None
        assert template.render(messages) == expected
        assert template.render(messages) == expected


def test_arguments_and_tools_reach_the_template() -> None:
    template = ChatTemplate({"default": "{{ mood }} {{ tools | tojson }} {{ messages | length }} {{ eos_token }}"}, {"eos_token": "</s>"})
    assert template.render(HELLO, tools=[{"é": "<"}], arguments={"mood": "happy", "messages": []}) == 'happy [{"é": "<"}] 1 </s>'


CALLED = [*HELLO, {"role": "assistant", "content": None, "tool_calls": []}]


@pytest.mark.parametrize(
    ("source", "messages", "place", "says"),
    [
        ("{{ messages[0].content + 1 }}", HELLO, "messages[0].content", "cannot render a text"),
        ("{% for m in messages %}{{ '' + m.content }}{% endfor %}", CALLED, "messages[1].content", "needs it, and it is missing"),
        ("{% for m in messages %}{{ m['name'] + '' }}{% endfor %}", HELLO, "messages[0].name", "needs it, and it is missing"),
        ("{% for m in messages %}{{ m.get('content') + '' }}{% endfor %}", CALLED, "messages[1].content", "needs it, and it is missing"),
        ("{{ messages[1].tool_calls[0].function.name }}", CALLED, "messages[1].tool_calls", "cannot render a list"),
        ("{{ messages[9].role.upper() }}", HELLO, "messages", "cannot render this conversation"),
        ("{{ messages[0].role }}{{ raise_exception('roles must alternate') }}", HELLO, "messages[0].role", "says: roles must alternate"),
        ("{{ raise_exception('roles must alternate') }}", HELLO, "messages", "says: roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", HELLO, "messages", "cannot render this conversation"),
        ("{{ 1 // 0 }}", HELLO, "messages", "cannot render this conversation"),
    ],
)
def test_a_failure_names_message_and_field_and_no_type_of_python(source: str, messages: Any, place: str, says: str) -> None:
    with closing(TemplateProcess({"default": source}, {})) as template:
        template.problem()
        for _ in range(2):
            with pytest.raises(BadRequest) as caught:
                template.render(messages)
            assert caught.value.param == place
            assert caught.value.message == f"{place}: the checkpoint's chat template {says}"


COSTLY = [
    "{{ lipsum(n=100000) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ messages[0].content * 10 ** 11 }}",
    "{% set ns = namespace(x=messages[0].content) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ messages[0].content | center(10 ** 10) }}",
]


@pytest.mark.parametrize("source", COSTLY)
def test_what_a_template_costs_is_bounded_and_the_next_conversation_is_rendered_again(source: str) -> None:
    """Rule: a checkpoint's template cannot block the engine; what it uses is processor time, so that a busy machine changes nothing."""
    source = "{% if messages[0].content == 'hi' %}" + source + "{% else %}fine{% endif %}"
    with closing(TemplateProcess({"default": source}, {})) as template:
        assert template.problem() is None
        for _ in range(2):
            with pytest.raises(BadRequest) as caught:
                template.render(HELLO)
            assert caught.value.message.startswith(
                "messages: the checkpoint's chat template takes more than 2 s of processor time or 1 GiB"
            )
            assert template.render([{"role": "user", "content": "x"}]) == "fine"


def test_a_template_that_costs_too_much_lets_the_other_threads_run() -> None:
    ticks = 0
    with closing(TemplateProcess({"default": COSTLY[1]}, {})) as template:

        def refused() -> None:
            with pytest.raises(BadRequest):
                template.render(HELLO)

        rendering = threading.Thread(target=refused)
        rendering.start()
        while rendering.is_alive():
            time.sleep(0.01)
            ticks += 1
        rendering.join()
    assert ticks > 20


def test_without_a_template_chat_says_what_to_do(tmp_path: Path) -> None:
    template = read_chat_template(tmp_path, {})
    check_template(tmp_path, template)
    with pytest.raises(BadRequest, match="this checkpoint has no chat template: use /v1/completions"):
        template.render(HELLO)
    template.close()


def test_a_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    with closing(read_chat_template(tmp_path, {})) as template:
        assert template.problem() is None
        assert template.render(HELLO) == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    with closing(read_chat_template(tmp_path, {})) as template:
        assert template.problem() is None
        assert template.render(HELLO) == "file"


def test_of_several_templates_that_for_tools_is_taken_where_there_are_tools(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with closing(read_chat_template(tmp_path, {})) as template:
        assert template.problem() is None
        assert template.render(HELLO) == "plain"
        assert template.render(HELLO, tools=[{"type": "function"}]) == "tools"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{% if", "TemplateSyntaxError"),
        (7, "got int, expected text"),
        ("{{ 'a' | center(10 ** 9) }}", "takes more than 2 s of processor time or 1 GiB of memory to be read"),
    ],
)
def test_a_checkpoint_whose_template_is_broken_is_refused(tmp_path: Path, value: object, says: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(StartupError, match=says), closing(read_chat_template(tmp_path, {})) as template:
        check_template(tmp_path, template)


def test_a_template_that_does_not_parse_is_jinjas_error() -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate({"default": "{% generation %}"}, {})
