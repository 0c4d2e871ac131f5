from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidJob
from handler.job import CHAT, COMPLETIONS, ROUTES, Request, methods_of, read_job
from handler.settings import BatchLimits
from tests.strategies import JSON_VALUES, SETTINGS

DEFAULTS = BatchLimits(minimum=2, maximum=40, growth=2.0)
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}

FIELDS = st.sampled_from(
    """openai_route openai_input route method body prompt messages text input sampling_params stream max_batch_size min_batch_size
    batch_size_growth_factor apply_chat_template use_openai_format max_tokens temperature typo""".split()
)
SPELLINGS = st.sampled_from(["/v1/chat/completions", "/openai/v1/models", "v1/completions/?x=1", "/v1/../etc", "http://x/y", "", "/health"])


@SETTINGS
@given(JSON_VALUES | st.dictionaries(FIELDS, JSON_VALUES | SPELLINGS | st.just(HELLO), max_size=5))
def test_any_input_is_a_request_or_the_callers_error_naming_a_field(job_input: Any) -> None:
    """Rule: "Bad input never loses a job": nothing but InvalidJob is raised, and a request that comes out can be sent."""
    try:
        request = read_job(job_input, DEFAULTS)
    except InvalidJob as error:
        assert error.status in {400, 404, 405}
        assert error.param
        assert str(error)
    else:
        assert request.method in methods_of(request.path)
        assert ".." not in request.path.split("/")
        json.dumps(request.body, allow_nan=False)
        assert request.batch is not None
        assert 1 <= request.batch.minimum <= request.batch.maximum
        assert request.batch.growth >= 1


@SETTINGS
@given(
    st.booleans(),
    st.sampled_from(["", "/"]),
    st.sampled_from([("", ""), ("?a=b&c", "a=b&c")]),
    st.sampled_from(["/", ""]),
)
def test_the_spelling_of_a_route_does_not_matter(openai: bool, slash: str, query: tuple[str, str], lead: str) -> None:
    """Rule: "route with or without `/openai`, trailing slash, query"."""
    route = lead + ("openai/" if openai else "") + "v1/chat/completions" + slash + query[0]
    request = read_job({"openai_route": route, "openai_input": HELLO}, DEFAULTS)
    assert (request.method, request.path, request.query, request.body) == ("POST", CHAT, query[1], HELLO)


@SETTINGS
@given(st.text() | st.text("/? \t%éa."), st.sampled_from(["openai_route", "route"]))
def test_a_route_goes_out_in_plain_ascii_or_is_refused(text: str, field: str) -> None:
    """Rule: a route is sent to the engine as it is, so it holds nothing that a request line cannot."""
    try:
        request = read_job({field: f"/v1/models/{text}"}, DEFAULTS)
    except InvalidJob as error:
        assert error.param == field
    else:
        assert re.fullmatch("[!-~]+", request.path + request.query)


@SETTINGS
@given(st.dictionaries(st.text(), JSON_VALUES, min_size=1, max_size=5).filter(lambda body: "stream" not in body))
def test_an_openai_body_reaches_the_engine_unchanged(body: dict[str, Any]) -> None:
    """Rule: nothing of a request is dropped: every field of the body arrives."""
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        with pytest.raises(InvalidJob, match="cannot be sent to the engine as JSON"):
            read_job({"openai_route": CHAT, "openai_input": body}, DEFAULTS)
    else:
        assert read_job({"openai_route": CHAT, "openai_input": body}, DEFAULTS).body == body


@pytest.mark.parametrize("empty", [{}, None])
def test_models_without_input_is_a_get(empty: object) -> None:
    assert read_job({"openai_route": "/v1/models", "openai_input": empty}, DEFAULTS) == Request(
        method="GET", path="/v1/models", batch=DEFAULTS
    )
    assert read_job({"openai_route": "/openai/v1/models/org/name"}, DEFAULTS).path == "/v1/models/org/name"


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/openai/v1/completions/", "/v1/embeddings"])
@pytest.mark.parametrize("empty", [{}, None])
def test_a_post_route_without_input_is_the_callers_400_and_no_get(route: str, empty: object) -> None:
    with pytest.raises(InvalidJob, match="openai_input: missing or empty"):
        read_job({"openai_route": route, "openai_input": empty}, DEFAULTS)


def test_a_generic_route_takes_method_and_body() -> None:
    request = read_job({"route": "/v1/embeddings", "method": "post", "body": {"input": "x"}}, DEFAULTS)
    assert (request.method, request.path, request.body, request.stream, request.native) == (
        "POST",
        "/v1/embeddings",
        {"input": "x"},
        False,
        False,
    )
    assert read_job({"route": "/health"}, DEFAULTS).method == "GET"


# FastDeploy's routes that change its state or tell of other callers, of all releases from 2.3 to 2.6.
CONTROL = """/v1/pause /v1/resume /v1/is_paused /v1/sleep /v1/wakeup /v1/update_weights /v1/abort_requests /update_model_weight
    /clear_load_weight /rearrange_experts /get_per_expert_tokens_stats /check_redundant /controller/scheduler
    /controller/reset_scheduler /config-info /docs /openapi.json""".split()


@SETTINGS
@given(
    st.sampled_from(CONTROL),
    st.sampled_from(["", "/", "?x=1", "//", "/v1/models/..", "/%2e%2e", ";a", "%20", "%00"]),
    st.sampled_from(["{0}{1}", "/openai{0}{1}", "{0}", "/v1{1}{0}", "{1}{0}", "/V1{0}", "/v1/models{1}/..{0}"]),
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD"]),
)
def test_no_spelling_of_a_control_route_reaches_the_engine(route: str, extra: str, form: str, method: str) -> None:
    """Rule: what is let through to the engine answers a question or tells how it is, and changes nothing."""
    spelt = form.format(route, extra)
    for job_input in ({"route": spelt, "method": method}, {"openai_route": spelt, "openai_input": {"abort_all": True}}):
        try:
            request = read_job(job_input, DEFAULTS)
        except InvalidJob:
            continue
        assert request.path in ROUTES or (request.method, request.path[:11]) == ("GET", "/v1/models/")
        assert ".." not in unquote(request.path)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_let_through_by_its_methods_only(route: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
        job_input = {"route": route, "method": method} | ({"body": {"input": "x"}} if method in {"POST", "PUT", "PATCH"} else {})
        if method in ROUTES[route]:
            assert read_job(job_input, DEFAULTS).method == method
        else:
            with pytest.raises(InvalidJob, match=f"method: got {method}, expected {ROUTES[route][0]} for {route}") as caught:
                read_job(job_input, DEFAULTS)
            assert (caught.value.status, caught.value.param, caught.value.code) == (405, "method", "method_not_allowed")


@pytest.mark.parametrize(
    ("native", "path", "body"),
    [
        ({"prompt": "Hi"}, COMPLETIONS, {"prompt": "Hi"}),
        ({"text": "Hi", "max_tokens": 3}, COMPLETIONS, {"prompt": "Hi", "max_tokens": 3}),
        ({"input": "Hi", "max_new_tokens": 3}, COMPLETIONS, {"prompt": "Hi", "max_tokens": 3}),
        ({"prompt": [1, 2, 3]}, COMPLETIONS, {"prompt": [1, 2, 3]}),
        ({"prompt": ["a", "b"], "sampling_params": {"n": 2, "stop": None}}, COMPLETIONS, {"prompt": ["a", "b"], "n": 2}),
        ({"prompt": "Hi", "apply_chat_template": True}, CHAT, HELLO | {"messages": [{"role": "user", "content": "Hi"}]}),
        (HELLO | {"sampling_params": {"temperature": 0.5}}, CHAT, HELLO | {"temperature": 0.5}),
        (HELLO | {"temperature": 1, "sampling_params": {"temperature": 0.5}}, CHAT, HELLO | {"temperature": 0.5}),
        (HELLO | {"max_tokens": 5, "max_new_tokens": 7}, CHAT, HELLO | {"max_tokens": 5}),
        (HELLO | {"max_tokens": 5, "sampling_params": {"max_new_tokens": 7}}, CHAT, HELLO | {"max_tokens": 7}),
        (HELLO | {"max_new_tokens": 5, "sampling_params": {"max_tokens": 7}}, CHAT, HELLO | {"max_tokens": 7}),
        (HELLO | {"max_tokens": 5, "sampling_params": {"max_new_tokens": None}}, CHAT, HELLO | {"max_tokens": 5}),
        (HELLO | {"sampling_params": None}, CHAT, HELLO),
        (HELLO | {"stream": True}, CHAT, HELLO | {"stream": True, "stream_options": {"include_usage": True}}),
        (HELLO | {"stream": True, "use_openai_format": True}, CHAT, HELLO | {"stream": True}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_native_input_becomes_the_engines_request(native: dict[str, Any], path: str, body: dict[str, Any]) -> None:
    request = read_job(native, DEFAULTS)
    assert (request.method, request.path, request.body) == ("POST", path, body)
    assert request.stream is native.get("stream", False)
    assert request.native is not native.get("use_openai_format", False)


@pytest.mark.parametrize("route", [route for route, methods in ROUTES.items() if methods == ("POST",)])
@pytest.mark.parametrize("stream", [True, False, None])
def test_stream_is_refused_where_the_engine_answers_whole_and_there_alone(route: str, stream: bool | None) -> None:
    job_input = {"openai_route": route, "openai_input": {"input": "x", "stream": stream}}
    if stream and route in {"/v1/embeddings", "/v1/reward", "/v1/messages/count_tokens"}:
        with pytest.raises(InvalidJob, match=f"stream: got true, expected false or nothing: {route} does not stream") as caught:
            read_job(job_input, DEFAULTS)
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, "stream", "invalid_value")
    else:
        assert read_job(job_input, DEFAULTS).stream is bool(stream)


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, DEFAULTS),
        ({"max_batch_size": 7}, BatchLimits(minimum=2, maximum=7, growth=2.0)),
        ({"max_batch_size": 1}, BatchLimits(minimum=1, maximum=1, growth=2.0)),
        ({"min_batch_size": 60}, BatchLimits(minimum=60, maximum=60, growth=2.0)),
        ({"min_batch_size": 3, "max_batch_size": 9.0, "batch_size_growth_factor": 1.5}, BatchLimits(minimum=3, maximum=9, growth=1.5)),
    ],
)
@pytest.mark.parametrize("shape", [{"prompt": "Hi"}, {"openai_route": CHAT, "openai_input": HELLO}], ids=["native", "openai"])
def test_a_request_may_bound_its_own_batches(shape: dict[str, Any], given: dict[str, Any], limits: BatchLimits) -> None:
    assert read_job(shape | given, DEFAULTS).batch == limits


@pytest.mark.parametrize(
    ("job_input", "param", "words"),
    [
        ("text", "input", "got a text, expected an object"),
        (None, "input", "got nothing, expected an object"),
        ({}, "input", "expected one of openai_route, route, prompt or messages"),
        ({"openai_input": HELLO}, "openai_route", "missing"),
        ({"openai_route": 7, "openai_input": HELLO}, "openai_route", "got 7, expected a path"),
        ({"openai_route": "/v1/%2e%2e/x"}, "openai_route", "plain path"),
        ({"openai_route": CHAT, "openai_input": "Hi"}, "openai_input", "got a text, expected an object"),
        ({"openai_route": CHAT, "openai_input": HELLO | {"stream": "yes"}}, "stream", 'got "yes", expected true or false'),
        ({"route": "/health", "method": "FETCH"}, "method", 'got "FETCH", expected one of GET, POST'),
        ({"route": "/health", "method": "GET", "body": {"a": 1}}, "body", "a GET request carries none"),
        ({"route": "/health", "body": [1]}, "body", "got a list, expected an object"),
        ({"prompt": "Hi", "messages": []}, "messages", "got both prompt and messages"),
        ({"prompt": ""}, "prompt", "not empty"),
        ({"prompt": 7}, "prompt", "got 7"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["Hi"]}, "messages", "expected a list of message objects"),
        ({"prompt": [1], "apply_chat_template": True}, "prompt", "expected a text when apply_chat_template is true"),
        ({"prompt": "Hi", "stream": "true"}, "stream", "expected true or false"),
        ({"prompt": "Hi", "sampling_params": [1]}, "sampling_params", "got a list, expected an object"),
        ({"prompt": "Hi", "sampling_params": {"stream": True}}, "sampling_params.stream", "belongs beside sampling_params"),
        ({"prompt": "Hi", "max_token": 3}, "max_token", "did you mean max_tokens?"),
        ({"prompt": "Hi", "max_batch_size": 0}, "max_batch_size", "whole number from 1 to 65536"),
        ({"prompt": "Hi", "max_batch_size": True}, "max_batch_size", "whole number"),
        ({"prompt": "Hi", "min_batch_size": 2.5}, "min_batch_size", "got 2.5, expected a whole number"),
        ({"prompt": "Hi", "min_batch_size": 9, "max_batch_size": 3}, "min_batch_size", "at most max_batch_size, which is 3"),
        ({"prompt": "Hi", "batch_size_growth_factor": 0.5}, "batch_size_growth_factor", "expected a number from 1"),
        ({"prompt": "Hi", "sampling_params": {"temperature": float("nan")}}, "temperature", "cannot be sent to the engine as JSON"),
        ({"openai_route": CHAT, "openai_input": {"a": {"b": [[1], [2, {"c": float("inf")}]]}}}, "a.b[1][1].c", "cannot be sent"),
        ({"route": "/v1/pause", "body": {}}, "route", "no route that is let through to the engine, expected one of /v1/chat/completions"),
        ({"openai_route": "/v1/images", "openai_input": HELLO}, "openai_route", '"/v1/images" is no route that is let through'),
        ({"route": CHAT}, "method", "got GET, expected POST for /v1/chat/completions"),
        ({"prompt": "x" * 200, "stream": "x" * 200}, "stream", "a text of 202 characters"),
        (
            {"prompt": "Hi", "stream": None, "use_openai_format": [None, True, {"ä": "'"}]},
            "use_openai_format",
            'got [null, true, {"ä": "\'"}]',
        ),
        ({"prompt": "Hi", "stream": 10**5000}, "stream", "got a number, expected true or false"),
        ({"openai_route": "/v1/chat completions"}, "openai_route", "without blanks"),
        ({"route": "/v1/models/日本"}, "route", "others than ASCII percent-encoded"),
        ({"route": "/v1/models?a=b c"}, "route", "without blanks"),
        ({"route": "/v1/reward", "body": HELLO | {"stream": True}}, "stream", "got true, expected false or nothing: /v1/reward"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_job_names_the_field_what_it_holds_and_what_was_expected(job_input: Any, param: str, words: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        read_job(job_input, DEFAULTS)
    assert caught.value.param == param
    assert words in str(caught.value)


def test_nesting_without_end_is_the_callers_error() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    try:
        with pytest.raises(InvalidJob, match="cannot be sent"):
            read_job({"openai_route": CHAT, "openai_input": {"messages": deep}}, DEFAULTS)
        with pytest.raises(InvalidJob, match="stream: got a list, expected true or false"):
            read_job({"prompt": "Hi", "stream": deep}, DEFAULTS)
    finally:
        while deep:  # taken apart by hand: Python's own way down is as deep
            deep = deep.pop()
