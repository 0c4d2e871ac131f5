"""Chat templates: rendered as transformers renders them, and a failing template is the caller's 400."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpu_engine.refusals import BadRequest, StartupError
from cpu_engine.template import ChatTemplate, read_chat_template
from cpu_engine.tokenizer import read_tokenizer
from tests import DEMO

HELLO = [{"role": "user", "content": "hi"}]


def demo() -> ChatTemplate:
    return read_chat_template(DEMO, read_tokenizer(DEMO, prefer_sentencepiece=True).special_tokens)


def test_the_template_of_the_checkpoint_makes_the_prompt() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hello!"}, *HELLO]
    expected = "<|begin_of_sentence|>Be brief.\nUser: hi\nAssistant: Hello!<|end_of_sentence|>User: hi\nAssistant: "
    assert demo().render(messages) == expected


def test_arguments_and_tools_reach_the_template() -> None:
    source = "{{ mood }} {{ tools | tojson }} {{ messages | length }} {{ eos_token }}"
    template = ChatTemplate(source, {"eos_token": "</s>"})
    assert template.render(HELLO, tools=[{"é": "<"}], arguments={"mood": "happy", "messages": []}) == 'happy [{"é": "<"}] 1 </s>'


def test_a_template_has_the_names_that_transformers_gives_it() -> None:
    source = "{% for m in messages %}{% if loop.first %}{{ m.content }}{% break %}{% endif %}{% endfor %}"
    assert ChatTemplate(source, {}).render([*HELLO, *HELLO]) == "hi"
    assert len(ChatTemplate("{{ strftime_now('%Y') }}", {}).render(HELLO)) == 4


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ messages[9].role.upper() }}", "UndefinedError"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_messages_that_the_template_cannot_take_are_the_callers_mistake(source: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        ChatTemplate(source, {}).render(HELLO)
    assert says in caught.value.message
    assert caught.value.param == "messages"


def test_without_a_template_chat_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="this checkpoint has no chat template: use /v1/completions"):
        read_chat_template(tmp_path, {}).render(HELLO)


def test_a_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert read_chat_template(tmp_path, {}).render(HELLO) == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert read_chat_template(tmp_path, {}).render(HELLO) == "file"


def test_the_default_is_taken_from_a_list_of_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_chat_template(tmp_path, {}).render(HELLO) == "plain"


@pytest.mark.parametrize(("value", "says"), [("{% if", "TemplateSyntaxError"), (7, "got int, expected text")])
def test_a_checkpoint_whose_template_is_broken_is_refused(tmp_path: Path, value: object, says: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(StartupError, match=says):
        read_chat_template(tmp_path, {})
