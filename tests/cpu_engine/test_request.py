"""Bodies of requests: what is accepted means what it says, everything else is a 400 that names the field."""

from __future__ import annotations

import atexit
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_engine import unsupported
from cpu_engine.checkpoint import load
from cpu_engine.json_fields import Fields
from cpu_engine.prompts import PromptReader
from cpu_engine.refusals import BadRequest, RequestKind
from cpu_engine.request import GenerationRequest, RequestReader
from tests import DEMO
from tests.cpu_engine.checkpoints import VOCABULARY

_, READER = load(DEMO, served_name=None, max_model_len=200, threads=1, memory=None)
atexit.register(READER.close)
_, NAMED = load(DEMO, served_name="my-model", max_model_len=200, threads=1, memory=None)
atexit.register(NAMED.close)


HELLO = [{"role": "user", "content": "hi"}]


def read(kind: RequestKind = "chat", reader: RequestReader = READER, **fields: Any) -> GenerationRequest:
    standard = {"messages": HELLO} if kind == "chat" else {"prompt": "hi"}
    body = {key: value for key, value in {**standard, **fields}.items() if value != "<left out>"}
    return reader.read(kind, json.dumps(body).encode())


def rejected(kind: RequestKind = "chat", reader: RequestReader = READER, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(kind, reader, **fields)
    return caught.value


WRONG: list[tuple[RequestKind, dict[str, Any], str]] = [
    ("chat", {"messages": "<left out>"}, "messages"),
    ("chat", {"messages": None}, "messages"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": "hi"}, "messages"),
    ("chat", {"messages": ["hi"]}, "messages"),
    ("chat", {"messages": [{"content": "hi"}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": 7}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": ["hi"]}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": "long " * 300}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": ""}], "disable_chat_template": True}, "messages"),
    ("chat", {"prompt_token_ids": []}, "prompt_token_ids"),
    ("chat", {"prompt_token_ids": [-1]}, "prompt_token_ids"),
    ("chat", {"prompt_token_ids": [VOCABULARY]}, "prompt_token_ids"),
    ("chat", {"prompt_token_ids": [True]}, "prompt_token_ids"),
    ("chat", {"chat_template": "{{"}, "chat_template"),
    ("chat", {"chat_template": 3}, "chat_template"),
    ("chat", {"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    ("chat", {"tools": "x"}, "tools"),
    ("chat", {"model": 7}, "model"),
    ("chat", {"temperature": "hot"}, "temperature"),
    ("chat", {"temperature": True}, "temperature"),
    ("chat", {"temperature": -1}, "temperature"),
    ("chat", {"temperature": 1e300}, "temperature"),
    ("chat", {"temperature": 9}, "temperature"),
    ("chat", {"seed": 0.5}, "seed"),
    ("chat", {"seed": True}, "seed"),
    ("chat", {"stop": ["x" * 4097]}, "stop"),
    ("chat", {"logit_bias": [1]}, "logit_bias"),
    ("chat", {"logit_bias": {"abc": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"-1": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"\u0661": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {str(VOCABULARY): 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"5": 101}}, "logit_bias"),
    ("chat", {"logit_bias": {"5": "1"}}, "logit_bias"),
    ("chat", {"enable_thinking": "no"}, "enable_thinking"),
    ("completion", {"max_tokens": 0}, "max_tokens"),
    ("chat", {"temperature": 10**400}, "temperature"),
    ("chat", {"top_p": 1.1}, "top_p"),
    ("chat", {"top_k": -2}, "top_k"),
    ("chat", {"top_k": 1.5}, "top_k"),
    ("chat", {"min_p": 2}, "min_p"),
    ("chat", {"repetition_penalty": 0}, "repetition_penalty"),
    ("chat", {"repetition_penalty": 1e-38}, "repetition_penalty"),
    ("chat", {"presence_penalty": 2.5}, "presence_penalty"),
    ("chat", {"frequency_penalty": -2.5}, "frequency_penalty"),
    ("chat", {"n": 0}, "n"),
    ("chat", {"n": -1}, "n"),
    ("chat", {"n": 129}, "n"),
    ("chat", {"n": "2"}, "n"),
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("chat", {"max_completion_tokens": -5}, "max_completion_tokens"),
    ("chat", {"min_tokens": -1}, "min_tokens"),
    ("chat", {"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    ("chat", {"min_tokens": 199}, "messages"),
    ("chat", {"stop": [1]}, "stop"),
    ("chat", {"stop": ["a", "b", "c", "d", "e", "f"]}, "stop"),
    ("chat", {"stop_token_ids": [VOCABULARY]}, "stop_token_ids"),
    ("chat", {"stop_token_ids": 5}, "stop_token_ids"),
    ("chat", {"bad_words": "no"}, "bad_words"),
    ("chat", {"bad_words": ["no"] * 1025}, "bad_words"),
    ("chat", {"bad_words_token_ids": [-3]}, "bad_words_token_ids"),
    ("chat", {"logprobs": 2}, "logprobs"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"stream": "yes"}, "stream"),
    ("chat", {"stream_options": {}}, "stream_options"),
    ("chat", {"stream": True, "stream_options": []}, "stream_options"),
    ("chat", {"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
    ("chat", {"request_id": 7}, "request_id"),
    ("chat", {"request_id": "\ud800"}, "request_id"),
    ("chat", {"user": {}}, "user"),
    ("chat", {"user": "a\udfff"}, "user"),
    ("chat", {"bad_words": ["fine", "\ud800"]}, "bad_words"),
    ("chat", {"stop": "\ud800"}, "stop"),
    ("chat", {"temp_scaled_logprobs": True}, "temp_scaled_logprobs"),
    ("completion", {"prompt": "<left out>"}, "prompt"),
    ("completion", {"prompt": None}, "prompt"),
    ("completion", {"prompt": ""}, "prompt"),
    ("completion", {"prompt": []}, "prompt"),
    ("completion", {"prompt": {}}, "prompt"),
    ("completion", {"prompt": [None]}, "prompt"),
    ("completion", {"prompt": ["ok", ""]}, "prompt"),
    ("completion", {"prompt": [[1, 2], []]}, "prompt"),
    ("completion", {"prompt": [1, "2"]}, "prompt"),
    ("completion", {"prompt": [1, VOCABULARY]}, "prompt"),
    ("completion", {"prompt": "\ud800"}, "prompt"),
    ("completion", {"prompt": [5] * 200}, "prompt"),
    ("completion", {"prompt": ["hi"] * 129}, "prompt"),
    ("completion", {"prompt": ["hi"] * 100, "n": 3}, "n"),
    ("completion", {"prompt_token_ids": "5"}, "prompt_token_ids"),
    ("completion", {"logprobs": 21}, "logprobs"),
    ("completion", {"echo": "yes"}, "echo"),
]


@pytest.mark.parametrize(("kind", "fields", "param"), WRONG, ids=[f"{kind}-{str(fields)[:50]}" for kind, fields, _ in WRONG])
def test_what_does_not_fit_is_a_400_naming_the_field(kind: RequestKind, fields: dict[str, Any], param: str) -> None:
    error = rejected(kind, **fields)
    assert (error.status, error.param) == (400, param)
    assert param in error.message or error.message == "Field required" or error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing_required_parameter"),
        (b'{"messages": [', "invalid_json"),
        (b"[1, 2]", "invalid_value"),
        (b'{"temperature": NaN}', "invalid_json"),
        (b"\xff", "invalid_json"),
        (b'{"a":' * 100000, "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json"),
    ],
    ids=["empty", "cut", "list", "nan", "not-utf-8", "deep", "huge-number"],
)
def test_a_body_that_is_no_json_object_is_a_400(body: bytes, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        READER.read("chat", body)
    assert (caught.value.param, caught.value.code) == ("body", code)


HALVES = st.text(st.characters(categories=["Cs"]), min_size=1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | HALVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMES = sorted({name for _, fields, _ in WRONG for name in fields} | {"best_of", "suffix", "metadata", "logit_bias", "return_token_ids"})


@given(st.sampled_from(["chat", "completion"]), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
@settings(max_examples=400, deadline=None)
def test_any_json_is_a_request_or_a_400(kind: RequestKind, fields: dict[str, Any]) -> None:
    """Rule: no body makes the reader raise anything but BadRequest, and what it accepts keeps its promises."""
    try:
        request = read(kind, **fields)
    except BadRequest as error:
        assert error.status == 400
        return
    request.request_id.encode()
    for spec in request.specs:
        assert 0 <= spec.min_tokens <= spec.max_tokens
        assert len(spec.prompt) + spec.max_tokens <= 200
        assert all(0 <= token < VOCABULARY for token in spec.prompt)


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_request_or_a_400(body: bytes) -> None:
    """Rule: no body makes the reader raise anything but BadRequest."""
    with pytest.raises(BadRequest):
        READER.read("chat", body)


def test_a_penalty_that_would_leave_the_range_of_the_logits_is_told_its_bound() -> None:
    assert rejected(repetition_penalty=1e-7).message == "repetition_penalty: got 1e-07, expected a number from 1e-06"
    assert read(repetition_penalty=1e-6).specs[0].sampling.repetition_penalty == 1e-6


def test_a_template_that_a_request_brings_is_refused_for_nothing_bounds_its_work() -> None:
    error = rejected(chat_template="{% for i in range(2000) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x")
    assert (error.status, error.code, error.param) == (400, "unsupported_value", "chat_template")
    assert read(chat_template=None).prompts == read().prompts
    assert read("completion", chat_template="x").prompts == read("completion").prompts


def test_what_is_left_out_comes_from_generation_config() -> None:
    sampling = read().specs[0].sampling
    stored = json.loads((DEMO / "generation_config.json").read_text())
    assert (sampling.temperature, sampling.top_p) == (stored.get("temperature", 1.0), stored.get("top_p", 0.7))
    assert (sampling.top_k, sampling.min_p, sampling.seed, sampling.top_logprobs) == (0, 0.0, None, None)


def test_temperature_zero_is_greedy() -> None:
    assert read(temperature=0).specs[0].sampling.greedy
    assert read(top_k=1).specs[0].sampling.greedy
    assert not read(temperature=0.5).specs[0].sampling.greedy


def test_max_tokens_is_clamped_to_the_room_that_is_left() -> None:
    free = read().specs[0]
    assert free.max_tokens == 200 - len(free.prompt)
    assert read(max_tokens=999999).specs[0].max_tokens == free.max_tokens
    assert read(max_tokens=7).specs[0].max_tokens == 7
    assert read(max_tokens=7, max_completion_tokens=5).specs[0].max_tokens == 5
    assert read(max_tokens=5.0).specs[0].max_tokens == 5


def test_a_prompt_that_fills_the_context_is_told_its_length() -> None:
    error = rejected("completion", prompt=[5] * 200)
    assert error.code == "context_length_exceeded"
    assert "maximum context length is 200 tokens; the prompt has 200" in error.message
    assert len(read("completion", prompt=[5] * 199).specs) == 1


def test_choices_are_numbered_prompt_by_prompt_and_seeded_apart() -> None:
    request = read("completion", prompt=["one", "two"], n=2, seed=10)
    assert [spec.prompt for spec in request.specs] == [READER.tokenizer.encode(text) for text in ("one", "one", "two", "two")]
    assert [spec.sampling.seed for spec in request.specs] == [10, 11, 10, 11]


def test_prompts_come_as_text_ids_or_lists_of_either() -> None:
    assert [prompt.tokens for prompt in read("completion", prompt=[5, 6]).prompts] == [[5, 6]]
    assert [prompt.tokens for prompt in read("completion", prompt=[[5], [6, 7]]).prompts] == [[5], [6, 7]]
    assert [prompt.tokens for prompt in read("completion", prompt="<left out>", prompt_token_ids=[8]).prompts] == [[8]]
    assert read("chat", messages=[], prompt_token_ids=[8, 9]).prompts[0].tokens == [8, 9]


def test_text_parts_are_joined_and_the_template_may_be_left_out() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert read(messages=messages, disable_chat_template=True).prompts[0].text == "a\nb\n"
    assert "User: a\nb\n" in read(messages=messages[:1]).prompts[0].text


def test_bad_words_are_banned_with_and_without_a_space_before_them() -> None:
    banned = read(bad_words=["FastDeploy", ""], bad_words_token_ids=[7]).specs[0].sampling.banned
    assert banned == [READER.tokenizer.encode("FastDeploy"), READER.tokenizer.encode(" FastDeploy"), [7]]


def test_stop_is_a_string_or_a_list_and_empty_ones_count_for_nothing() -> None:
    assert read(stop="x").specs[0].stop_strings == ["x"]
    assert read(stop=["", "x"]).specs[0].stop_strings == ["x"]
    assert read(stop=None, stop_token_ids=[9]).specs[0].stop_tokens == READER.eos_token_ids | {9}


@pytest.mark.parametrize("name", ["gpt-4", "", None])
def test_another_model_than_the_served_one_is_a_404(name: Any) -> None:
    error = rejected(reader=NAMED, model=name)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize("name", ["my-model", "default", "<left out>"])
def test_the_served_name_default_and_no_name_are_accepted(name: str) -> None:
    assert read(reader=NAMED, model=name).specs


def test_without_a_served_name_any_model_is_accepted() -> None:
    assert read(model="anything").specs
    assert read(model=None).specs


def test_ids_carry_their_prefix_and_the_user() -> None:
    assert read(request_id="a_b").request_id == "chatcmpl-a_b"
    assert read(request_id="chatcmpl-x").request_id == "chatcmpl-x"
    assert read("completion", user="me").request_id.startswith("cmpl-me-")
    assert read().request_id != read().request_id


def test_usage_options_follow_fastdeploy() -> None:
    def options(**fields: Any) -> tuple[bool, bool]:
        request = read(stream=True, **fields)
        return request.final_usage, request.continuous_usage

    assert options() == (False, False)
    assert options(stream_options={}) == (True, False)
    assert options(stream_options={"include_usage": None}) == (False, False)
    assert options(stream_options={"include_usage": False, "continuous_usage_stats": True}) == (False, True)
    assert options(stream_options={"continuous_usage_stats": True}) == (True, True)


def test_fields_that_ask_for_nothing_else_are_ignored() -> None:
    idle: dict[str, Any] = {name: values[0] for name, values in unsupported._EVERYWHERE.items() if values}
    assert read(tool_choice="auto", metadata={"min_tokens": -1}, user=None, service_tier="auto", **idle).specs
    assert read("completion", suffix="", tools=[], **idle).specs
    assert read(response_format={"type": "text"}, guided_json=None, suffix={}, functions=[], function_call="none").specs


NOT_DONE: list[tuple[RequestKind, str, object]] = [
    ("chat", "structural_tag", "{}"),
    ("chat", "structured_outputs", {"json": {}}),
    ("chat", "logits_processors_args", {"logit_bias": {"5": 1}}),
    ("chat", "prompt_logprobs", 0),
    ("completion", "prompt_logprobs", 1),
    ("chat", "best_of", 2),
    ("completion", "best_of", 2),
    ("chat", "ignore_eos", True),
    ("completion", "ignore_eos", True),
    ("chat", "use_beam_search", True),
    ("chat", "length_penalty", 0),
    ("chat", "allowed_token_ids", []),
    ("completion", "truncate_prompt_tokens", 0),
    ("chat", "audio", {}),
    ("chat", "modalities", ["text", "audio"]),
    ("chat", "temp_scaled_logprobs", True),
    ("chat", "include_draft_logprobs", True),
    ("chat", "chat_template", ""),
    ("chat", "add_generation_prompt", False),
    ("chat", "continue_final_message", True),
    ("chat", "documents", [{"text": "x"}]),
    ("chat", "functions", [{"name": "f"}]),
    ("chat", "function_call", {"name": "f"}),
    ("chat", "completion_token_ids", [5]),
    ("chat", "reasoning_max_tokens", 0),
    ("chat", "echo", True),
    ("chat", "suffix", "x"),
    ("completion", "suffix", "x"),
    ("chat", "response_format", {"type": "structural_tag"}),
]


@pytest.mark.parametrize(("kind", "name", "value"), NOT_DONE)
def test_what_is_asked_and_not_done_is_a_400_unsupported_value_that_names_the_field(kind: RequestKind, name: str, value: object) -> None:
    fields: dict[str, Any] = {name: value}
    error = rejected(kind, **fields)
    assert (error.status, error.code, error.param) == (400, "unsupported_value", name)
    assert error.message.startswith(f"{name}: ")


def test_a_seed_of_minus_1_is_none_and_one_too_large_is_folded() -> None:
    assert read(seed=-1).specs[0].sampling.seed is None
    most = 922337203685477580
    for seed, taken in ((0, 0), (most, most), (most + 1, 0), (2**64, 2**64 % (most + 1)), (-2, most - 1), (7.0, 7)):
        assert read(seed=seed).specs[0].sampling.seed == taken


def test_logprobs_of_a_text_completion_may_be_a_switch() -> None:
    for switch, count in ((True, 1), (False, None), (0, 0), (3, 3), (None, None)):
        assert read("completion", logprobs=switch).specs[0].sampling.top_logprobs == count


@pytest.mark.parametrize("stop", ["<|endoftext|>", "!@#$%^&*()", "one two three four five six seven eight nine ten", "x" * 4096])
def test_a_stop_string_is_not_bounded_by_the_size_of_the_vocabulary(stop: str) -> None:
    assert read(stop=[stop]).specs[0].stop_strings == [stop]


def test_logit_bias_is_read_by_token() -> None:
    assert read(logit_bias={"5": 1, "07": -100.0}).specs[0].sampling.logit_bias == {5: 1.0, 7: -100.0}
    assert read(logit_bias={}).specs[0].sampling.logit_bias == {}


def test_only_a_prompt_that_is_echoed_may_be_all_of_the_answer() -> None:
    spec = read("completion", prompt=[5] * 200, echo=True, max_tokens=0, logprobs=1).specs[0]
    assert (spec.max_tokens, spec.scores_prompt) == (0, True)
    assert not read("completion", echo=True).specs[0].scores_prompt
    assert not read("completion", logprobs=1).specs[0].scores_prompt


@pytest.mark.parametrize("said", [{}, {"content": None}, {"content": []}, {"content": ""}])
@pytest.mark.parametrize("role", ["assistant", "tool", "user"])
def test_content_that_is_null_or_missing_reads_as_the_empty_text(role: str, said: dict[str, Any]) -> None:
    turns = [*HELLO, {"role": role, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}], **said}, *HELLO]
    empty = [*HELLO, {"role": role, "content": ""}, *HELLO]
    assert read(messages=turns).prompts == read(messages=empty).prompts
    assert read(messages=turns, disable_chat_template=True).prompts == read(messages=empty, disable_chat_template=True).prompts


def test_tools_are_not_told_to_a_model_that_must_not_call_them() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert WITH_TOOLS.chat(Fields({"messages": HELLO, "tools": tools}))[0].text == "1hi"
    assert WITH_TOOLS.chat(Fields({"messages": HELLO, "tools": tools, "tool_choice": "none"}))[0].text == "0hi"
    assert WITH_TOOLS.chat(Fields({"messages": HELLO, "enable_thinking": False}))[0].text == "0hiFalse"


class _Counting:
    """Shows what a template is given, in its place."""

    def close(self) -> None:
        """It holds nothing."""

    def render(self, messages: Any, *, tools: Any = None, arguments: Any = None) -> str:
        thinks = (arguments or {}).get("enable_thinking", "")
        return f"{len(tools or [])}{messages[-1]['content']}{thinks}"


WITH_TOOLS = PromptReader(tokenizer=READER.tokenizer, template=_Counting(), vocab_size=VOCABULARY)
