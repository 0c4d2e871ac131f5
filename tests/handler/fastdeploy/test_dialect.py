"""One dialect for every engine: the CPU engine, live, behind the same checks, assembly and repairs as FastDeploy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from handler.errors import InvalidJob
from handler.fastdeploy.dialect import exchange
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.job import CHAT, COMPLETIONS, Request, read_job
from handler.settings import BatchLimits
from handler.sse import FrameSplitter, data_of, frames_of, is_done
from tests.cpu_engine.child import Engine, running
from tests.openai_types import CHAT_ANSWER, CHAT_FRAME, TEXT, problems

RULES = Rules(
    engine=CAPABILITIES["cpu"], served_name="my-model", aliases=frozenset({"org/ERNIE-4.5-0.3B"}), guided_decoding=True, max_tokens_limit=40
)
CALL = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "additionalProperties": False}}}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running("--served-model-name", "my-model", "--max-model-len", "4096") as made:
        yield made


def asked(path: str, **fields: Any) -> Request:
    body = {"temperature": 0, **({"messages": [{"role": "user", "content": "What is FastDeploy?"}]} if path == CHAT else {"prompt": "Hi"})}
    return Request(method="POST", path=path, body=body | fields, stream=bool(fields.get("stream")), batch=BatchLimits())


def answered(engine: Engine, request: Request, rules: Rules = RULES) -> list[dict[str, Any]]:
    """What the caller gets: the frames of a stream, or the one whole answer."""
    put = exchange(request, rules, raw=False)
    reply = engine.post(put.sent.path, put.sent.body)
    assert reply.status == 200, reply.body
    if not put.sent.stream:
        return [put.whole(reply.json)]
    run = FrameSplitter().feed(reply.body)
    if request.stream:
        leaving = frames_of(put.run(run))
        assert is_done(leaving[-1])
        return [json.loads(data_of(frame) or b"") for frame in leaving[:-1]]
    put.collect(run)
    return [put.whole(put.collected())]


def comparable(answer: dict[str, Any]) -> Any:
    """Take away what no two requests have in common."""
    value = json.loads(json.dumps(answer))
    for choice in value["choices"]:
        choice.pop("arrival_time", None)
        for call in choice.get("message", choice).get("tool_calls") or []:
            call.pop("id")
    return {name: item for name, item in value.items() if name not in {"id", "created", "model"}}


ASKED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {}),
    (CHAT, {"n": 3, "temperature": 1.5, "seed": 4}),
    (CHAT, {"max_tokens": 3}),
    (CHAT, {"logprobs": True, "top_logprobs": 2}),
    (CHAT, {"logprobs": True, "top_logprobs": 0}),
    (CHAT, {"return_token_ids": True}),
    (CHAT, {"stop": [" is"]}),
    (CHAT, {"messages": [{"role": "user", "content": "FastDeploy是什么\uff1f"}], "logprobs": True}),
    (CHAT, {"response_format": {"type": "json_object"}}),
    (CHAT, {"tools": CALL, "tool_choice": "required"}),
    (COMPLETIONS, {}),
    (COMPLETIONS, {"prompt": ["Hi", "Ho"], "n": 2}),
    (COMPLETIONS, {"prompt": [30, 31]}),
    (COMPLETIONS, {"logprobs": 2}),
    (COMPLETIONS, {"logprobs": 0}),
    (COMPLETIONS, {"logprobs": True, "n": 2}),
    (COMPLETIONS, {"echo": True}),
    (COMPLETIONS, {"echo": True, "logprobs": 1}),
    (COMPLETIONS, {"echo": True, "logprobs": 1, "max_tokens": 0}),
    (COMPLETIONS, {"echo": True, "max_tokens": 0}),
    (COMPLETIONS, {"return_token_ids": True, "echo": True}),
    (COMPLETIONS, {"prompt": "FastDeploy是什么\uff1f", "logprobs": 3}),
]


@pytest.mark.parametrize(("path", "fields"), ASKED, ids=[f"{path}-{json.dumps(fields)[:50]}" for path, fields in ASKED])
def test_every_live_answer_and_frame_of_the_cpu_engine_is_openais(engine: Engine, path: str, fields: dict[str, Any]) -> None:
    (answer,) = answered(engine, asked(path, **fields))
    assert not problems(CHAT_ANSWER if path == CHAT else TEXT, answer)
    for options in ({}, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}):
        for value in answered(engine, asked(path, stream=True, **fields, **options)):
            assert not problems(CHAT_FRAME if path == CHAT else TEXT, value)


@pytest.mark.parametrize(("path", "fields"), ASKED, ids=[f"{path}-{json.dumps(fields)[:50]}" for path, fields in ASKED])
def test_an_answer_put_together_from_the_stream_is_the_whole_answer(engine: Engine, path: str, fields: dict[str, Any]) -> None:
    """Law: for the CPU engine both forms say the same, so that every request shows progress and can be aborted."""
    request = asked(path, max_tokens=20, **fields) if "max_tokens" not in fields else asked(path, **fields)
    (answer,) = answered(engine, request)
    reply = engine.post(path, exchange(request, RULES, raw=True).sent.body)
    whole = replace_nulls(comparable(reply.json))
    assert replace_nulls(comparable(answer)) == whole


def replace_nulls(value: Any) -> Any:
    """Leave out what is null or counts nothing: a stream tells of images only where there are some."""
    if isinstance(value, dict):
        return {
            name: replace_nulls(item) for name, item in value.items() if item is not None and name not in {"image_tokens", "video_tokens"}
        }
    return [replace_nulls(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["my-model", "default", "org/ERNIE-4.5-0.3B", "ERNIE-4.5-0.3B", None])
def test_every_name_of_the_model_is_answered_and_echoed(engine: Engine, name: str | None) -> None:
    for stream in (False, True):
        values = answered(engine, asked(CHAT, stream=stream, model=name))
        assert {value["model"] for value in values} == {name or "my-model"}


def test_the_limit_of_tokens_holds_and_another_model_is_a_404(engine: Engine) -> None:
    (answer,) = answered(engine, asked(CHAT, max_tokens=4000, min_tokens=40))
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (40, "length")
    with pytest.raises(InvalidJob) as raised:
        exchange(asked(CHAT, model="gpt-4"), RULES, raw=False)
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")


def test_strict_requests_hold_for_the_cpu_engine_too() -> None:
    strict = replace(RULES, strict=True)
    with pytest.raises(InvalidJob) as raised:
        exchange(asked(CHAT, tools=CALL), strict, raw=False)
    assert (raised.value.param, raised.value.code) == ("tools", "unsupported_parameter")
    assert "the CPU engine would ignore it" in str(raised.value)


def test_what_the_cpu_engine_refuses_itself_names_the_field(engine: Engine) -> None:
    put = exchange(asked(CHAT, prompt_logprobs=1), RULES, raw=False)
    reply = engine.post(CHAT, put.sent.body)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unsupported_value", "prompt_logprobs")


def test_the_list_of_models_tells_no_directory(engine: Engine) -> None:
    put = exchange(Request(method="GET", path="/v1/models", batch=BatchLimits()), RULES, raw=False)
    (model,) = put.whole(engine.get("/v1/models").json)["data"]
    assert model["id"] == model["root"] == "my-model"


@pytest.mark.parametrize("thinks", [True, False])
def test_a_native_jobs_wish_to_think_or_not_reaches_the_template(thinks: bool) -> None:
    request = read_job({"prompt": "hi", "apply_chat_template": True, "enable_thinking": thinks}, BatchLimits())
    for engine_name in CAPABILITIES:
        sent = exchange(request, replace(RULES, engine=CAPABILITIES[engine_name], strict=True), raw=False).sent.body or {}
        assert sent["chat_template_kwargs"] == {"enable_thinking": thinks}
