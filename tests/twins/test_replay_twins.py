"""The replay of a recorded question in another form: it says what was recorded, in the form of its release, or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twins.replay.child import running
from tests.twins.replay.form import CHAT, Form, spread
from tests.twins.replay.recordings import RELEASES, SETUPS, Miss, Recording, json_object, load, named
from tests.twins.replay.said import Said, events_of, said_recorded, said_streamed, said_whole
from tests.twins.replay.twin import TwinLibrary, question, wants_usage, whole_answer
from tests.twins.replay.wire import Request, split

LIBRARY = {release: load(release) for release in RELEASES}
SERVERS = [(release, setup) for release in LIBRARY for setup in SETUPS if any(one.setup == setup for one in LIBRARY[release])]
FORMS = {CHAT: "base_chat_stream_usage", "/v1/completions": "base_cmpl_stream"}
ROUTES = tuple(FORMS)
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}

# What a stream of the same question says otherwise, as it was recorded: white space around thoughts, tool calls of 2.3, failures of whole
# answers only. To stream a request that is wrong only without a stream makes it right.
OTHERWISE = {"b_think_implicit", "b_think_tool", "x1_tool1", "x1_tool2", "base_err_stream_options_no_stream"}


def library(release: str, setup: str, recordings: list[Recording] | None = None) -> TwinLibrary:
    return TwinLibrary(recordings or LIBRARY[release], setup=setup, served="my-model" if setup in {"b", "c"} else "whatever")


def generation(release: str, setup: str) -> list[Recording]:
    found = [one for one in LIBRARY[release] if one.setup == setup and one.request.path in ROUTES and not one.refused_key]
    # Two names at once are served by a server without a name only: any, and "x".
    return [one for one in found if json_object(one.request.body) and one.case != "base_err_no_messages"]


def asked(one: Recording, **changes: Any) -> Request:
    """The request with some fields changed, and without those that are None, as a worker changes it."""
    body = {name: value for name, value in {**json_object(one.request.body), **changes}.items() if value is not None or name not in changes}
    return replace(one.request, body=json.dumps(body).encode(), headers={})


def found_for(release: str, setup: str, request: Request) -> Recording:
    found = library(release, setup).find(request)
    assert isinstance(found, Recording), found
    return found


@pytest.mark.parametrize(("release", "setup"), SERVERS)
@pytest.mark.parametrize("form", [WITH_USAGE, {"stream": True, "stream_options": None}], ids=["usage", "no-usage"])
def test_every_recorded_question_streams_what_was_recorded(release: str, setup: str, form: dict[str, Any]) -> None:
    for one in generation(release, setup):
        found = found_for(release, setup, asked(one, **form, request_id=None))
        recorded, said = said_recorded(one.raw), said_recorded(found.raw)
        if one.case in OTHERWISE or (recorded is None and said):
            assert found.is_stream
            continue
        assert (said and said.choices) == (recorded and recorded.choices), one.case
        tells = bool(said and said.usage and not (json_object(one.request.body).get("stream_options") or {}).get("continuous_usage_stats"))
        assert tells is bool(said and form is WITH_USAGE) or "continuous" in one.case, one.case


@pytest.mark.parametrize(("release", "setup"), SERVERS)
def test_no_two_recordings_of_one_question_and_form_say_different_things(release: str, setup: str) -> None:
    said: dict[tuple[str, str, bool, bool], Said | None] = {}
    for one in generation(release, setup):
        body = json_object(one.request.body)
        known = b'"model_not_support"' not in one.raw
        key = (one.request.path, question(body, known=known), one.is_stream, said_recorded(one.raw) is None)
        now = said_recorded(one.raw)
        now = now and replace(now, usage=None)
        assert said.setdefault(key, now) == now, one.case


PAIRS = [
    (release, stream, whole)
    for release, setup in SERVERS
    for stream in generation(release, setup)
    for whole in generation(release, setup)
    if stream.is_stream and not whole.is_stream and said_recorded(whole.raw) and "continuous" not in stream.case
    if question(json_object(stream.request.body), known=True) == question(json_object(whole.request.body), known=True)
]


@pytest.mark.parametrize(
    ("release", "stream", "whole"), PAIRS, ids=[f"{release}-{stream.case}-{whole.case}" for release, stream, whole in PAIRS]
)
def test_a_stream_made_of_a_whole_answer_has_the_frames_of_the_recorded_stream(release: str, stream: Recording, whole: Recording) -> None:
    path, body, answer = whole.request.path, json_object(stream.request.body), whole_answer(whole)
    form = Form.of(split(named(release, FORMS[path]).raw), chat=path == CHAT)
    events = list(form.events(answer, body.get("n") or 1))
    if wants_usage(body):
        events = list(form.with_usage(events, answer["usage"], body.get("n") or 1))
    theirs = split(stream.raw).pieces
    assert theirs[-1] == b"data: [DONE]\n\n"
    assert shapes(tuple(map(form.frame, events))) == shapes(theirs)
    said, recorded = said_streamed(events), said_whole(answer)
    assert said.choices == recorded.choices
    assert said.usage in {None, recorded.usage}


def test_there_are_pairs_of_each_route_and_release() -> None:
    assert {(release, whole.request.path) for release, _, whole in PAIRS} == {(release, path) for release in LIBRARY for path in ROUTES}
    assert len(PAIRS) > 40


def shapes(pieces: tuple[bytes, ...]) -> list[str]:
    """The kinds of frames in the order of their first coming: names in order, what is null, and how the line ends."""

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shape(item) for name, item in value.items() if name not in {"reasoning_content", "content", "top_logprobs"}}
        return [shape(item) for item in value[:1]] if isinstance(value, list) else type(value).__name__

    found = [f"{shape(event)}{piece[-3:]!r}" for event, piece in zip(events_of(pieces), pieces, strict=False)]
    return list(dict.fromkeys(found))


def test_choices_take_turns_and_text_completions_tell_a_usage_after_each() -> None:
    two = named("2.3", "base_cmpl_n2")
    events = events_of(split(found_for("2.3", "base", asked(two, **WITH_USAGE)).raw).pieces)
    order = ["usage" if not event["choices"] else event["choices"][0]["index"] for event in events]
    assert order == [0, 1] * 15 + [0, "usage", 1, "usage"]
    usages = [event["usage"] for event in events if not event["choices"]]
    assert [(usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) for usage in usages] == [(23, 16, 39)] * 2


def test_several_prompts_share_the_tokens_of_the_prompts() -> None:
    many = named("2.5", "base_cmpl_list")
    events = events_of(split(found_for("2.5", "base", asked(many, **WITH_USAGE)).raw).pieces)
    assert [event["usage"]["prompt_tokens"] for event in events if not event["choices"]] == [23, 23]


def test_a_usage_that_nobody_recorded_is_counted() -> None:
    stream = named("2.3", "base_chat_stream_return_token_ids")
    said = said_recorded(found_for("2.3", "base", asked(stream, **WITH_USAGE)).raw)
    assert said
    assert said.usage == (len(said.choices[0].prompt_ids), 4, len(said.choices[0].prompt_ids) + 4, 0)


def test_a_failure_answers_a_stream_with_the_same_bytes() -> None:
    failed = named("2.3", "base_err_too_long")
    assert found_for("2.3", "base", asked(failed, **WITH_USAGE)).raw == failed.raw


def test_a_stream_that_ended_with_an_error_is_no_answer_and_comes_as_it_came() -> None:
    stream = named("2.3", "base_chat_stream_slow")
    broken = replace(stream, raw=stream.raw.replace(b"e\r\ndata: [DONE]", b'15\r\ndata: {"error":null}\n\n\r\ne\r\ndata: [DONE]'))
    found = library("2.3", "base", [broken, named("2.3", "base_chat_stream_usage")]).find(asked(stream, **WITH_USAGE))
    assert isinstance(found, Recording)
    assert (found.by, found.raw) == ("twin", broken.raw)
    assert said_recorded(broken.raw) is None


@pytest.mark.parametrize("change", [{"model": "other"}, {"seed": 5}, {"n": 3}, {"stop": "x"}, {"metadata": {}}], ids=str)
def test_another_question_is_a_miss(change: dict[str, Any]) -> None:
    assert isinstance(library("2.3", "base").find(asked(named("2.3", "base_chat_basic"), **WITH_USAGE, **change)), Miss)


@pytest.mark.parametrize("name", ["whatever", "default"])
def test_every_name_of_the_served_model_asks_the_same(name: str) -> None:
    unicode = named("2.3", "base_chat_stream_unicode")
    assert found_for("2.3", "base", asked(unicode, **WITH_USAGE, model=name)).case == "base_chat_stream_unicode"


def test_two_answers_to_one_question_answer_nothing() -> None:
    basic = named("2.3", "base_chat_stop")
    form = [named("2.3", "base_chat_stream_usage")]
    other = replace(basic, case="base_other", raw=basic.raw.replace(b"today", b"later"))
    found = library("2.3", "base", [basic, other, *form]).find(asked(basic, **WITH_USAGE))
    assert isinstance(found, Miss)
    assert "different answers: base_chat_stop, base_other" in str(found)
    assert isinstance(library("2.3", "base", [basic]).find(asked(basic, **WITH_USAGE)), Miss)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(1, 40))
def test_pieces_of_a_text_are_as_many_as_asked_for_and_make_the_text(text: str, count: int) -> None:
    """Law: cutting a text at any bytes loses no character, and splits none."""
    pieces = spread(text, count)
    assert len(pieces) == count
    assert "".join(pieces) == text


@pytest.mark.anyio
async def test_the_server_says_why_a_recording_answered() -> None:
    basic = named("2.3", "base_chat_n2")
    async with running("2.3", "--twins", "--served-model-name", "mine") as server:
        for changes in ({}, {**WITH_USAGE, "model": "mine"}):
            body = asked(basic, **changes).body
            raw = await server.exchange(
                b"POST %s HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body
            )
            assert raw.startswith(b"HTTP/1.1 200 OK")
        entries = await server.seen()
    assert [(entry["case"], entry["by"]) for entry in entries] == [("base_chat_n2", "recording"), ("base_chat_n2", "twin")]
    assert (entries[1]["events"], entries[1]["events_total"]) == (36, 36)
