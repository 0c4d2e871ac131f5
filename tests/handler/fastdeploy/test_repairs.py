from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from openai.types import Completion

from handler.errors import EngineRejected
from handler.fastdeploy.repairs import RULES, Facts, Repairer, facts_of, with_usage
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.job import CHAT, COMPLETIONS
from handler.sse import data_of, is_done
from tests.handler.fastdeploy.recorded import ANSWERED, STREAMS, WHOLE, Exchange, named
from tests.openai_types import CHAT_ANSWER, CHAT_FRAME, TEXT, problems
from tests.twins.replay.recordings import RELEASES

DONE = b"data: [DONE]\n\n"


def repaired(frames: Iterable[bytes], facts: Facts) -> tuple[list[bytes], set[str]]:
    repairer = Repairer(facts)
    return [leaving for frame in frames for leaving in repairer.frame(frame)], repairer.applied


def facts(exchange: Exchange, **known: Any) -> Facts:
    return Facts(path=exchange.path, model=known.pop("model", "asked-name"), n=exchange.request.get("n") or 1, **known)


def as_it_came(exchange: Exchange) -> Facts:
    """Echo the name that the engine echoed, so that the rule `model` has nothing to do."""
    return facts(exchange, model=chunks(exchange.frames())[0]["model"])


def chunks(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    return [json.loads(data_of(frame) or b"") for frame in frames if not is_done(frame)]


def texts(values: list[dict[str, Any]]) -> dict[tuple[int, str], str]:
    """All that a stream says, by choice and kind."""
    found: dict[tuple[int, str], str] = {}
    for choice in (choice for value in values for choice in value["choices"]):
        part = choice.get("delta", choice)
        for kind in ("content", "text", "reasoning_content"):
            if part.get(kind):
                found[choice["index"], kind] = found.get((choice["index"], kind), "") + part[kind]
        if choice.get("finish_reason"):
            found[choice["index"], "finish"] = choice["finish_reason"]
    return found


@pytest.mark.parametrize("exchange", STREAMS, ids=str)
def test_every_recorded_stream_parses_strictly_with_the_types_of_the_official_client_and_says_the_same(exchange: Exchange) -> None:
    frames, _ = repaired(exchange.frames(), facts(exchange))
    assert frames[-1] == DONE
    for value in chunks(frames):
        assert not problems(CHAT_FRAME if exchange.path == CHAT else TEXT, value)
        assert value["model"] == "asked-name"
        assert len(value["choices"]) <= 1
    assert texts(chunks(frames)) == texts(chunks(exchange.frames()))
    assert all(frame.endswith(b"}\n\n") and not frame.endswith(b" \n\n") for frame in frames[:-1])


@pytest.mark.parametrize("exchange", WHOLE, ids=str)
def test_every_recorded_whole_answer_parses_strictly(exchange: Exchange) -> None:
    if exchange.case == "base_err_n_0":
        with pytest.raises(EngineRejected):
            Repairer(facts(exchange)).answer(exchange.answer())
        return
    answer = Repairer(facts(exchange)).answer(exchange.answer())
    assert not problems(CHAT_ANSWER if exchange.path == CHAT else TEXT, answer)
    assert told(answer) == told(exchange.answer() | {"model": "asked-name"})


def told(value: Any) -> Any:
    """A JSON value without what is null."""
    if isinstance(value, dict):
        return {name: told(item) for name, item in value.items() if item is not None}
    return [told(item) for item in value] if isinstance(value, list) else value


def test_what_a_text_completion_does_not_tell_is_left_out_for_a_null_is_no_number() -> None:
    for case in ("base_cmpl_basic", "c_cmpl_logprobs"):
        exchange = named("2.3", case)
        repairer = Repairer(facts(exchange))
        answer = repairer.answer(exchange.answer())
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert "text_offset" not in (answer["choices"][0]["logprobs"] or {})
        assert "nulls" in repairer.applied
        again = Repairer(facts(exchange))
        assert again.answer(answer) == answer
        assert not again.applied


@pytest.mark.parametrize("exchange", STREAMS, ids=str)
def test_a_repaired_stream_needs_no_repair(exchange: Exchange) -> None:
    once, _ = repaired(exchange.frames(), facts(exchange))
    again, applied = repaired(once, facts(exchange))
    assert again == once
    assert not applied


@pytest.mark.parametrize("exchange", [stream for stream in STREAMS if stream.path == CHAT and b'tool_calls":[' not in stream.body], ids=str)
def test_chat_frames_leave_byte_for_byte_but_for_what_the_schema_requires(exchange: Exchange) -> None:
    before = exchange.frames()
    after, applied = repaired(before, as_it_came(exchange))
    assert applied <= {"space", "empty", "entries", "finish"}
    if "entries" not in applied:
        without = [frame.replace(b'"finish_reason":null,', b"") for frame in after]
        assert set(without) <= {frame.replace(b"} \n\n", b"}\n\n") for frame in before}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("rule", "case"),
    [
        ("space", "base_chat_stream"),
        ("object", "base_cmpl_stream"),
        ("finish", "base_cmpl_stream_list"),
        ("entries", "base_chat_stream_max_streaming_3"),
        ("empty", "base_chat_stream_unicode"),
    ],
)
def test_the_transcripts_show_what_each_rule_is_for(release: str, rule: str, case: str) -> None:
    exchange = named(release, case)
    _, applied = repaired(exchange.frames(), as_it_came(exchange))
    assert rule in applied
    assert applied <= set(RULES)


def test_without_the_repairs_the_official_client_lacks_what_it_requires() -> None:
    frames = named("2.3", "base_cmpl_stream").frames()
    assert Completion.construct(**chunks(frames)[0]).object is None
    better, _ = repaired(frames, Facts(path=COMPLETIONS, model="m"))
    assert Completion.construct(**chunks(better)[0]).object == "text_completion"


def test_the_model_is_echoed_as_asked_even_with_characters_that_json_escapes() -> None:
    exchange = named("2.3", "base_chat_stream")
    frames, applied = repaired(exchange.frames(), facts(exchange, model='a "b" 模'))
    assert {value["model"] for value in chunks(frames)} == {'a "b" 模'}
    assert "model" in applied
    frames, applied = repaired(frames, facts(exchange, model='a "b" 模'))
    assert "model" not in applied


def test_several_tokens_in_one_event_leave_as_one_piece_so_that_choices_0_holds_all_text() -> None:
    for release in RELEASES:
        exchange = named(release, "base_chat_stream_max_streaming_3")
        frames, _ = repaired(exchange.frames(), facts(exchange))
        said = "".join(value["choices"][0]["delta"]["content"] for value in chunks(frames))
        assert said == texts(chunks(exchange.frames()))[0, "content"] == "The quick brow"


def test_an_event_with_pieces_of_two_choices_leaves_as_two_events() -> None:
    entries = [{"index": index, "delta": {"content": word}} for index, word in ((0, "a"), (1, "b"), (0, "c"))]
    frame = b'data: {"id":"x","model":"m","choices":' + json.dumps(entries, separators=(",", ":")).encode() + b"}\n\n"
    frames, _ = repaired([frame], Facts(path=CHAT, model="m"))
    assert [(v["choices"][0]["index"], v["choices"][0]["delta"]["content"]) for v in chunks(frames)] == [(0, "ac"), (1, "b")]


def test_a_packed_event_of_a_text_completion_leaves_as_one_piece_with_all_that_the_schema_requires() -> None:
    head = b'data: {"id":"x","created":1,"model":"m","choices":'
    for last in ({}, {"finish_reason": "stop"}):
        entries = [{"index": 0, "text": "a"}, {"index": 0, "text": "b", "tool_calls": None, **last}]
        frames, applied = repaired(
            [head + json.dumps(entries, separators=(",", ":")).encode() + b"}\n\n"], Facts(path=COMPLETIONS, model="m")
        )
        (value,) = chunks(frames)
        assert not problems(TEXT, value)
        assert value["choices"][0]["text"] == "ab"
        assert value["choices"][0]["finish_reason"] == last.get("finish_reason")
        assert {"object", "entries"} <= applied


@pytest.mark.parametrize("release", RELEASES)
def test_frames_of_half_characters_go_and_no_character_with_them(release: str) -> None:
    exchange = named(release, "base_chat_stream_unicode")
    frames, _ = repaired(exchange.frames(), facts(exchange))
    assert len(frames) == len(exchange.frames()) - 6
    assert texts(chunks(frames))[0, "content"] == "你好世界 😀 done"


@pytest.mark.parametrize(
    "case", ["c_logprobs_stream", "base_chat_stream_return_token_ids", "base_chat_stream_continuous", "b_cmpl_logprobs_stream"]
)
def test_frames_without_text_that_carry_ids_logprobs_or_usage_stay(case: str) -> None:
    exchange = named("2.3", case)
    frames, applied = repaired(exchange.frames(), facts(exchange))
    assert "empty" not in applied
    assert len(frames) == len(exchange.frames())


def test_usages_told_after_each_choice_leave_as_one_at_the_end() -> None:
    frames = named("2.3", "base_cmpl_stream_list").frames()
    usage = {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0}}
    told = b'data: {"id":"cmpl-1","created":1,"model":"m","choices":[],"usage":' + json.dumps(usage).encode() + b"}\n\n"
    found, applied = repaired([*frames[:3], told, *frames[3:6], told, frames[6]], Facts(path=COMPLETIONS, model="asked-name"))
    values = chunks(found)
    assert [bool(value.get("usage")) for value in values] == [False] * (len(values) - 1) + [True]
    assert (values[-1]["usage"]["prompt_tokens"], values[-1]["usage"]["completion_tokens"]) == (18, 6)
    assert "usage" in applied
    assert not problems(TEXT, values[-1])


@pytest.mark.parametrize("case", ["base_chat_stream_usage", "base_cmpl_stream"])
def test_2_3_calls_an_answer_that_filled_the_context_finished_and_it_is_called_cut(case: str) -> None:
    exchange = named("2.3", case)
    total = chunks(exchange.frames())[-1]["usage"]["total_tokens"]
    for context, reason in ((total, "length"), (total + 1, "stop"), (None, "stop")):
        frames, applied = repaired(exchange.frames(), facts(exchange, context=context))
        assert texts(chunks(frames))[0, "finish"] == reason
        assert chunks(frames)[-1]["usage"]["total_tokens"] == total
        assert frames[-1] == DONE
        assert ("cut" in applied) is (reason == "length")


@pytest.mark.parametrize(("case", "full"), [("base_chat_basic", 48), ("base_chat_n2", 48), ("base_cmpl_basic", 39), ("base_cmpl_list", 39)])
def test_a_whole_answer_that_filled_the_context_is_called_cut(case: str, full: int) -> None:
    exchange = named("2.3", case)
    for context, reason in ((full, "length"), (full + 1, "stop")):
        answer = Repairer(facts(exchange, context=context)).answer(exchange.answer())
        assert {choice["finish_reason"] for choice in answer["choices"]} == {reason}


def test_the_usage_that_only_the_worker_asked_for_is_hidden_again() -> None:
    exchange = named("2.3", "base_chat_stream_usage")
    hidden, _ = repaired(exchange.frames(), facts(exchange, hide_usage=True))
    assert not any("usage" in value for value in chunks(hidden))
    rules = Rules(engine=CAPABILITIES["2.3"], served_name="m", max_model_len=64)
    assert with_usage({"stream": True}, rules) == ({"stream": True, "stream_options": {"include_usage": True}}, True)
    assert with_usage({"stream_options": {"include_usage": False}}, rules)[1]
    asked: dict[str, Any] = {"stream_options": {}}
    assert with_usage(asked, rules) == (asked, False)
    assert with_usage({}, Rules(engine=CAPABILITIES["2.4"], served_name="m", max_model_len=64)) == ({}, False)


def test_of_two_streamed_tool_calls_of_2_3_the_nameless_one_goes_and_the_first_one_is_clean() -> None:
    exchange = named("2.3", "x1_tool2_stream")
    frames, applied = repaired(exchange.frames(), facts(exchange))
    calls: dict[int, str] = {}
    names: dict[int, str | None] = {}
    for value in chunks(frames):
        for choice in value["choices"]:
            for call in choice["delta"].get("tool_calls") or []:
                names.setdefault(call["index"], call["function"].get("name"))
                calls[call["index"]] = calls.get(call["index"], "") + (call["function"].get("arguments") or "")
    assert (names, calls) == ({0: "get_weather"}, {0: '{"city": "Paris"}'})
    assert texts(chunks(frames))[0, "finish"] == "tool_calls"
    assert {"nameless", "arguments"} <= applied


def test_an_answer_that_the_engine_broke_off_is_an_error() -> None:
    whole = named("2.3", "base_chat_basic").answer()
    for answer in ({"status": 200}, "", whole | {"choices": []}, whole | {"choices": [whole["choices"][0] | {"finish_reason": "abort"}]}):
        with pytest.raises(EngineRejected) as raised:
            Repairer(Facts(path=CHAT, model="m")).answer(answer)
        assert raised.value.status == 502
    frames = [
        frame.replace(b'"finish_reason":"stop"', b'"finish_reason":"pd_reschedule"') for frame in named("2.3", "base_chat_stream").frames()
    ]
    with pytest.raises(EngineRejected):
        repaired(frames, Facts(path=CHAT, model="m"))


@pytest.mark.parametrize("frame", [b": ping\n\n", b'data: {"error":{"message":"no"}}\n\n', b"event: x\ndata: y\n\n", b'data: {"id":1}\n\n'])
def test_frames_of_no_known_kind_pass(frame: bytes) -> None:
    for path in (CHAT, COMPLETIONS):
        assert Repairer(Facts(path=path, model="m")).frame(frame) == [frame]


def test_the_facts_of_a_request_are_the_name_that_was_asked_for_and_the_context_of_2_3() -> None:
    rules = Rules(engine=CAPABILITIES["2.3"], served_name="served", max_model_len=64)
    assert facts_of({"model": "x", "n": 2}, CHAT, rules) == Facts(path=CHAT, model="x", n=2, context=64)
    assert facts_of({"n": None}, CHAT, Rules(engine=CAPABILITIES["2.5"], served_name="served", max_model_len=64)) == Facts(
        path=CHAT, model="served"
    )


def test_the_recordings_hold_streams_of_every_release() -> None:
    assert {exchange.release for exchange in ANSWERED} == set(RELEASES) >= {"2.3", "2.4", "2.5"}
