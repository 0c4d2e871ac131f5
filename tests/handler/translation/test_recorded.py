"""FastDeploy's recorded chats, whole and streamed, with thoughts and tool calls, as answers of both APIs."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from openai.types.responses import Response, ResponseStreamEvent

from tests.twins.replay.recordings import load
from tests.twins.replay.said import Choice, said_recorded
from tests.twins.replay.wire import split

from .chats import Json, streamed
from .schema import validated
from .test_messages_events import joined, messages
from .test_responses_events import responses, said_by

NAMELESS = {"2.3/x1_tool2_stream": "FastDeploy 2.3 streams the second call without id and name; the dialect drops it before"}


def chats() -> dict[str, bytes]:
    """Return the recorded answers to chats that asked for one choice."""
    found = {}
    for release in ("2.3", "2.4", "2.5"):
        for one in load(release):
            said = said_recorded(one.raw) if one.request.path == "/v1/chat/completions" else None
            if said is not None and set(said.choices) == {0}:
                found[f"{release}/{one.case}"] = one.raw
    return found


RECORDED = chats()
STREAMS = [name for name, raw in RECORDED.items() if split(raw).pieces[0].startswith(b"data: ") and name not in NAMELESS]
WHOLE = [name for name, raw in RECORDED.items() if not split(raw).pieces[0].startswith(b"data: ")]


def said_in(name: str) -> Choice:
    said = said_recorded(RECORDED[name])
    assert said
    return said.choices[0]


def as_said(choice: Choice) -> Json:
    return {"content": choice.text, "reasoning_content": choice.thought, "calls": [(call.name, call.arguments) for call in choice.calls]}


def without_ids(said: Json) -> Json:
    return said | {"calls": [(name, arguments) for _, name, arguments in said["calls"]]}


def said_by_message(message: Json) -> Json:
    """Return what a Message says, as `as_said` does, with the arguments read."""
    texts = {kind: "".join(b[kind] for b in message["content"] if b["type"] == kind) for kind in ("text", "thinking")}
    calls = [(b["name"], b["input"]) for b in message["content"] if b["type"] == "tool_use"]
    return {"content": texts["text"], "reasoning_content": texts["thinking"], "calls": calls}


def read_calls(said: Json) -> Json:
    return said | {"calls": [(name, json.loads(arguments)) for name, arguments in said["calls"]]}


def test_there_are_recordings_with_thoughts_and_with_calls_of_both_forms() -> None:
    for names in (STREAMS, WHOLE):
        assert sum(bool(said_in(name).thought) for name in names) > 3
        assert any(said_in(name).calls for name in names)


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_says_the_same_as_events(name: str) -> None:
    frames: Sequence[bytes] = split(RECORDED[name]).pieces
    said = as_said(said_in(name))
    events = streamed(responses(), frames)
    for number, event in enumerate(events):
        validated(ResponseStreamEvent, event)
        assert event["sequence_number"] == number
    assert without_ids(said_by(events[-1]["response"])) == said
    assert said_by_message(joined(streamed(messages(), frames))) == read_calls(said)


@pytest.mark.parametrize("name", WHOLE)
def test_a_recorded_answer_says_the_same(name: str) -> None:
    answer = json.loads(b"".join(split(RECORDED[name]).pieces))
    said = as_said(said_in(name))
    made = responses().whole(answer)
    validated(Response, made)
    assert without_ids(said_by(made)) == said
    assert made["usage"]["input_tokens"] == answer["usage"]["prompt_tokens"]
    assert said_by_message(messages().whole(answer)) == read_calls(said)


def test_a_recorded_call_ends_with_its_reason() -> None:
    frames = split(RECORDED["2.3/x1_tool1_stream"]).pieces
    assert joined(streamed(messages(), frames))["stop_reason"] == "tool_use"
    assert streamed(responses(), frames)[-1]["response"]["status"] == "completed"
