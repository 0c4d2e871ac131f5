"""What holds for every family, every answer, and every way in which an engine cuts it into frames."""

from __future__ import annotations

import json
from itertools import cycle, groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.parsing.families import FAMILIES
from handler.parsing.reading import Reasoning
from handler.parsing.rewriter import Rewriter
from tests.handler.parsing.answers import (
    BODY,
    CUTS,
    MARKS,
    TEXTS,
    TOOLS,
    Call,
    Part,
    answers,
    calls,
    chunks_of,
    cut,
    frames,
    joined,
    render,
    spelled,
    streamed,
    whole,
)
from tests.strategies import SETTINGS

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
REASONS = st.sampled_from(["stop", "length"])
REASONING = st.sampled_from([None, Reasoning(), Reasoning(opened=True)])
NEARLY = st.lists(
    st.one_of(
        st.sampled_from(
            [*MARKS, *TOOLS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<parameter=", "</function>", "```json\n"]
        ),
        st.sampled_from(
            ['{"name": "', '", "arguments": ', '{"a": [1', "}", "]", '"', "\\", "\n", " ", ">", ":", ",", "analysis", " to=functions."]
        ),
        st.text(max_size=4),
    ),
    max_size=14,
).map("".join)
"""Text that is nearly a call, or is one."""


def text_of(parts: list[Part]) -> str:
    """White space alone beside a call belongs to the format; without a call it is text."""
    runs = ["".join(map(str, run)) for is_text, run in groupby(parts, lambda part: isinstance(part, str)) if is_text]
    return "".join(run for run in runs if run.strip() or all(isinstance(part, str) for part in parts))


def read(calls_: list[tuple[str, str]]) -> list[Call]:
    return [(name, json.loads(arguments)) for name, arguments in calls_]


@EVERY_FAMILY
@SETTINGS
@given(st.data())
def test_any_calls_come_back_however_they_are_cut_streamed_and_whole_with_any_text_around(family: str, data: st.DataObject) -> None:
    """Rule: "any calls rendered in a family's format, cut at any bytes into frames, come back as the same calls"."""
    parts = data.draw(answers(family))
    text = render(family, parts)
    found = joined(streamed(frames(cut(text, data.draw(CUTS))), family))
    assert found == whole(text, family)
    expected = [part for part in parts if not isinstance(part, str)]
    assert spelled(read(found["calls"])) == spelled(expected)  # NaN is not itself
    if family == "gpt-oss":  # each of its texts is a message of its own
        assert found["content"] == "".join(part for part in parts if isinstance(part, str) and part.strip())
    else:
        assert found["content"] == text_of(parts)
    assert found["finish_reason"] == ("tool_calls" if expected else "stop")


@SETTINGS
@given(st.data())
def test_text_without_a_mark_passes_byte_for_byte(data: st.DataObject) -> None:
    """Rule: "Frames that cannot be part of a call or a thought pass byte for byte; everything held back leaves in order"."""
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    stream = frames(cut(data.draw(TEXTS), data.draw(CUTS)), reason=data.draw(REASONS))
    assert streamed(stream, family, data.draw(st.sampled_from([None, Reasoning()])))[:-1] == stream


@SETTINGS
@given(st.data())
def test_marks_without_a_call_of_an_offered_tool_are_text_and_nothing_is_lost(data: st.DataObject) -> None:
    """Rule: "any text at all passes through without loss when it holds no call"; gpt-oss's marks are never text."""
    family = data.draw(st.sampled_from(sorted(set(FAMILIES) - {"gpt-oss"})))
    text = data.draw(NEARLY)
    body = BODY | {"tools": [{"type": "function", "function": {"name": "another"}}]}
    stream = frames(cut(text, data.draw(CUTS)), reason=data.draw(REASONS))
    assert streamed(stream, family, body=body)[:-1] == stream
    assert whole(text, family, body=body)["content"] == text


@EVERY_FAMILY
@SETTINGS
@given(st.data())
def test_the_joined_deltas_of_any_stream_equal_the_whole_answer(family: str, data: st.DataObject) -> None:
    """Rule: "a stream's joined deltas equal the whole answer", for text that is nearly a call too, and for one that breaks off."""
    text, reason, reasoning = data.draw(NEARLY), data.draw(REASONS), data.draw(REASONING)
    found = joined(streamed(frames(cut(text, data.draw(CUTS)), reason=reason), family, reasoning))
    assert found == whole(text, family, reasoning, reason=reason)


@SETTINGS
@given(st.data())
def test_frames_that_pass_together_are_the_frames_that_leave(data: st.DataObject) -> None:
    family, reasoning = data.draw(st.sampled_from(sorted(FAMILIES))), data.draw(REASONING)
    stream = frames(cut("Text first. " + data.draw(NEARLY), data.draw(CUTS)))
    rewriter, leaving = Rewriter(FAMILIES[family], reasoning, BODY), list[bytes]()
    for at in range(0, len(stream), 3):
        run = stream[at : at + 3]
        leaving += run if rewriter.passes(b"".join(run)) else [left for frame in run for left in rewriter.frame(frame)]
    assert joined(leaving) == joined(streamed(stream, family, reasoning))


@SETTINGS
@given(st.data())
def test_two_choices_interleaved_equal_each_alone(data: st.DataObject) -> None:
    """Rule: "Several choices (n > 1) are independent"."""
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    reasoning = data.draw(REASONING)
    streams = [frames(cut(data.draw(NEARLY), data.draw(CUTS)), index, data.draw(REASONS)) for index in (0, 1)]
    turns = cycle(data.draw(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=8)))
    left = [list(stream) for stream in streams]
    order = []
    while left[0] or left[1]:
        index = next(turns)
        order.append(left[index if left[index] else 1 - index].pop(0))
    together = streamed(order, family, reasoning, BODY | {"n": 2})
    for index in (0, 1):
        assert joined(together, index) == joined(streamed(streams[index], family, reasoning), index)


@SETTINGS
@given(st.data())
def test_logprobs_leave_whole_and_in_order(data: st.DataObject) -> None:
    """Rule: "logprobs/usage/other fields of frames are kept"."""
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    stream = frames(
        cut(data.draw(st.one_of(NEARLY, answers(family).map(lambda parts: render(family, parts)))), data.draw(CUTS)), logprobs=True
    )

    def told(leaving: list[bytes]) -> list[Any]:
        return [
            entry
            for chunk in chunks_of(leaving)
            for choice in chunk["choices"]
            for entry in (choice.get("logprobs") or {}).get("content", ())
        ]

    assert told(streamed(stream, family, data.draw(REASONING))) == told(stream)


@SETTINGS
@given(st.data())
def test_an_event_with_several_pieces_of_a_choice_says_the_same(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    text = data.draw(NEARLY)
    singles = chunks_of(frames(cut(text, data.draw(CUTS))))
    size = data.draw(st.integers(1, 5))
    packed = [
        b"data: " + json.dumps(singles[0] | {"choices": [chunk["choices"][0] for chunk in singles[at : at + size]]}).encode() + b"\n\n"
        for at in range(0, len(singles), size)
    ]
    assert joined(streamed(packed, family)) == whole(text, family)


@SETTINGS
@given(st.data())
def test_a_calls_name_leaves_before_its_arguments_have_come(data: st.DataObject) -> None:
    """Rule: "the call's name leaves as soon as it is known, arguments as they come"."""
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    name, arguments = data.draw(calls(family))
    text = render(family, [(name, arguments)])
    known = text.index(name) + len(name)
    until = {"gpt-oss": "<|message|>", "qwen-xml": ">", "glm": "\n", "deepseek": "\n" if f"{name}\n" in text else "\uff5c>"}.get(
        family, '"'
    )
    known = text.index(until, known) + len(until)
    rewriter = Rewriter(FAMILIES[family], None, BODY)
    leaving = [left for frame in frames([text[:known]])[:-1] for left in rewriter.frame(frame)]
    assert joined(leaving)["calls"] == [(name, "")]
