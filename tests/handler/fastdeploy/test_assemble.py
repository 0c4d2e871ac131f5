from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import EngineDied, EngineRejected
from handler.fastdeploy.assemble import DIFFERENCES, Assembler, as_stream, needs_whole
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.job import CHAT, COMPLETIONS
from tests.handler.fastdeploy.recorded import STREAMS, TWINS, Exchange, named
from tests.strategies import SETTINGS
from tests.twins.replay.recordings import RELEASES

# White space around thoughts: the parser qwen3 on a text with </think> and without <think>.
SPACED = {f"{release}-{case}_stream" for release in RELEASES for case in ("b_think_implicit", "b_think_tool")}
PARSED_TOOLS = {f"{release}-{case}_stream" for release in RELEASES for case in ("x1_tool1", "x1_tool2")}


def rules(release: str = "2.6", **known: Any) -> Rules:
    return Rules(engine=CAPABILITIES[release], served_name="m", **known)


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Take away what no two requests have in common."""
    answer = json.loads(json.dumps(answer))
    del answer["id"], answer["created"]
    for choice in answer["choices"]:
        choice.pop("arrival_time", None)
        for call in choice.get("message", choice)["tool_calls"] or []:
            call.pop("id", None)
    return answer


def assembled(stream: Exchange, whole: Exchange) -> dict[str, Any]:
    return comparable(stream.assembled(None if stream.tells_usage else whole.answer()["usage"]))


def test_there_are_twins_of_each_kind_and_release() -> None:
    assert len(TWINS) >= 53
    assert {stream.release for stream, _ in TWINS} == set(RELEASES)
    assert {stream.path for stream, _ in TWINS} == {CHAT, COMPLETIONS}
    assert {stream.case.partition("_")[0] for stream, _ in TWINS} == {"base", "b", "c", "x1"}


@pytest.mark.parametrize(("stream", "whole"), [twins for twins in TWINS if str(twins[0]) not in SPACED | PARSED_TOOLS], ids=str)
def test_an_assembled_stream_equals_the_answer_that_the_engine_gave_without_a_stream(stream: Exchange, whole: Exchange) -> None:
    assert assembled(stream, whole) == comparable(whole.answer())


@pytest.mark.parametrize(("stream", "whole"), [twins for twins in TWINS if str(twins[0]) in SPACED], ids=str)
def test_white_space_around_thoughts_is_the_only_difference_of_a_text_without_an_opening_tag(stream: Exchange, whole: Exchange) -> None:
    assert "white space around thoughts" in DIFFERENCES
    ours, theirs = assembled(stream, whole), comparable(whole.answer())
    message = ours["choices"][0]["message"]
    message["content"], message["reasoning_content"] = message["content"].strip(), message["reasoning_content"].strip()
    # The tokens of that white space count as thoughts in a stream.
    del ours["usage"]["completion_tokens_details"], theirs["usage"]["completion_tokens_details"]
    assert ours == theirs


@pytest.mark.parametrize(("stream", "whole"), [twins for twins in TWINS if str(twins[0]) in PARSED_TOOLS], ids=str)
def test_a_stream_of_parsed_tool_calls_is_not_the_whole_answer_and_such_a_request_is_sent_whole(stream: Exchange, whole: Exchange) -> None:
    assert assembled(stream, whole) != comparable(whole.answer())
    assert needs_whole(whole.request, whole.path, rules(tool_parser=True, reasoning_parser="ernie-x1"))
    assert not needs_whole(whole.request, whole.path, rules())


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("stream", "whole"),
    [("base_chat_stream_n2", "base_chat_n2"), ("base_chat_stream_return_token_ids", "base_chat_return_token_ids")],
)
def test_several_choices_and_token_ids_come_in_the_shape_of_the_whole_answer(release: str, stream: str, whole: str) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shape(item) for name, item in value.items()}
        return [shape(item) for item in value[:1]] if isinstance(value, list) and value and isinstance(value[0], int) else type(value)

    streamed, answered = named(release, stream), named(release, whole).answer()
    ours = streamed.assembled(None if streamed.tells_usage else {"prompt_tokens": 18, "completion_tokens": 4, "total_tokens": 22})
    assert ours["usage"].keys() == answered["usage"].keys()
    assert {name: type(value) for name, value in ours.items()} == {name: type(value) for name, value in answered.items()}
    assert [shape(choice) for choice in ours["choices"]] == [shape(choice) for choice in answered["choices"]]


def test_token_ids_and_texts_of_a_stream_are_joined_in_order() -> None:
    answer = named("2.3", "base_chat_stream_return_token_ids").assembled({"prompt_tokens": 18, "completion_tokens": 4})
    message = answer["choices"][0]["message"]
    assert message["content"] == message["completion_tokens"] == "The qu"
    assert message["completion_token_ids"] == [1599, 223, 338, 2]
    assert len(message["prompt_token_ids"]) == 18


@pytest.mark.parametrize("release", RELEASES)
def test_a_list_of_prompts_gives_a_choice_for_each_and_one_usage(release: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 2}}
    stream = named(release, "base_cmpl_stream_list")
    frames = stream.frames()
    told = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    assembler, twice = Assembler(COMPLETIONS), Assembler(COMPLETIONS, n=2)
    for frame in [*frames[:3], told, *frames[3:6], told]:
        assembler.feed(frame)
        twice.feed(frame)
    answer = assembler.answer()
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in answer["choices"]] == [
        (0, "The ", "stop"),
        (1, "The ", "stop"),
    ]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"], answer["usage"]["total_tokens"]) == (18, 6, 24)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert twice.answer()["usage"]["prompt_tokens"] == 9


@pytest.mark.parametrize("stream", [stream for stream in STREAMS if stream.tells_usage], ids=str)
def test_a_stream_that_broke_off_anywhere_is_no_answer(stream: Exchange) -> None:
    frames = [frame for frame in stream.frames() if b"[DONE]" not in frame]
    assembler = Assembler(stream.path, n=stream.request.get("n") or 1)
    for frame in frames:
        with pytest.raises(EngineDied, match="ended before"):
            assembler.answer()
        assembler.feed(frame)
    assert assembler.answer()["choices"]


def test_an_error_in_a_stream_is_the_engines_error_and_garbage_a_502() -> None:
    with pytest.raises(EngineRejected) as error:
        Assembler(CHAT).feed(b'data: {"error":{"message":"no","type":"internal_error","param":null,"code":null}}\n\n')
    assert error.value.status == 500
    for frame in (b"data: {\n\n", b"data: [1]\n\n"):
        with pytest.raises(EngineRejected) as error:
            Assembler(CHAT).feed(frame)
        assert error.value.status == 502


@pytest.mark.parametrize(
    "fields",
    [
        {"echo": True},
        {"prompt_logprobs": 0},
        {"include_draft_logprobs": True},
        {"collect_metrics": True},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ],
)
def test_what_only_the_whole_answer_tells_is_asked_for_whole(fields: dict[str, Any]) -> None:
    assert needs_whole(fields, CHAT, rules())
    assert needs_whole(fields, COMPLETIONS, rules())


def test_everything_else_is_streamed_even_where_the_whole_form_fails() -> None:
    plain = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "n": 2, "logprobs": True, "echo": False}
    assert not needs_whole(plain, CHAT, rules())
    assert not needs_whole({"prompt": "a", "logprobs": 2}, COMPLETIONS, rules())
    assert not needs_whole(plain | {"tools": [{}]}, CHAT, rules(tool_parser=True, reasoning_parser="qwen3"))
    assert needs_whole(plain, CHAT, rules(reasoning_parser="ernie-x1"))
    assert needs_whole({"prompt": "a", "return_token_ids": True}, COMPLETIONS, rules())
    assert needs_whole({"input": "a"}, "/v1/embeddings", rules())


def test_the_streaming_form_of_a_request_asks_for_the_usage_and_for_single_tokens() -> None:
    asked = {"prompt": "a", "stream": False, "max_streaming_response_tokens": 4}
    assert as_stream(asked) == {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    assert asked["stream"] is False


PIECES = st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3), st.text(max_size=3)), max_size=20)


@SETTINGS
@given(PIECES, st.integers(1, 3))
def test_the_texts_of_each_choice_are_joined_in_order_however_they_are_mixed_and_packed(
    pieces: list[tuple[int, str, str]], pack: int
) -> None:
    """Law: an assembled choice holds its pieces in order, whatever came between them and however many stood in one event."""
    entries = [{"index": index, "delta": {"content": content, "reasoning_content": thought}} for index, content, thought in pieces]
    entries += [{"index": index, "delta": {"content": "."}, "finish_reason": "stop"} for index in range(4)]
    assembler = Assembler(CHAT, n=4)
    for start in range(0, len(entries), pack):
        assembler.feed(b"data: " + json.dumps({"id": "a", "choices": entries[start : start + pack]}).encode() + b"\n\n")
    assembler.feed(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\ndata: [DONE]\n\n'[:-14])
    messages = [choice["message"] for choice in assembler.answer()["choices"]]
    for wanted, message in enumerate(messages):
        assert message["content"] == "".join(content for index, content, _ in pieces if index == wanted) + "."
        assert (message["reasoning_content"] or "") == "".join(thought for index, _, thought in pieces if index == wanted)
