from __future__ import annotations

import json
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from handler.parsing.families import FAMILIES, detect
from handler.parsing.reading import Reasoning
from handler.parsing.rewriter import Rewriter
from tests import ROOT
from tests.handler.fastdeploy.recorded import EXCHANGES, named
from tests.handler.parsing.answers import BEGIN, chunks_of, frames, joined, streamed, whole

RECORDED = json.loads((ROOT / "tests/data/parsing/recorded.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["source"].partition(":")[0].rpartition("/")[2])
def test_a_recorded_answer_is_read_as_it_was_meant(case: dict[str, Any]) -> None:
    reasoning = Reasoning(opened=case.get("opened", False))
    found = joined(streamed(frames(case["pieces"]), case["family"], reasoning))
    assert found == whole("".join(case["pieces"]), case["family"], reasoning)
    assert [[name, json.loads(arguments)] for name, arguments in found["calls"]] == case.get("calls", [])
    assert (found["content"], found["thought"]) == (case.get("content", ""), case.get("thought", ""))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["source"].partition(":")[0].rpartition("/")[2])
def test_openais_own_client_joins_a_recorded_answer(case: dict[str, Any]) -> None:
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks_of(streamed(frames(case["pieces"]), case["family"], Reasoning(opened=case.get("opened", False)))):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    message = state.get_final_completion().choices[0].message
    calls = [[call.function.name, json.loads(call.function.arguments)] for call in message.tool_calls or ()]
    assert (calls, message.content or "") == (case.get("calls", []), case.get("content", ""))


@pytest.mark.parametrize("case", [case for case in RECORDED if "calls" not in case], ids=lambda case: case["family"])
def test_an_answers_own_marks_are_read_without_tools_too(case: dict[str, Any]) -> None:
    found = joined(streamed(frames(case["pieces"]), case["family"], Reasoning(opened=case.get("opened", False)), {}))
    assert (found["thought"], found["content"]) == (case["thought"], case["content"])


def test_every_family_has_a_recorded_answer() -> None:
    assert {case["family"] for case in RECORDED} == set(FAMILIES)


@pytest.mark.parametrize("release", sorted({exchange.release for exchange in EXCHANGES}))
def test_the_call_in_a_recorded_stream_of_fastdeploy_without_a_parser_is_made(release: str) -> None:
    exchange = named(release, "base_chat_stream_tools")
    rewriter = Rewriter(FAMILIES["hermes"], None, exchange.request)
    found = joined([left for frame in exchange.frames() for left in rewriter.frame(frame)])
    assert found == {"content": "", "thought": "", "calls": [("get_weather", '{"city": "Paris"}')], "finish_reason": "tool_calls"}
    exchange = named(release, "base_chat_tools_call")
    (choice,) = Rewriter(FAMILIES["hermes"], None, exchange.request).whole(exchange.answer())["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [{"name": "get_weather", "arguments": '{"city": "Paris"}'}]


def test_a_thought_is_the_one_that_fastdeploys_own_parser_found_without_the_templates_newlines() -> None:
    theirs = named("2.3", "b_think_explicit").answer()["choices"][0]["message"]
    exchange = named("2.3", "c_think_explicit")
    ours = Rewriter(None, Reasoning(), exchange.request).whole(exchange.answer())["choices"][0]["message"]
    assert ours["reasoning_content"] == theirs["reasoning_content"].strip("\n")
    assert ours["content"] == theirs["content"].lstrip("\n")


@pytest.mark.parametrize(
    ("template", "special_tokens", "name"),
    [
        ('<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>', [], "hermes"),
        ("{{ '\\n<tool_call>\\n' }}", ["<response>", "</response>"], "ernie"),
        ("<tool_call> ... <response>", [], "ernie"),
        ("<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>", ["<tool_call>"], "qwen-xml"),
        ("<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", ["<tool_call>"], "glm"),
        (f"{{{{'{BEGIN}' + tool['type']}}}}", [BEGIN], "deepseek"),
        ('{{- "<|start|>assistant<|channel|>analysis<|message|>" }}', ["<|channel|>"], "gpt-oss"),
        ("{{ message.content }}", ["<tool_call>", "<response>", BEGIN], None),
        ("", [], None),
    ],
)
def test_the_family_is_found_by_the_marks_in_the_chat_template(template: str, special_tokens: list[str], name: str | None) -> None:
    assert detect(template, special_tokens) == name


@pytest.mark.parametrize(
    ("family", "text", "left"),
    [
        # Each breaks off or goes on as no call does, before its name is whole.
        ("hermes", '<tool_call>\n{"arguments": {}, "name": "now"}</tool_call>', "all"),
        ("hermes", '<tool_call>{"name": "now_or_never"}</tool_call>', "all"),
        ("hermes", "<tool_call>now()</tool_call>", "all"),
        ("hermes", '<tool_call><tool_call>{"name": "now"}</tool_call>', "<tool_call>"),
        ("qwen-xml", "<tool_call>\n<function>now</function>", "all"),
        ("qwen-xml", "<function=later>\n</function>", "all"),
        ("glm", "<tool_call>later\n</tool_call>", "all"),
        ("deepseek", f"{BEGIN}function and now", "all"),
        ("deepseek", f"{BEGIN}function<\uff5ctool▁sep\uff5c>later\n", "all"),
        ("gpt-oss", "<|channel|>commentary to=browser.open<|message|>{}", "all"),
        ("gpt-oss", "<|channel|>" + "analysis " * 40, "all"),
        ("gpt-oss", "<|channel|>" + "analysis " * 40 + "<|message|>", "all"),
    ],
)
def test_what_is_not_a_call_of_an_offered_tool_is_text(family: str, text: str, left: str) -> None:
    found = whole(text, family)
    assert found["content"] == (text if left == "all" else left)
    assert found == joined(streamed(frames(list(text)), family))


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ('{"name": "now", "id": 7}</tool_call>', '"id": 7}</tool_call>', ""),  # other members: not lost
        ('{"name": "now"}\n</tool_call>', "", "{}"),
        ('{"name": "now", "arguments": {"a": [}</tool_call> and', " and", '{"a": [}'),  # broken JSON does not swallow the text after it
        ('{"name": "now", "arguments": nothing</tool_call>', "", "nothing"),
        ('{"name": "now", "arguments": null}</tool_call>', "", "null"),
    ],
)
def test_a_call_that_is_not_well_formed_after_its_name_stays_a_call_and_loses_nothing(text: str, content: str, arguments: str) -> None:
    found = whole("<tool_call>" + text, "hermes")
    assert found["calls"] == [("now", arguments)]
    assert found["content"] == content
    assert found == joined(streamed(frames(list("<tool_call>" + text)), "hermes"))


@pytest.mark.parametrize(
    ("family", "text", "arguments"),
    [
        ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Du', '{"city": "Du'),
        ("hermes", '<tool_call>\n{"name": "get_weather", "argum', ""),
        ("qwen-xml", "<tool_call>\n<function=get_weather>\n<parameter=city>\nDu", '{"city": "Du'),
        ("qwen-xml", "<tool_call>\n<function=get_weather>\n<parameter=city>\nDublin\n</parameter>\n", '{"city": "Dublin"'),
        ("qwen-xml", "<tool_call>\n<function=get_weather>\n<parameter=days>\n1", '{"days": 1'),
        ("qwen-xml", "<tool_call>\n<function=get_weather>\n<parameter=da", '{"da": '),
        ("glm", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_va", ""),
        ("glm", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Du", '{"city": "Du'),
        ("glm", "<tool_call>get_weather\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>", '{"days": 3'),
        ("gpt-oss", '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city"', '{"city"'),
    ],
)
def test_a_call_cut_by_max_tokens_keeps_what_came_and_the_finish_reason(family: str, text: str, arguments: str) -> None:
    found = whole(text, family, reason="length")
    assert found == {"content": "", "thought": "", "calls": [("get_weather", arguments)], "finish_reason": "length"}
    assert found == joined(streamed(frames(list(text), reason="length"), family))


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n'),
        ("qwen-xml", "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n"),
        ("qwen-xml", "<function=get_weather><parameter=city>Rome</parameter>"),
        ("glm", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"),
        ("deepseek", f'{BEGIN}get_weather<\uff5ctool▁sep\uff5c>{{"city": "Rome"}}'),
    ],
)
def test_a_call_is_whole_when_the_model_stopped_at_its_end_mark(family: str, text: str) -> None:
    found = whole(text, family)
    assert [(name, json.loads(arguments)) for name, arguments in found["calls"]] == [("get_weather", {"city": "Rome"})]
    assert found["content"] == ""
    assert found == joined(streamed(frames(list(text)), family))
