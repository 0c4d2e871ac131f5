from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidJob, to_openai
from handler.fastdeploy.checks import SAMPLING, Checked, check
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.fastdeploy.table import RELEASES
from handler.job import CHAT, COMPLETIONS
from tests.handler.fastdeploy.recorded import EXCHANGES, Exchange
from tests.strategies import JSON_VALUES, SETTINGS

RULES = Rules(
    engine=CAPABILITIES["2.4"],
    served_name="my-model",
    aliases=frozenset({"baidu/ERNIE-4.5-0.3B-Paddle"}),
    vocab_size=1000,
    max_model_len=64,
    vision=False,
)
CPU = Rules(engine=CAPABILITIES["cpu"], served_name="my-model", guided_decoding=True)
STRICT = Rules(engine=CAPABILITIES["2.4"], served_name="my-model", strict=True, vision=False)
HI = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HI, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Hi", **fields}


def sent(body: dict[str, Any], path: str = CHAT, rules: Rules = RULES) -> dict[str, Any]:
    """What is sent of a request, without the name of the model, which always is."""
    found = check(body, path, rules).body
    assert found.pop("model") == rules.served_name
    return found


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
    ("seed", {"seed": 0.5}),
    ("seed", {"seed": "1"}),
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


def test_sampling_parameters_among_notes_are_sent_beside_the_others_and_the_callers_notes_stay_here() -> None:
    asked = chat(metadata={"customer": "42", "top_k": 0, "min_p": None, "bad_words": []}, chat_template_kwargs={"thinking": 1})
    assert sent(asked) == chat(top_k=0, bad_words=[], chat_template_kwargs={"thinking": 1})
    assert sent(text(suffix={"seed": 3, "a": 1}), COMPLETIONS) == text(seed=3)
    assert refused(chat(metadata={"enable_thinking": "no"})).param == "enable_thinking"
    assert refused(chat(metadata="x")).param == "metadata"
    assert refused(chat(chat_template_kwargs=[1])).param == "chat_template_kwargs"
    assert refused(text(suffix="and so on"), COMPLETIONS).param == "suffix"


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("place", ["beside", "metadata", "chat_template_kwargs"])
@pytest.mark.parametrize("rules", [RULES, STRICT, CPU], ids=lambda rules: rules.engine.name)
def test_enable_thinking_is_sent_as_an_argument_of_the_template_false_like_true(rules: Rules, place: str, thinks: bool) -> None:
    asked = {"enable_thinking": thinks}
    body = chat(**asked) if place == "beside" else chat(**{place: asked})
    checked = check(body, CHAT, rules)
    assert checked.body["chat_template_kwargs"] == asked
    assert not {"enable_thinking", "metadata"} & checked.body.keys()
    assert not checked.warnings


def test_enable_thinking_that_says_two_things_is_refused_and_a_text_completion_has_none() -> None:
    assert refused(chat(enable_thinking=False, chat_template_kwargs={"enable_thinking": True})).param == "enable_thinking"
    assert sent(chat(enable_thinking=False, chat_template_kwargs={"enable_thinking": False, "a": 1})) == chat(
        chat_template_kwargs={"enable_thinking": False, "a": 1}
    )
    assert refused(text(enable_thinking=False), COMPLETIONS, STRICT).param == "enable_thinking"


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


@pytest.mark.parametrize(
    "prompt", ["", [], [""], [[]], [-1], [1000], [[1], [5000]], [[1], "a"], ["a", [1]], ["a", 1], [1, "a"], {"a": 1}, [True]]
)
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
    assert sent(body, COMPLETIONS) == body


def test_a_token_prompt_longer_than_the_context_is_told_so() -> None:
    assert refused({"prompt": [1] * 64}, COMPLETIONS).code == "context_length_exceeded"
    assert refused(chat(prompt_token_ids=[1] * 64)).code == "context_length_exceeded"


@pytest.mark.parametrize("asked", ["my-model", "default", "baidu/ERNIE-4.5-0.3B-Paddle", "ERNIE-4.5-0.3B-Paddle"])
def test_every_name_of_the_model_becomes_the_one_that_the_engine_takes(asked: str) -> None:
    for path, body in ((CHAT, chat(model=asked)), (COMPLETIONS, text(model=asked)), ("/v1/embeddings", {"input": "a", "model": asked})):
        assert check(body, path, RULES).body["model"] == "my-model"


@pytest.mark.parametrize("given", [{}, {"model": None}])
@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, chat()), (COMPLETIONS, text()), ("/v1/embeddings", {"input": "a"}), ("/v1/reward", chat())]
)
def test_where_no_model_is_named_the_served_one_is(path: str, body: dict[str, Any], given: dict[str, Any]) -> None:
    assert check(body | given, path, RULES).body == body | {"model": "my-model"}


@pytest.mark.parametrize("asked", ["gpt-4", "", 5, ["my-model"], "MY-MODEL"])
def test_any_other_model_is_openais_404(asked: object) -> None:
    status, answer = to_openai(refused(chat(model=asked)))
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")


def test_a_request_id_of_the_caller_never_passes() -> None:
    assert "request_id" not in check(chat(request_id="same"), CHAT, RULES).body


@pytest.mark.parametrize(("release", "top_k"), [("2.3", 1), ("2.4", 1), ("2.5", 1), ("2.6", 40), ("cpu", 40)])
def test_temperature_0_is_made_greedy_where_the_release_makes_it_temperature_1(release: str, top_k: int) -> None:
    rules = Rules(engine=CAPABILITIES[release], served_name="m")
    assert sent(chat(temperature=0, top_k=40), CHAT, rules)["top_k"] == top_k
    assert sent(text(temperature=0, top_k=40), COMPLETIONS, rules)["top_k"] == top_k
    assert sent(chat(temperature=0, metadata={"top_k": 40}), CHAT, rules)["top_k"] == top_k
    assert sent(chat(temperature=0.7), CHAT, rules) == chat(temperature=0.7)


@pytest.mark.parametrize("engine", ["2.3", "cpu"])
def test_max_tokens_is_cut_to_the_limit_wherever_it_stands_and_set_where_it_is_not(engine: str) -> None:
    rules = Rules(engine=CAPABILITIES[engine], served_name="m", max_tokens_limit=10)
    assert sent(chat(), CHAT, rules)["max_tokens"] == 10
    assert sent(chat(max_completion_tokens=99), CHAT, rules) == chat(max_completion_tokens=10)
    cut = check(text(max_tokens=99), COMPLETIONS, rules)
    assert (cut.body["max_tokens"], len(cut.warnings)) == (10, 1)
    assert sent(chat(metadata={"max_tokens": 99}), CHAT, rules) == chat(max_tokens=10)
    assert sent(chat(max_tokens=5), CHAT, rules) == chat(max_tokens=5)
    assert refused(chat(min_tokens=11), rules=rules).param == "min_tokens"


def test_a_text_completion_takes_max_completion_tokens_as_max_tokens() -> None:
    assert sent(text(max_completion_tokens=3), COMPLETIONS) == text(max_tokens=3)


TOOLS = [{"type": "function", "function": {"name": "f"}}]
DEAF = [
    ("logit_bias", CHAT, {"logit_bias": {"5": 1}}),
    ("ignore_eos", CHAT, {"ignore_eos": True}),
    ("response_format", CHAT, {"response_format": {"type": "json_object"}}),
    ("guided_choice", COMPLETIONS, {"guided_choice": ["a"]}),
    ("tool_choice", CHAT, {"tools": TOOLS, "tool_choice": "auto"}),
    ("tool_choice", CHAT, {"tools": TOOLS, "tool_choice": "required"}),
    ("tools", CHAT, {"tools": TOOLS}),
    ("enable_thinking", COMPLETIONS, {"enable_thinking": False}),
    ("chat_template_kwargs", COMPLETIONS, {"chat_template_kwargs": {"enable_thinking": False}}),
    ("structured_outputs", CHAT, {"structured_outputs": {"json": {}}}),
    ("include_reasoning", COMPLETIONS, {"include_reasoning": False}),
    ("add_generation_prompt", CHAT, {"add_generation_prompt": False}),
    ("continue_final_message", CHAT, {"continue_final_message": True}),
    ("allowed_token_ids", CHAT, {"allowed_token_ids": []}),
    ("truncate_prompt_tokens", COMPLETIONS, {"truncate_prompt_tokens": 0}),
    ("guided_json", CHAT, {"guided_json": {}}),
    ("guided_regex", COMPLETIONS, {"guided_regex": ""}),
    ("audio", CHAT, {"audio": {}}),
    ("functions", CHAT, {"functions": [{"name": "f"}]}),
    ("echo", CHAT, {"echo": True}),
    ("store", CHAT, {"store": True}),
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
    assert checked.body == body | {"model": "my-model"}
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
        {"tools": [], "functions": [], "modalities": ["text"], "store": False, "include_reasoning": True, "best_of": 1, "echo": False},
    ],
)
def test_strict_refuses_nothing_that_is_merely_unknown_or_without_consequence(fields: dict[str, Any]) -> None:
    assert sent(chat(**fields), CHAT, STRICT) == chat(**fields)


def test_with_a_parser_and_a_backend_the_same_options_are_heard() -> None:
    rules = Rules(engine=CAPABILITIES["2.5"], served_name="m", tool_parser=True, guided_decoding=True, vision=True, strict=True)
    body = chat(tools=TOOLS, tool_choice="auto", response_format={"type": "json_object"}, reasoning_effort="low")
    assert sent(body, CHAT, rules) == body
    assert sent(chat(tools=TOOLS), CHAT, rules) == chat(tools=TOOLS)
    assert refused(chat(tools=TOOLS, parallel_tool_calls=False), CHAT, rules).param == "parallel_tool_calls"
    assert refused(chat(reasoning_effort="huge"), rules=rules).param == "reasoning_effort"


@pytest.mark.parametrize("tools", [[{"foo": 1}], {"foo": 1}, TOOLS[0], [{"type": "function", "function": {}}], "x"])
def test_malformed_tools_are_refused(tools: object) -> None:
    assert refused(chat(tools=tools)).param == "tools"


def test_logprobs_are_refused_where_the_deployment_gives_none_and_where_too_many_are_asked_for() -> None:
    rules = Rules(engine=CAPABILITIES["2.3"], served_name="m", logprobs=False)
    assert refused(chat(logprobs=True), rules=rules).code == "unsupported_parameter"
    assert refused(text(logprobs=2), COMPLETIONS, rules).code == "unsupported_parameter"
    assert refused(chat(logprobs=True, top_logprobs=21)).param == "top_logprobs"
    assert refused(text(logprobs=-1), COMPLETIONS).param == "logprobs"
    assert refused(chat(top_logprobs=2)).param == "top_logprobs"


def test_embeddings_of_ids_out_of_the_vocabulary_are_refused_and_texts_pass() -> None:
    assert refused({"input": [[1, 5000]]}, "/v1/embeddings").param == "input"
    assert sent({"input": ["a", "b"]}, "/v1/embeddings") == {"input": ["a", "b"]}
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
        engine=CAPABILITIES[exchange.release],
        served_name="my-model",
        aliases=frozenset({"whatever"}),
        vocab_size=2048,
        max_model_len=4096,
        logprobs=not exchange.case.startswith("base"),
    )
    empty = b'"choices":[],"usage":{' in exchange.body and not exchange.is_stream
    failed = exchange.status != 200 or empty or exchange.case.endswith("_oov")
    failed_for_the_parser = b"TextEncodeInput" in exchange.body
    if failed and not failed_for_the_parser and not exchange.case.endswith((*TOLD, "b_model_null", "err_seed_neg")):
        error = refused(exchange.request, exchange.path, rules)
        assert error.param
        assert error.status in {400, 404}
    else:
        rest = {name: value for name, value in exchange.request.items() if name not in {"model", "request_id"}}
        if exchange.case == "base_chat_metadata":
            rest["chat_template_kwargs"] = rest.pop("metadata")
        if exchange.case == "base_err_seed_neg":
            assert rest.pop("seed") == -1
        assert sent(exchange.request, exchange.path, rules) == rest


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
        "enable_thinking",
        "stream",
        "echo",
        "structured_outputs",
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
@given(BODIES, st.sampled_from([RULES, STRICT, CPU, Rules(engine=CAPABILITIES["2.3"], served_name="m", max_tokens_limit=2)]))
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


@pytest.mark.parametrize("release", CAPABILITIES)
def test_a_seed_of_minus_1_is_none_and_one_too_large_is_folded_into_what_the_engine_takes(release: str) -> None:
    rules = Rules(engine=CAPABILITIES[release], served_name="m")
    most = 922337203685477580
    for path, body in ((CHAT, chat), (COMPLETIONS, text)):
        assert "seed" not in sent(body(seed=-1), path, rules)
        for seed, taken in ((0, 0), (most, most), (most + 1, 0), (2**64, 2**64 % (most + 1)), (-2, most - 1), (7.0, 7)):
            assert sent(body(seed=seed), path, rules)["seed"] == taken


def test_logprobs_of_a_text_completion_may_be_a_switch_as_pydantic_reads_one() -> None:
    assert sent(text(logprobs=True), COMPLETIONS)["logprobs"] == 1
    assert sent(text(logprobs=False), COMPLETIONS)["logprobs"] is None
    assert sent(text(logprobs=0), COMPLETIONS)["logprobs"] == 0
    assert sent(text(logprobs=0, stream=True), COMPLETIONS)["logprobs"] == 1, "for 0 a stream of FastDeploy tells none"
    assert sent(text(logprobs=0, stream=True), COMPLETIONS, CPU)["logprobs"] == 0


def test_logprobs_0_of_a_text_completion_are_reported_where_there_are_none_since_fastdeploy_answers_without_them() -> None:
    rules = Rules(engine=CAPABILITIES["2.3"], served_name="m", logprobs=False)
    for stream in (False, True):
        (warning,) = check(text(logprobs=0, stream=stream), COMPLETIONS, rules).warnings
        assert warning.startswith("logprobs has no effect: this deployment gives none")


@pytest.mark.parametrize("release", CAPABILITIES)
def test_echo_with_logprobs_is_a_400_unless_the_engine_gives_those_of_the_prompt(release: str) -> None:
    rules = Rules(engine=CAPABILITIES[release], served_name="m")
    for logprobs in (0, 1, True):
        for more in ({}, {"max_tokens": 1}, {"stream": True}):
            asked = text(echo=True, logprobs=logprobs, **more)
            if release == "cpu":
                assert sent(asked, COMPLETIONS, rules)["echo"] is True
            else:
                error = refused(asked, COMPLETIONS, rules)
                assert (error.param, error.code) == ("logprobs", "unsupported_value")
    assert sent(text(echo=True, logprobs=False), COMPLETIONS, rules)["echo"] is True


def test_max_tokens_0_is_allowed_with_echo_where_the_engine_scores_prompts() -> None:
    assert sent(text(echo=True, max_tokens=0), COMPLETIONS, CPU)["max_tokens"] == 0
    assert refused(text(max_tokens=0), COMPLETIONS, CPU).param == "max_tokens"
    assert refused(text(echo=True, max_tokens=0), COMPLETIONS).param == "max_tokens"


def test_tools_are_not_told_to_a_model_that_must_not_call_them() -> None:
    for rules in (STRICT, CPU):
        assert sent(chat(tools=TOOLS, tool_choice="none"), CHAT, rules) == chat(tool_choice="none")


@pytest.mark.parametrize("role", ["assistant", "tool", "function"])
@pytest.mark.parametrize("said", [{}, {"content": None}])
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
def test_a_message_without_content_reads_as_an_empty_text(path: str, said: dict[str, Any], role: str) -> None:
    call = {"role": role, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}], **said}
    asked = {"messages": [*HI, call, *HI]}
    assert sent(asked, path)["messages"] == [*HI, call | {"content": ""}, *HI]
    assert "content" not in call or call["content"] is None


HALF = "a\ud83d"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [*HI, {"role": "user", "content": HALF}]}, "messages[1].content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]}, "messages[0].content[0].text"),
        (CHAT, chat(stop=["x", HALF]), "stop[1]"),
        (CHAT, chat(stop=HALF), "stop"),
        (CHAT, chat(user=HALF), "user"),
        (CHAT, chat(metadata={"customer": HALF}), "metadata.customer"),
        (CHAT, chat(metadata={HALF: 1}), "metadata"),
        (CHAT, chat(never_heard_of=[{"a": HALF}]), "never_heard_of[0].a"),
        (CHAT, chat(**{HALF: 1}), "body"),
        (CHAT, chat(model=HALF), "model"),
        (COMPLETIONS, {"prompt": HALF}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", HALF]}, "prompt[1]"),
        ("/v1/embeddings", {"input": [HALF]}, "input[0]"),
        ("/v1/reward", {"messages": [{"role": "user", "content": HALF}]}, "messages[0].content"),
    ],
)
def test_half_of_a_surrogate_pair_anywhere_is_a_400_that_names_the_field(path: str, body: dict[str, Any], param: str) -> None:
    for rules in (RULES, CPU):
        error = refused(body, path, rules)
        assert (error.status, error.param) == (400, param)
        assert json.dumps(to_openai(error)[1], ensure_ascii=False).encode()


def test_both_halves_of_a_pair_are_a_character() -> None:
    emoji = json.loads('"\\ud83d\\ude00"')
    assert sent(chat(user=emoji))["user"] == "\U0001f600"


def part(kind: str, address: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind, kind: address}]}]}


CLOSED = [
    "file:///etc/passwd",
    "/etc/passwd",
    "etc/passwd",
    "",
    "http://localhost/a.png",
    "http://LOCALHOST:8000/",
    "http://localhost./",
    "http://a.localhost/",
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://0/",
    "https://10.1.2.3/",
    "https://172.16.0.1/",
    "https://192.168.0.1:8443/a",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://[::1]/",
    "http://[::]/",
    "http://[fe80::1]/",
    "http://[fd00::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://metadata.google.internal/",
    "http://printer.local/",
    "http://redis:6379/",
    "http://8.8.8.8@127.0.0.1/",
    "http://127.0.0.1\\@8.8.8.8/",
    "http://127。0。0。1/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.1 .example.com/",
    "http://[::1/",
    "https://example.com:99999/",
    "https:///a",
    "ftp://example.com/a",
    "gopher://example.com/",
    " http://127.0.0.1/",
]


@pytest.mark.parametrize("address", CLOSED)
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_an_image_on_the_engines_machine_or_a_private_address_is_refused_unless_the_operator_lets_it_pass(kind: str, address: str) -> None:
    allowing = replace(RULES, vision=True, private_media=True)
    for named, place in ((address, kind), ({"url": address, "detail": "low"}, f"{kind}.url")):
        error = refused(part(kind, named))
        assert error.param == f"messages[0].content[1].{place}"
        assert "ALLOW_PRIVATE_MEDIA" in str(error)
        assert sent(part(kind, named), CHAT, allowing) == part(kind, named)


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/a.png?b=c#d",
        "http://example.com:8080/a",
        "https://EXAMPLE.com./a",
        "https://xn--bcher-kva.example.com/",
        "http://8.8.8.8/a",
        "http://[2606:4700::1111]/a",
        "data:image/png;base64,iVBORw0KGgo=",
        "DATA:,x",
    ],
)
def test_an_image_on_a_public_host_or_in_the_request_itself_passes(address: str) -> None:
    for named in (address, {"url": address}):
        assert sent(part("image_url", named)) == part("image_url", named)


def test_a_part_that_holds_no_address_is_left_alone() -> None:
    parts = [{"type": "refusal", "refusal": "/no"}, {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]
    asked = {"messages": [{"role": "user", "content": parts}]}
    assert sent(asked) == asked


def test_there_is_a_row_for_each_release_and_one_for_the_cpu_engine() -> None:
    assert tuple(CAPABILITIES) == (*RELEASES, "cpu")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"response_format": {"type": "json_object"}}),
        (CHAT, {"tools": TOOLS, "tool_choice": "required"}),
        (CHAT, {"logit_bias": {"5": 1}}),
        (CHAT, {"logprobs": True, "top_logprobs": 3}),
        (COMPLETIONS, {"guided_regex": "a"}),
        (COMPLETIONS, {"best_of": 2}),
    ],
)
def test_the_cpu_engine_gets_what_it_does_or_refuses_itself_without_a_warning_of_fastdeploy(path: str, fields: dict[str, Any]) -> None:
    body = (chat if path == CHAT else text)(**fields)
    assert check(body, path, CPU) == Checked(body=body | {"model": "my-model"})
