from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidJob, to_openai
from handler.fastdeploy.checks import SAMPLING, check
from handler.fastdeploy.rules import Rules
from handler.job import CHAT, COMPLETIONS
from tests.handler.fastdeploy.recorded import EXCHANGES, Exchange
from tests.strategies import JSON_VALUES, SETTINGS

RULES = Rules(
    release="2.4",
    served_name="my-model",
    aliases=frozenset({"baidu/ERNIE-4.5-0.3B-Paddle"}),
    vocab_size=1000,
    max_model_len=64,
    vision=False,
)
STRICT = Rules(release="2.4", served_name="my-model", strict=True, vision=False)
HI = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HI, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Hi", **fields}


def refused(body: dict[str, Any], path: str = CHAT, rules: Rules = RULES) -> InvalidJob:
    with pytest.raises(InvalidJob) as raised:
        check(body, path, rules)
    return raised.value


HOPELESS: list[tuple[str, dict[str, Any]]] = [
    ("min_tokens", {"min_tokens": -1}),
    ("min_tokens", {"min_tokens": 50, "max_tokens": 5}),
    ("min_tokens", {"min_tokens": 50, "max_completion_tokens": 5}),
    ("min_tokens", {"min_tokens": "-1"}),
    ("top_k", {"top_k": -2}),
    ("top_k", {"top_k": 1.5}),
    ("min_p", {"min_p": -0.1}),
    ("min_p", {"min_p": 1.1}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("repetition_penalty", {"repetition_penalty": -1.0}),
    ("temperature", {"temperature": -1}),
    ("top_p", {"top_p": 1.5}),
    ("presence_penalty", {"presence_penalty": 2.5}),
    ("frequency_penalty", {"frequency_penalty": -3}),
    ("seed", {"seed": -1}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_completion_tokens", {"max_completion_tokens": -5}),
    ("reasoning_max_tokens", {"reasoning_max_tokens": -1}),
    ("max_streaming_response_tokens", {"max_streaming_response_tokens": "a"}),
    ("n", {"n": 0}),
    ("n", {"n": -1}),
    ("n", {"n": True}),
    ("n", {"n": 100_000}),
    ("prompt_token_ids", {"prompt_token_ids": [-1, 2]}),
    ("prompt_token_ids", {"prompt_token_ids": [1000]}),
    ("prompt_token_ids", {"prompt_token_ids": ["999999"]}),
    ("prompt_token_ids", {"prompt_token_ids": []}),
    ("bad_words_token_ids", {"bad_words_token_ids": [99999999]}),
    ("bad_words_token_ids", {"bad_words_token_ids": [-7]}),
    ("stop_token_ids", {"stop_token_ids": [1000]}),
    ("bad_words", {"bad_words": "no"}),
    ("logits_processors_args", {"logits_processors_args": {"logit_bias": {"99999": 1.0}}}),
    ("stop", {"stop": ["a", "b", "c", "d", "e", "f"]}),
    ("stop", {"stop": [""]}),
    ("stop", {"stop": [1]}),
    ("disaggregate_info", {"disaggregate_info": {"role": "decode"}}),
    ("response_format", {"response_format": {"type": "foo"}}),
    ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
    ("guided_regex", {"guided_json": {}, "guided_regex": "a"}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
]


@pytest.mark.parametrize(("param", "fields"), HOPELESS, ids=lambda value: json.dumps(value) if isinstance(value, dict) else value)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_fastdeploy_cannot_answer_is_a_400_that_names_the_field(path: str, param: str, fields: dict[str, Any]) -> None:
    error = refused((chat if path == CHAT else text)(**fields), path)
    assert (error.status, error.param, error.type) == (400, param, "invalid_request_error")
    assert str(error).startswith(param)


@pytest.mark.parametrize(("param", "fields"), [case for case in HOPELESS if case[0] in SAMPLING or case[0].startswith("bad_words")])
@pytest.mark.parametrize(("path", "notes"), [(CHAT, "metadata"), (COMPLETIONS, "suffix")])
def test_it_is_refused_as_well_where_it_hides_in_what_fastdeploy_merges(path: str, notes: str, param: str, fields: dict[str, Any]) -> None:
    hidden = {name: value for name, value in fields.items() if name == param}
    beside = {name: value for name, value in fields.items() if name != param}
    error = refused((chat if path == CHAT else text)(**beside, **{notes: hidden}), path)
    assert error.param in {param, f"{notes}.{param}"}


@pytest.mark.parametrize(
    "name", ["arrival_time", "raw_request", "request_id", "prompt_token_ids", "messages", "n", "eos_token_ids", "guided_json"]
)
def test_fields_of_the_engine_are_refused_in_metadata_and_in_template_arguments(name: str) -> None:
    assert refused(chat(metadata={name: "x"})).param == f"metadata.{name}"
    assert refused(text(suffix={name: "x"}), COMPLETIONS).param == f"suffix.{name}"
    assert refused(chat(chat_template_kwargs={name: "x"})).param == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize("name", list(SAMPLING))
def test_a_sampling_parameter_does_not_reach_the_engine_by_way_of_template_arguments(name: str) -> None:
    assert refused(chat(chat_template_kwargs={name: -1})).param == f"chat_template_kwargs.{name}"


def test_a_parameter_given_in_both_places_is_refused_because_releases_differ_on_which_one_wins() -> None:
    assert refused(chat(top_k=1, metadata={"top_k": 2})).param == "metadata.top_k"


def test_notes_of_the_caller_stay_here_and_switches_of_the_template_pass() -> None:
    sent = check(chat(metadata={"customer": "42", "enable_thinking": False}, chat_template_kwargs={"thinking": 1}), CHAT, RULES).body
    assert sent["metadata"] == {"enable_thinking": False}
    assert sent["chat_template_kwargs"] == {"thinking": 1}
    assert refused(chat(metadata={"enable_thinking": "no"})).param == "metadata.enable_thinking"
    assert refused(chat(metadata="x")).param == "metadata"
    assert refused(chat(chat_template_kwargs=[1])).param == "chat_template_kwargs"
    assert refused(text(suffix="and so on"), COMPLETIONS).param == "suffix"


@pytest.mark.parametrize(
    ("param", "messages"),
    [
        ("messages", []),
        ("messages", "hi"),
        ("messages", None),
        ("messages[0]", ["hi"]),
        ("messages[0]", [1]),
        ("messages[0]", [{"content": "hi"}]),
        ("messages[1]", [*HI, {"role": ""}]),
        ("messages[0].content", [{"role": "user"}]),
        ("messages[0].content", [{"role": "user", "content": 5}]),
        ("messages[0].content[0]", [{"role": "user", "content": ["hi"]}]),
        ("messages[0].content[1]", [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}]),
    ],
)
def test_malformed_messages_are_a_400_that_names_the_place(param: str, messages: object) -> None:
    assert refused({"messages": messages}).param == param


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [-1], [1000], [[1], [5000]], ["a", 1], [1, "a"], {"a": 1}, [True]])
def test_a_prompt_that_is_empty_mixed_or_out_of_the_vocabulary_is_refused(prompt: object) -> None:
    assert refused({"prompt": prompt}, COMPLETIONS).param == "prompt"


@pytest.mark.parametrize(("path", "param"), [(CHAT, "messages"), (COMPLETIONS, "prompt")])
def test_what_must_be_given_is_asked_for(path: str, param: str) -> None:
    error = refused({"max_tokens": 3}, path)
    assert (error.param, error.code) == (param, "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [{"prompt": "a"}, {"prompt": ["a", "b"]}, {"prompt": [0, 999]}, {"prompt": [[1], [2, 3]]}, {"prompt": "", "prompt_token_ids": [5]}],
)
def test_each_form_of_prompt_passes_unchanged(body: dict[str, Any]) -> None:
    assert check(body, COMPLETIONS, RULES).body == body


def test_a_token_prompt_longer_than_the_context_is_told_so() -> None:
    assert refused({"prompt": [1] * 64}, COMPLETIONS).code == "context_length_exceeded"
    assert refused(chat(prompt_token_ids=[1] * 64)).code == "context_length_exceeded"


@pytest.mark.parametrize("asked", ["my-model", "default", "baidu/ERNIE-4.5-0.3B-Paddle", "ERNIE-4.5-0.3B-Paddle"])
def test_every_name_of_the_model_becomes_the_one_that_the_engine_takes(asked: str) -> None:
    for path, body in ((CHAT, chat(model=asked)), (COMPLETIONS, text(model=asked)), ("/v1/embeddings", {"input": "a", "model": asked})):
        assert check(body, path, RULES).body["model"] == "my-model"


def test_a_model_that_is_null_counts_as_not_given() -> None:
    assert "model" not in check(chat(model=None), CHAT, RULES).body


@pytest.mark.parametrize("asked", ["gpt-4", "", 5, ["my-model"], "MY-MODEL"])
def test_any_other_model_is_openais_404(asked: object) -> None:
    status, answer = to_openai(refused(chat(model=asked)))
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")


def test_a_request_id_of_the_caller_never_passes() -> None:
    assert "request_id" not in check(chat(request_id="same"), CHAT, RULES).body


@pytest.mark.parametrize(("release", "top_k"), [("2.3", 1), ("2.4", 1), ("2.5", 1), ("2.6", 40)])
def test_temperature_0_is_made_greedy_where_the_release_makes_it_temperature_1(release: str, top_k: int) -> None:
    rules = Rules(release=release, served_name="m")
    assert check(chat(temperature=0, top_k=40), CHAT, rules).body["top_k"] == top_k
    assert check(text(temperature=0, top_k=40), COMPLETIONS, rules).body["top_k"] == top_k
    assert check(chat(temperature=0, metadata={"top_k": 40}), CHAT, rules).body["metadata"]["top_k"] == top_k
    assert check(chat(temperature=0.7), CHAT, rules).body == chat(temperature=0.7)


def test_max_tokens_is_cut_to_the_limit_wherever_it_stands_and_set_where_it_is_not() -> None:
    rules = Rules(release="2.3", served_name="m", max_tokens_limit=10)
    assert check(chat(), CHAT, rules).body["max_tokens"] == 10
    assert check(chat(max_completion_tokens=99), CHAT, rules).body == chat(max_completion_tokens=10)
    cut = check(text(max_tokens=99), COMPLETIONS, rules)
    assert (cut.body["max_tokens"], len(cut.warnings)) == (10, 1)
    assert check(chat(metadata={"max_tokens": 99}), CHAT, rules).body["metadata"] == {"max_tokens": 10}
    assert check(chat(max_tokens=5), CHAT, rules).body == chat(max_tokens=5)
    assert refused(chat(min_tokens=11), rules=rules).param == "min_tokens"


def test_a_text_completion_takes_max_completion_tokens_as_max_tokens() -> None:
    assert check(text(max_completion_tokens=3), COMPLETIONS, RULES).body == text(max_tokens=3)


TOOLS = [{"type": "function", "function": {"name": "f"}}]
DEAF = [
    ("logit_bias", CHAT, {"logit_bias": {"5": 1}}),
    ("ignore_eos", CHAT, {"ignore_eos": True}),
    ("response_format", CHAT, {"response_format": {"type": "json_object"}}),
    ("guided_choice", COMPLETIONS, {"guided_choice": ["a"]}),
    ("tool_choice", CHAT, {"tools": TOOLS, "tool_choice": "auto"}),
    ("tool_choice", CHAT, {"tools": TOOLS, "tool_choice": "required"}),
    ("parallel_tool_calls", CHAT, {"tools": TOOLS, "parallel_tool_calls": False}),
    ("enable_thinking", CHAT, {"enable_thinking": True}),
    ("reasoning_effort", CHAT, {"reasoning_effort": "low"}),
    ("best_of", COMPLETIONS, {"best_of": 3}),
    ("tools", COMPLETIONS, {"tools": TOOLS}),
    ("messages", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}),
]


@pytest.mark.parametrize(("param", "path", "fields"), DEAF)
def test_what_fastdeploy_ignores_is_refused_when_strict_and_reported_when_not(param: str, path: str, fields: dict[str, Any]) -> None:
    body = (chat if path == CHAT else text)() | fields
    error = refused(body, path, STRICT)
    assert (error.param, error.code) == (param, "unsupported_parameter")
    checked = check(body, path, RULES)
    assert checked.body == body
    assert [warning.split()[0] for warning in checked.warnings] == [param]


@pytest.mark.parametrize(
    "fields",
    [
        {
            "never_heard_of": 1,
            "service_tier": "auto",
            "user": "u_1",
            "seed": 0,
            "n": 3,
            "stop": "",
            "top_k": 0,
            "parallel_tool_calls": True,
        },
        {"response_format": {"type": "text"}, "tool_choice": "none", "logit_bias": {}, "ignore_eos": False, "max_tokens": None},
        {"tools": TOOLS},
    ],
)
def test_strict_refuses_nothing_that_is_merely_unknown_or_without_consequence(fields: dict[str, Any]) -> None:
    assert check(chat(**fields), CHAT, STRICT).body == chat(**fields)


def test_with_a_parser_and_a_backend_the_same_options_are_heard() -> None:
    rules = Rules(release="2.5", served_name="m", tool_parser=True, guided_decoding=True, vision=True, strict=True)
    body = chat(tools=TOOLS, tool_choice="auto", response_format={"type": "json_object"}, reasoning_effort="low")
    assert check(body, CHAT, rules).body == body
    assert refused(chat(reasoning_effort="huge"), rules=rules).param == "reasoning_effort"


@pytest.mark.parametrize("tools", [[{"foo": 1}], {"foo": 1}, TOOLS[0], [{"type": "function", "function": {}}], "x"])
def test_malformed_tools_are_refused(tools: object) -> None:
    assert refused(chat(tools=tools)).param == "tools"


def test_logprobs_are_refused_where_the_deployment_gives_none_and_where_too_many_are_asked_for() -> None:
    rules = Rules(release="2.3", served_name="m", logprobs=False)
    assert refused(chat(logprobs=True), rules=rules).code == "unsupported_parameter"
    assert refused(text(logprobs=2), COMPLETIONS, rules).code == "unsupported_parameter"
    assert refused(chat(logprobs=True, top_logprobs=21)).param == "top_logprobs"
    assert refused(text(logprobs=-1), COMPLETIONS).param == "logprobs"
    assert refused(chat(top_logprobs=2)).param == "top_logprobs"


def test_embeddings_of_ids_out_of_the_vocabulary_are_refused_and_texts_pass() -> None:
    assert refused({"input": [[1, 5000]]}, "/v1/embeddings").param == "input"
    assert check({"input": ["a", "b"]}, "/v1/embeddings", RULES).body == {"input": ["a", "b"]}
    assert check({"n": -1}, "/v1/other", RULES).body == {"n": -1}


# FastDeploy names these itself, in an error that becomes a 400 (or, for keys, a 401); the worker cannot count the tokens of a text.
TOLD = (
    "stop_too_long",
    "err_too_long",
    "err_too_long_stream",
    "err_cmpl_too_long",
    "b_prompt_logprobs",
    "none_chat",
    "bad_chat",
    "basic_chat",
)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_of_the_recorded_requests_those_are_refused_that_failed_by_their_own_fault(exchange: Exchange) -> None:
    rules = Rules(
        release=exchange.release,
        served_name="my-model",
        aliases=frozenset({"whatever"}),
        vocab_size=2048,
        max_model_len=4096,
        logprobs=not exchange.case.startswith("base"),
    )
    empty = b'"choices":[],"usage":{' in exchange.body and not exchange.is_stream
    failed = exchange.status != 200 or empty or exchange.case.endswith("_oov")
    failed_for_the_parser = b"TextEncodeInput" in exchange.body
    if failed and not failed_for_the_parser and not exchange.case.endswith((*TOLD, "b_model_null")):
        error = refused(exchange.request, exchange.path, rules)
        assert error.param
        assert error.status in {400, 404}
    else:
        sent = check(exchange.request, exchange.path, rules).body
        ours = {"model", "request_id"}
        assert {k: v for k, v in sent.items() if k not in ours} == {k: v for k, v in exchange.request.items() if k not in ours}


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(-3, 3),
    st.text(max_size=3),
    st.lists(st.integers(-2, 1002), max_size=3),
)
NAMES = st.sampled_from(
    [
        *SAMPLING,
        "n",
        "stop",
        "model",
        "request_id",
        "bad_words_token_ids",
        "prompt_token_ids",
        "logprobs",
        "tools",
        "tool_choice",
        "response_format",
    ]
)
PLACES = st.dictionaries(NAMES, VALUES, max_size=5)
BODIES = st.builds(
    lambda body, notes, kwargs, path: (
        (chat if path == CHAT else text)(**body, **{"metadata" if path == CHAT else "suffix": notes, "chat_template_kwargs": kwargs}),
        path,
    ),
    PLACES,
    st.none() | PLACES | JSON_VALUES,
    st.none() | PLACES,
    st.sampled_from([CHAT, COMPLETIONS]),
)


@SETTINGS
@given(BODIES, st.sampled_from([RULES, STRICT, Rules(release="2.3", served_name="m", max_tokens_limit=2)]))
def test_what_passed_once_passes_again_unchanged_and_the_callers_body_is_left_alone(
    asked: tuple[dict[str, Any], str], rules: Rules
) -> None:
    """Law: check(check(body)) = check(body)."""
    body, path = asked
    before = copy.deepcopy(body)
    try:
        once = check(body, path, rules).body
    except InvalidJob as error:
        assert error.param
        return
    finally:
        assert body == before
    assert check(once, path, rules).body == once


@SETTINGS
@given(BODIES)
def test_a_body_that_passes_is_none_of_the_known_hopeless(asked: tuple[dict[str, Any], str]) -> None:
    """Law: in what is sent, wherever FastDeploy would look, every parameter is one that its own check lets through."""
    body, path = asked
    try:
        sent = check(body, path, RULES).body
    except InvalidJob:
        return
    seen = dict(sent.get("chat_template_kwargs") or {}) | dict(sent.get("metadata" if path == CHAT else "suffix") or {}) | sent
    seen = {name: value for name, value in seen.items() if value is not None}
    assert seen.get("min_tokens", 0) >= 0
    assert seen.get("min_tokens", 0) <= min(seen.get("max_tokens", 2**62), seen.get("max_completion_tokens", 2**62))
    assert seen.get("top_k", 0) >= -1
    assert 0 <= seen.get("min_p", 0) <= 1
    assert seen.get("repetition_penalty", 1) > 0
    assert seen.get("n", 1) >= 1
    assert "request_id" not in seen
    for name in ("bad_words_token_ids", "prompt_token_ids"):
        assert all(0 <= number < 1000 for number in seen.get(name, []))
