"""Calls and thoughts in the engine's text, told by the worker: which parser is chosen, and what requests get of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handler.fastdeploy import dialect
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.fastdeploy.text_formats import OWN_PARSERS, own_parser, text_formats
from handler.job import CHAT, Request
from handler.parsing.families import FAMILIES
from tests.handler.fastdeploy.starts import ERNIE, flags, start, weights

QWEN3 = (
    "{% if tools %}<tool_call>{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>{% endif %}{% endif %}"
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 0}}
ASKED: Any = {"messages": [{"role": "user", "content": "hello"}], "tools": TOOLS}
SAID = '<think>\nParis?\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": QWEN3}))
    return tmp_path


def frames(text: str) -> bytes:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        made = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        return b"data: " + json.dumps(made).encode() + b"\n\n"

    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    first = chunk({"role": "assistant", "content": ""})
    usage = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": USAGE}
    told = b"data: " + json.dumps(usage).encode() + b"\n\n"
    return b"".join([first, *(chunk({"content": piece}) for piece in pieces), chunk({"content": ""}, "stop"), told, b"data: [DONE]\n\n"])


def joined(run: bytes) -> tuple[str, str, list[list[str]], str]:
    content, thought, calls, finish = "", "", list[list[str]](), ""
    for line in run.decode().split("\n\n"):
        if not line or line == "data: [DONE]":
            continue
        choices = json.loads(line.removeprefix("data: "))["choices"]
        if not choices:
            continue
        choice = choices[0]
        delta = choice["delta"]
        content += delta.get("content") or ""
        thought += delta.get("reasoning_content") or ""
        finish = choice.get("finish_reason") or finish
        for call in delta.get("tool_calls") or ():
            if "name" in call["function"] and call["function"]["name"]:
                calls.append([call["function"]["name"], ""])
            calls[-1][1] += call["function"].get("arguments") or ""
    return content, thought, calls, finish


def rules(engine: str, parser: str, directory: Path | None) -> Rules:
    return Rules(engine=CAPABILITIES[engine], served_name="m", own_parser=parser, directory=directory)


@pytest.mark.parametrize("engine", CAPABILITIES)
def test_calls_and_thoughts_of_a_checkpoint_that_has_them_come_in_their_fields_without_a_setting(engine: str, checkpoint: Path) -> None:
    known = rules(engine, "auto", checkpoint)
    asked = Request(method="POST", path=CHAT, body=ASKED | {"stream": True}, stream=True)
    content, thought, calls, finish = joined(dialect.exchange(asked, known, raw=False).run(frames(SAID)))
    assert (content.strip(), thought, finish) == ("", "Paris?", "tool_calls")
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("get_weather", {"city": "Paris"})]

    whole = dialect.exchange(Request(method="POST", path=CHAT, body=ASKED), known, raw=False)
    whole.collect(frames(SAID))
    choice = whole.whole(whole.collected())["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "Paris?"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}


@pytest.mark.parametrize(("more", "asked", "expected"), [
    ({"own_parser": ""}, {}, SAID),
    ({"reasoning_parser": "qwen3"}, {"tools": None}, SAID),
    ({"own_parser": "off"}, {}, SAID.partition("</think>\n\n")[2]),
    ({}, {"tool_choice": "none"}, SAID.partition("</think>\n\n")[2]),
])  # fmt: skip
def test_what_is_not_to_be_told_from_text_stays_in_it(more: dict[str, Any], asked: dict[str, Any], expected: str, checkpoint: Path) -> None:
    known = replace(rules("2.3", "auto", checkpoint), **more)
    body = {name: value for name, value in (ASKED | asked).items() if value is not None} | {"stream": True}
    put = dialect.exchange(Request(method="POST", path=CHAT, body=body, stream=True), known, raw=False)
    content, _, calls, finish = joined(put.run(frames(SAID)))
    assert (content, calls, finish) == (expected, [], "stop")


def test_the_chat_template_decides_unless_a_name_does(checkpoint: Path) -> None:
    assert text_formats("auto", checkpoint).family is FAMILIES["hermes"]
    assert text_formats("glm", checkpoint).family is FAMILIES["glm"]
    assert text_formats("off", checkpoint).family is None
    assert text_formats("auto", None).family is None
    assert text_formats("", checkpoint).thinking is None
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    text_formats.cache_clear()
    assert text_formats("auto", checkpoint).family is None, "a file of its own stands before tokenizer_config.json"


@pytest.mark.parametrize("name", OWN_PARSERS)
def test_a_parser_of_the_worker_is_no_flag_of_the_engine(name: str) -> None:
    made = start({"TOOL_CALL_PARSER": name.replace("-", "_")}).prepare(weights(ERNIE))
    assert "--tool-call-parser" not in made.command(40999)
    assert made.rules.own_parser == name


def test_a_parser_of_the_engine_is_left_to_it() -> None:
    made = start({"TOOL_CALL_PARSER": "ernie-x1"}).prepare(weights(ERNIE))
    assert flags(made)["tool_call_parser"] == "ernie-x1"
    assert made.rules.own_parser == ""
    # A plugin's parser may have a name that is also one of the worker's.
    assert own_parser({"TOOL_CALL_PARSER": "hermes", "FD_PLUGINS": "mine"})[0] == ""


@pytest.mark.parametrize("off", [{"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_the_text_of_a_model_that_was_told_not_to_think_is_no_thought(off: dict[str, Any], tmp_path: Path) -> None:
    """Rule: an answer begins inside a thought only where the prompt, as the template gets it, ends in one."""
    template = (
        "{% if add_generation_prompt %}{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% else %}<think>"
    )
    (tmp_path / "chat_template.jinja").write_text(template + "{% endif %}{% endif %}")
    for asked, expected in ((off, ("Paris.", "")), ({}, ("", "Paris."))):
        body = ASKED | asked | {"stream": True}
        put = dialect.exchange(Request(method="POST", path=CHAT, body=body, stream=True), rules("2.3", "auto", tmp_path), raw=False)
        assert joined(put.run(frames("Paris.")))[:2] == expected


@pytest.mark.parametrize("engine", CAPABILITIES)
def test_a_chat_without_its_thoughts_is_given_so_and_nothing_is_said_to_have_no_effect(
    engine: str, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"messages": ASKED["messages"], "include_reasoning": False, "stream": True}
    known = replace(rules(engine, "auto", checkpoint), strict=True)
    put = dialect.exchange(Request(method="POST", path=CHAT, body=body, stream=True), known, raw=False)
    assert joined(put.run(frames("<think>hm</think>Paris.")))[:2] == ("Paris.", "")
    assert caplog.messages == []
