from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from handler.errors import EngineDied
from handler.sse import FrameSplitter, frames_of
from handler.translation.responses import Responses
from tests.strategies import SETTINGS, cuts

from .chats import SIZES, Call, Json, Said, answers, streamed
from .schema import validated

CALL = Call(id="call_a", name="clock", arguments='{"city": "Paris"}')
EVERYTHING = Said(thought="Let me see.", text="Wait.", calls=(CALL, Call(id="call_b", name="calculator")), reason="tool_calls")


def responses(**more: Any) -> Responses:
    return Responses({"input": "Hi"} | more)


def said_by(response: Json) -> Json:
    """Return what the output of a Response says, as a chat's message would."""
    found: Json = {"content": "", "reasoning_content": "", "calls": []}
    for item in response["output"]:
        if item["type"] == "function_call":
            found["calls"].append((item["call_id"], item["name"], item["arguments"]))
        else:
            found["content" if item["type"] == "message" else "reasoning_content"] += item["content"][0]["text"]
    return found


def joined(events: list[Json]) -> Json:
    """Return what the deltas of a stream say."""
    found: Json = {"content": "", "reasoning_content": "", "calls": []}
    calls: dict[str, list[str]] = {}
    for event in events:
        if event["type"] == "response.output_item.added" and event["item"]["type"] == "function_call":
            calls[event["item"]["id"]] = [event["item"]["call_id"], event["item"]["name"], event["item"]["arguments"]]
        elif event["type"] == "response.function_call_arguments.delta":
            calls[event["item_id"]][2] += event["delta"]
        elif event["type"] in {"response.output_text.delta", "response.reasoning_text.delta"}:
            found["content" if "output" in event["type"] else "reasoning_content"] += event["delta"]
    return found | {"calls": [tuple(call) for call in calls.values()]}


@SETTINGS
@given(answers(), SIZES, st.data())
def test_a_streams_joined_events_are_the_whole_answer_however_it_is_cut(said: Said, sizes: list[int], data: st.DataObject) -> None:
    """Laws: a stream's joined events equal the whole answer, and any chunking of the chat stream gives the same events."""
    whole = responses().whole(said.whole())
    frames = said.frames(sizes)
    events = streamed(responses(), frames)
    assert events[-1]["response"] == whole
    assert joined(events) == said_by(whole)
    assert said_by(whole) == {
        "content": said.text,
        "reasoning_content": said.thought,
        "calls": [(call.id, call.name, call.arguments) for call in said.calls],
    }
    splitter = FrameSplitter()
    again = [frame for chunk in data.draw(cuts(b"".join(frames))) for frame in frames_of(splitter.feed(chunk))]
    assert streamed(responses(), again) == events


@SETTINGS
@given(answers(), SIZES)
def test_every_event_is_of_the_schema_and_their_numbers_rise_by_one(said: Said, sizes: list[int]) -> None:
    events = streamed(responses(stream=True), said.frames(sizes))
    for number, event in enumerate(events):
        validated(ResponseStreamEvent, event)
        assert event["sequence_number"] == number
    validated(Response, responses().whole(said.whole()))


@SETTINGS
@given(answers(), SIZES)
def test_items_are_added_filled_and_done_one_after_another(said: Said, sizes: list[int]) -> None:
    """Each item's events stand between its `added` and its `done`, under its own id and index."""
    events = streamed(responses(), said.frames(sizes))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    running: Json | None = None
    done: list[Json] = []
    for event in events[2:-1]:
        if event["type"] == "response.output_item.added":
            assert running is None
            running = event["item"]
        elif event["type"] == "response.output_item.done":
            assert running is not None
            assert (event["item"]["id"], event["output_index"]) == (running["id"], len(done))
            done.append(event["item"])
            running = None
        else:
            assert running is not None
            assert (event["item_id"], event["output_index"]) == (running["id"], len(done))
    assert running is None
    assert events[-1]["response"]["output"] == done


def test_a_stream_has_its_events_in_order() -> None:
    kinds = [event["type"].removeprefix("response.") for event in streamed(responses(), EVERYTHING.frames([99]))]
    assert (
        kinds
        == """created in_progress
        output_item.added content_part.added reasoning_text.delta reasoning_text.done content_part.done output_item.done
        output_item.added content_part.added output_text.delta output_text.done content_part.done output_item.done
        output_item.added function_call_arguments.delta function_call_arguments.done output_item.done
        output_item.added function_call_arguments.delta function_call_arguments.done output_item.done
        completed""".split()
    )


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
    ],
)
def test_why_a_chat_ended_is_the_status_of_the_response(reason: str, status: str, details: Json | None) -> None:
    events = streamed(responses(), Said(text="Hi", reason=reason).frames())
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"], response["incomplete_details"]) == (f"response.{status}", status, details)
    assert response["output"][0]["status"] == status


def test_the_usage_is_told_in_the_words_of_responses() -> None:
    assert responses().whole(EVERYTHING.whole())["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 12,
    }


def test_the_answer_repeats_what_was_asked() -> None:
    tool = {"type": "function", "name": "clock", "parameters": {}, "strict": False}
    given_fields: Json = {
        "instructions": "Be brief.",
        "tools": [tool],
        "tool_choice": "required",
        "temperature": 0.5,
        "max_output_tokens": 9,
    }
    given_fields |= {"metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k", "parallel_tool_calls": False}
    format_ = {"type": "json_schema", "name": "n", "schema": {}}
    made = responses(**given_fields, text={"format": format_}, reasoning={"effort": "low", "summary": "auto"}).whole(
        Said(text="Hi").whole()
    )
    assert made | given_fields == made
    assert (made["text"], made["reasoning"]) == ({"format": format_}, {"effort": "low", "summary": None})
    assert (made["id"], made["model"], made["created_at"], made["object"]) == ("resp_7", "demo", 1700000000, "response")
    validated(Response, made)


def test_a_function_comes_back_under_its_namespace() -> None:
    tools = [{"type": "namespace", "name": "door", "description": "A door.", "tools": [{"type": "function", "name": "open"}]}]
    said = Said(calls=(Call(id="c", name="door__open"),), reason="tool_calls")
    (item,) = responses(tools=tools).whole(said.whole())["output"]
    assert (item["namespace"], item["name"]) == ("door", "open")


def test_a_thought_after_a_text_begins_another_item() -> None:
    chunks = [*Said(thought="a", text="b").chunks()[:3], *Said(thought="c", text="d").chunks()[1:]]
    frames = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
    output = streamed(responses(), frames)[-1]["response"]["output"]
    assert [(item["type"], item["content"][0]["text"]) for item in output] == [
        ("reasoning", "a"),
        ("message", "b"),
        ("reasoning", "c"),
        ("message", "d"),
    ]
    assert len({item["id"] for item in output}) == 4


def test_logprobs_are_told_in_the_events_and_with_bytes_in_the_answer() -> None:
    entry = {"token": "é", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "e", "logprob": -1.0, "bytes": [101]}]}
    chunk = Said(text="é").chunks()
    chunk[1]["choices"][0]["logprobs"] = {"content": [entry]}
    frames = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunk] + [b"data: [DONE]\n\n"]
    events = streamed(responses(top_logprobs=1), frames)
    brief = [{"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "e", "logprob": -1.0}]}]
    assert [event["logprobs"] for event in events if "logprobs" in event] == [brief, brief]
    (told,) = events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert told == {
        "token": "é",
        "logprob": -0.5,
        "bytes": [0xC3, 0xA9],
        "top_logprobs": [{"token": "e", "logprob": -1.0, "bytes": [101]}],
    }
    for event in events:
        validated(ResponseStreamEvent, event)


ERROR = {"error": {"message": "the engine died", "type": "server_error", "param": None, "code": "engine_died"}}


def broken(translation: Responses, status: int = 503) -> list[Json]:
    return [json.loads(frame.split(b"data: ")[1]) for frame in translation.broken(status, ERROR)]


@pytest.mark.parametrize(("status", "code"), [(503, "server_error"), (429, "rate_limit_exceeded"), (400, "invalid_prompt")])
def test_a_stream_that_breaks_ends_with_what_failed_and_no_call_that_is_not_whole(status: int, code: str) -> None:
    translation = responses()
    events = streamed(translation, EVERYTHING.frames()[:-4])
    events += broken(translation, status)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert (response["status"], response["error"]) == ("failed", {"code": code, "message": "the engine died"})
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call"]
    assert sum(event["type"] == "response.output_item.added" for event in events) == 4
    validated(ResponseStreamEvent, events[-1])


def test_a_stream_that_breaks_before_it_begins_is_an_error() -> None:
    (event,) = broken(responses())
    assert event == {"type": "error", "sequence_number": 0, "code": "engine_died", "message": "the engine died", "param": None}
    validated(ResponseStreamEvent, event)


def test_calls_that_are_mixed_up_are_the_engines_fault() -> None:
    chunks = EVERYTHING.chunks()
    chunks.insert(-2, chunks[-4] | {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]}}]})
    frames = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    with pytest.raises(EngineDied, match="went on with tool call 0 after it had begun call 1"):
        streamed(responses(), frames)


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "😀\u2028"])
def test_half_of_a_character_is_given_as_it_came(text: str) -> None:
    said = Said(text=text)
    events = streamed(responses(instructions=text), said.frames([1]))
    assert joined(events)["content"] == text
    assert events[0]["response"]["instructions"] == text


def test_a_frame_without_data_becomes_nothing() -> None:
    assert responses().frame(b": still here\n\n") == []
