from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.sse import FrameSplitter, frames_of
from handler.translation.messages import Messages
from tests.strategies import SETTINGS, cuts

from .chats import SIZES, Call, Json, Said, answers, streamed

CALL = Call(id="call_a", name="clock", arguments='{"city": "Paris"}')
EVERYTHING = Said(thought="Let me see.", text="Wait.", calls=(CALL, Call(id="call_b", name="calculator")), reason="tool_calls")


def messages(**more: Any) -> Messages:
    return Messages({"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]} | more)


def joined(events: list[Json]) -> Json:
    """Return the Message that a stream's events make, by Anthropic's rules."""
    message: Json = {}
    inputs: dict[int, str] = {}
    texts = {"text_delta": "text", "thinking_delta": "thinking"}
    for event in events:
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
            inputs[event["index"]] = inputs.get(event["index"], "") + event["delta"]["partial_json"]
        elif event["type"] == "content_block_delta":
            name = texts[event["delta"]["type"]]
            message["content"][event["index"]][name] += event["delta"][name]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text)
    return message


@SETTINGS
@given(answers(), SIZES, st.data())
def test_a_streams_joined_events_are_the_whole_answer_however_it_is_cut(said: Said, sizes: list[int], data: st.DataObject) -> None:
    """Laws: a stream's joined events equal the whole answer, and any chunking of the chat stream gives the same events."""
    whole = messages().whole(said.whole())
    frames = said.frames(sizes)
    events = streamed(messages(), frames)
    assert joined(events) == whole
    told: list[Json] = [{"type": "thinking", "thinking": said.thought, "signature": ""}] if said.thought else []
    told += [{"type": "text", "text": said.text}] if said.text else []
    told += [{"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)} for call in said.calls]
    assert whole["content"] == told
    splitter = FrameSplitter()
    again = [frame for chunk in data.draw(cuts(b"".join(frames))) for frame in frames_of(splitter.feed(chunk))]
    assert streamed(messages(), again) == streamed(messages(), frames)


@SETTINGS
@given(answers(), SIZES)
def test_blocks_start_and_stop_one_after_another(said: Said, sizes: list[int]) -> None:
    events = streamed(messages(), said.frames(sizes))
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    running, count = False, 0
    for event in events[2:-2]:
        assert event["index"] == count
        assert running == (event["type"] != "content_block_start")
        running = event["type"] != "content_block_stop"
        count += event["type"] == "content_block_stop"
    assert not running


def test_a_stream_has_its_events_in_order() -> None:
    kinds = [event["type"].removeprefix("content_") for event in streamed(messages(), EVERYTHING.frames([99]))]
    assert kinds == ["message_start", "ping", *["block_start", "block_delta", "block_stop"] * 4, "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (Said(text="Hi"), "end_turn"),
        (Said(text="Hi", reason="length"), "max_tokens"),
        (Said(text="Hi", reason="content_filter"), "refusal"),
        (Said(calls=(CALL,), reason="tool_calls"), "tool_use"),
        (Said(calls=(CALL,)), "tool_use"),
        (Said(calls=(CALL,), reason="length"), "max_tokens"),
    ],
)
def test_why_a_chat_ended_is_the_stop_reason(said: Said, reason: str) -> None:
    made = messages().whole(said.whole())
    assert (made["stop_reason"], made["stop_sequence"]) == (reason, None)


def test_a_stop_sequence_is_told_where_the_engine_tells_it() -> None:
    answer = Said(text="Hi").whole()
    answer["choices"][0]["stop_reason"] = "END"
    made = messages().whole(answer)
    assert (made["stop_reason"], made["stop_sequence"]) == ("stop_sequence", "END")
    answer["choices"][0]["stop_reason"] = 151645  # the id of an end token
    assert messages().whole(answer)["stop_reason"] == "end_turn"


def test_tokens_from_a_cache_are_not_among_the_input() -> None:
    assert messages().whole(EVERYTHING.whole())["usage"] == {
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 3},
    }


@pytest.mark.parametrize("arguments", ['{"city": "Par', "[1]", "3"])
def test_arguments_that_are_no_object_are_kept_under_one_name(arguments: str) -> None:
    made = messages().whole(Said(calls=(Call(id="c", name="clock", arguments=arguments),), reason="length").whole())
    assert made["content"][0]["input"] == {"INVALID_JSON": arguments}


def test_a_call_without_arguments_has_an_empty_input() -> None:
    made = messages().whole(Said(calls=(Call(id="c", name="clock", arguments=""),), reason="tool_calls").whole())
    assert made["content"][0]["input"] == {}


def test_omitted_thoughts_leave_an_empty_block() -> None:
    thinking = {"type": "adaptive", "display": "omitted"}
    events = streamed(messages(thinking=thinking), EVERYTHING.frames())
    assert "thinking_delta" not in [event["delta"].get("type") for event in events if "delta" in event]
    assert joined(events)["content"][0] == {"type": "thinking", "thinking": "", "signature": ""}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_errors_have_anthropics_shape_at_once_and_in_a_stream(status: int, kind: str) -> None:
    body = {"error": {"message": "stop: got 9 texts", "type": "t", "param": "stop", "code": "c"}}
    shape = {"type": "error", "error": {"type": kind, "message": "stop_sequences: got 9 texts"}}
    assert messages().error(status, body) == (status, shape)
    translation = messages()
    streamed(translation, EVERYTHING.frames()[:5])
    assert translation.broken(status, body) == [b"event: error\ndata: " + json.dumps(shape, separators=(",", ":")).encode() + b"\n\n"]
