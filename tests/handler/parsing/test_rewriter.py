from __future__ import annotations

import json
from typing import Any

import pytest

from handler.parsing.families import FAMILIES
from handler.parsing.reading import Reasoning
from handler.parsing.rewriter import Rewriter, offered
from tests.handler.parsing.answers import BODY, DONE, chunks_of, frames, joined, streamed, whole

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
USAGE = b'data: {"id":"1","choices":[],"usage":{"total_tokens":3}}\n\n'


@pytest.mark.parametrize("change", [{"tools": None}, {"tools": []}, {"tool_choice": "none"}])
def test_without_tools_to_call_everything_passes(change: dict[str, Any]) -> None:
    stream = [*frames([CALL, "<think>"]), USAGE]
    assert streamed(stream, "hermes", body=BODY | change) == [*stream, DONE]
    rewriter = Rewriter(FAMILIES["hermes"], None, BODY | change)
    answer = {"choices": [{"message": {"content": CALL}}]}
    assert not rewriter.active
    assert rewriter.whole(answer) is answer


def test_frames_without_a_choice_pass_where_they_come() -> None:
    stream = [
        b": comment\n\n",
        *frames(["<tool"])[:-1],
        b"data: no json\n\n",
        b'data: {"error":{"message":"<"}}\n\n',
        b"data: [1]\n\n",
        USAGE,
    ]
    assert sorted(streamed(stream, "hermes")) == sorted([*stream, DONE])


def test_a_stream_that_ends_without_a_finish_loses_nothing() -> None:
    stream = frames(["a", "<tool", "_call>", '{"name": "no'])[:-1]
    assert streamed(stream, "hermes") == [*stream, DONE]


def test_a_choice_more_than_were_asked_for_disturbs_no_other() -> None:
    one, two = frames(["<tool", "_call>", CALL]), frames(["plain", " text", " goes", " on"], index=1)
    order = [one[0], two[0], two[1], one[1], two[2], two[3], one[2], one[3], two[4], two[5], one[4]]
    assert joined(streamed(order, "hermes")) == joined(streamed(one, "hermes"))
    assert joined(streamed(order, "hermes"), 1)["content"] == "plain text goes on"


def test_the_usage_and_other_fields_of_rewritten_frames_are_kept() -> None:
    chunk = chunks_of(frames([CALL]))[1] | {"usage": {"total_tokens": 3}, "system_fingerprint": "x"}
    left = streamed([b"data: " + json.dumps(chunk).encode() + b"\n\n"], "hermes")
    (kept,) = chunks_of(left)
    assert {name: value for name, value in kept.items() if name != "choices"} == {name: chunk[name] for name in chunk if name != "choices"}


def test_marks_may_be_spelled_as_json_escapes() -> None:
    stream = [frame.replace(b"<", b"\\u003c") for frame in frames(["hello", *CALL])]
    assert joined(streamed(stream, "hermes"))["calls"] == [("now", "{}")]


def test_half_of_a_surrogate_pair_in_a_rewritten_frame_stays_the_escape_that_it_was() -> None:
    (_, frame, _), reasoning = frames(["HALF"]), Reasoning(opened=True)
    left = streamed([frame.replace(b"HALF", b"a\\ud83d")], None, reasoning)
    assert b'"reasoning_content":"a\\ud83d"' in left[0]


def test_calls_have_ids_of_their_own_and_indexes_in_order() -> None:
    left = streamed(frames([CALL, CALL, "\n", CALL]), "hermes")
    begun = [call for chunk in chunks_of(left) for call in chunk["choices"][0]["delta"].get("tool_calls") or () if "id" in call]
    assert [call["index"] for call in begun] == [0, 1, 2]
    assert len({call["id"] for call in begun}) == 3
    assert all(call["id"].startswith("call_") for call in begun)


def test_white_space_alone_around_calls_is_left_out_and_content_is_null() -> None:
    (choice,) = Rewriter(FAMILIES["hermes"], None, BODY).whole({"choices": [{"message": {"content": f"\n\n{CALL}\n{CALL}\n"}}]})["choices"]
    assert choice["message"]["content"] is None
    assert len(choice["message"]["tool_calls"]) == 2


def test_text_around_calls_keeps_its_white_space() -> None:
    assert whole(f"\n a \n{CALL}\n b ", "hermes")["content"] == "\n a \n\n b "


def test_a_finish_reason_is_tool_calls_only_after_a_call_that_was_not_cut() -> None:
    assert [whole(CALL, "hermes", reason=reason)["finish_reason"] for reason in ("stop", "length", "abort")] == [
        "tool_calls",
        "length",
        "abort",
    ]
    assert whole("text", "hermes")["finish_reason"] == "stop"


def test_of_two_tools_of_one_name_the_first_tells_the_types() -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": kind}}}}}
        for kind in ("string", "integer")
    ]
    text = "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
    assert whole(text, "glm", body={"tools": tools})["calls"] == [("f", '{"x": "1"}')]


@pytest.mark.parametrize("parameters", [None, {}, {"properties": None}, [], {"properties": []}])
def test_a_tool_without_a_schema_is_offered_and_one_without_a_name_is_not(parameters: object) -> None:
    assert offered({"tools": [{"function": {"name": "f", "parameters": parameters}}, {"function": {"name": ""}}, {}]}) == {"f": {}}


@pytest.mark.parametrize(
    ("text", "opened", "thought", "content"),
    [
        ("<think>\na\n\nb\n</think>\n\nc", False, "a\n\nb", "c"),
        ("a\n</think>\n\nc", True, "a", "c"),
        ("<think>a</think>c", True, "a", "c"),  # a template that opens, and a model that opens again
        ("\n<think>\n\n</think>\n\nc", False, "", "c"),
        ("</think>c", False, "", "</think>c"),
        ("c <think>a</think>", False, "", "c <think>a</think>"),
        ("<think>a\n", False, "a\n", ""),
        ("only a thought", True, "only a thought", ""),
        ("<thin", False, "", "<thin"),
        (" \n", False, "", " \n"),
        ("", True, "", ""),
    ],
)
def test_a_thought_is_what_stands_before_its_end_mark(text: str, opened: bool, thought: str, content: str) -> None:
    found = whole(text, None, Reasoning(opened=opened))
    assert (found["thought"], found["content"]) == (thought, content)
    for size in (1, 2, 100):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert joined(streamed(frames(pieces), None, Reasoning(opened=opened))) == found


def test_a_call_inside_a_thought_is_part_of_the_thought() -> None:
    found = whole(f"<think>{CALL}</think>{CALL}", "hermes", Reasoning())
    assert found["thought"] == CALL
    assert found["calls"] == [("now", "{}")]


def test_thoughts_are_dropped_if_the_request_does_not_want_them() -> None:
    body = BODY | {"include_reasoning": False}
    left = streamed(frames(["<think>", "a", "</think>", "\n\n", "b", CALL]), "hermes", Reasoning(), body)
    assert joined(left) == {"content": "b", "thought": "", "calls": [("now", "{}")], "finish_reason": "tool_calls"}
    assert len(chunks_of(left)) == 4  # role, text, call, finish
    assert whole("<think>a</think>b", "hermes", Reasoning(), body)["thought"] == ""


def test_thoughts_that_the_engine_made_are_dropped_too() -> None:
    stream = [
        frame.replace(b'"reasoning_content":""', b'"reasoning_content":"hm"') if b'"content":"x' in frame else frame
        for frame in frames("xyz")
    ]
    body = {"include_reasoning": False}
    assert joined(stream)["thought"] == "hm"
    assert joined(streamed(stream, None, None, body)) == joined(frames("xyz"))
    answer = {"choices": [{"message": {"content": "a", "reasoning_content": "hm"}, "finish_reason": "stop"}]}
    assert Rewriter(None, None, body).whole(answer)["choices"][0]["message"] == {"content": "a", "reasoning_content": None}


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        '<tool_call>{"name": "n',
        "<tool_call>\n",
        "<tool_call>\n{" + " " * 9,
        "<",
        "\n",
        "<\uff5ctool▁call▁begin\uff5c>function",
        "</think>\n",
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_repeating_what_nearly_is_a_call_costs_time_in_proportion(family: str, text: str) -> None:
    """A reader that looked again at what it had read would take minutes for this."""
    text = text * (200_000 // len(text))
    found = whole(text, family)
    assert found["content"] == text
    pieces = [text[at : at + 4] for at in range(0, 20_000, 4)]
    assert joined(streamed(frames(pieces), family))["content"] == "".join(pieces)
