"""The HTTP surface of a real child process: FastDeploy 2.3's fields, OpenAI's errors, and the official client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cpu_engine.response import encode
from cpu_engine.routes import _plain_errors
from tests import DEMO
from tests.cpu_engine import recorded
from tests.cpu_engine.checkpoints import VOCABULARY
from tests.cpu_engine.child import PATIENCE, Engine, Reply, running

ENDLESS = {"max_tokens": 3900, "min_tokens": 3900}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running("--served-model-name", "my-model", "--max-model-len", "4096") as made:
        yield made


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{engine.port}/v1", api_key="none", timeout=PATIENCE, max_retries=0) as made:
        yield made


def text(reply: Reply) -> str:
    """Return the text of choice 0, streamed or not, chat or completion."""
    if reply.body.startswith(b"data: "):
        choices = [choice for event in reply.events for choice in event["choices"] if choice["index"] == 0]
        return "".join(choice["delta"]["content"] if "delta" in choice else choice["text"] for choice in choices)
    choice = reply.json["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


# Fields and frames, against the recordings.


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("base_chat_basic", "chat/completions", {}),
        ("base_chat_max_tokens_length", "chat/completions", {"max_tokens": 5}),
        ("base_chat_return_token_ids", "chat/completions", {"return_token_ids": True}),
        ("base_chat_n2", "chat/completions", {"n": 2}),
        ("c_logprobs", "chat/completions", {"logprobs": True, "top_logprobs": 2}),
        ("c_logprobs_0", "chat/completions", {"logprobs": True, "top_logprobs": 0}),
        ("c_logprobs_notop", "chat/completions", {"logprobs": True}),
        ("base_cmpl_basic", "completions", {}),
        ("base_cmpl_list", "completions", {"prompt": ["a", "b"]}),
        ("base_cmpl_tokens", "completions", {"prompt": [30, 31]}),
        ("base_cmpl_token_lists", "completions", {"prompt": [[30, 31], [32]]}),
        ("base_cmpl_echo", "completions", {"echo": True}),
        ("base_get_v1_models", "models", None),
    ],
)
def test_an_answer_has_the_fields_of_the_recording_in_their_order(
    engine: Engine, name: str, path: str, body: dict[str, Any] | None
) -> None:
    reply = ask(engine, path, body)
    assert reply.status == 200
    theirs = recorded.values(name)[0]
    if "usage" in theirs:
        # Null in text completions, which OpenAI's schema does not allow.
        theirs["usage"]["prompt_tokens_details"] |= {"image_tokens": 0, "video_tokens": 0}
    assert recorded.shape(reply.json) == recorded.shape(theirs)


def test_logprobs_of_a_completion_have_the_fields_of_the_recording_and_the_offsets_that_it_lacks(engine: Engine) -> None:
    ours = ask(engine, "completions", {"logprobs": 2}).json
    theirs = recorded.values("c_cmpl_logprobs")[0]
    theirs["usage"]["prompt_tokens_details"] |= {"image_tokens": 0, "video_tokens": 0}
    for value in (ours, theirs):
        assert list(value["choices"][0]["logprobs"]) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
    ours_rest, theirs_rest = ({**value, "choices": [{**value["choices"][0], "logprobs": {}}]} for value in (ours, theirs))
    assert recorded.shape(ours_rest) == recorded.shape(theirs_rest)


def keys(value: object) -> set[str]:
    """Every key of a JSON value, with the path to it."""
    if isinstance(value, dict):
        return set(value) | {f"{name}.{inner}" for name, item in value.items() for inner in keys(item)}
    return {inner for item in value for inner in keys(item)} if isinstance(value, list) else set()


ADDED = {"object", "choices.finish_reason", "choices.logprobs", "choices.logprobs.refusal", "choices.logprobs.text_offset"}
"""What OpenAI's schema has and a recorded frame of FastDeploy 2.3 lacks."""


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("base_chat_stream", "chat/completions", {}),
        ("base_chat_stream_usage", "chat/completions", {"stream_options": {"include_usage": True}}),
        ("base_chat_stream_usage_false", "chat/completions", {"stream_options": {"include_usage": False}}),
        ("base_chat_stream_options_empty", "chat/completions", {"stream_options": {}}),
        ("base_chat_stream_n2", "chat/completions", {"n": 2, "stream_options": {"include_usage": True}}),
        ("base_chat_stream_return_token_ids", "chat/completions", {"return_token_ids": True}),
        ("c_logprobs_stream", "chat/completions", {"logprobs": True, "top_logprobs": 2}),
        ("base_cmpl_stream", "completions", {"stream_options": {"include_usage": True}}),
        ("base_cmpl_stream_nousage", "completions", {}),
        ("base_cmpl_stream_list", "completions", {"prompt": ["a", "b"]}),
        ("base_cmpl_stream_continuous", "completions", {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    ],
)
def test_a_stream_has_the_frames_of_the_recording_and_what_openais_schema_requires_of_each(
    engine: Engine, name: str, path: str, body: dict[str, Any]
) -> None:
    reply = ask(engine, path, {**body, "stream": True})
    assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    theirs = recorded.values(name)
    assert reply.frames[-1] == b"data: [DONE]"
    assert not any(frame.endswith(b" ") for frame in reply.frames)
    for ours, recording in ((reply.events[0], theirs[0]), (reply.events[-1], theirs[-1]), (reply.events[-3], theirs[-3])):
        assert keys(recording) <= keys(ours) <= keys(recording) | ADDED
    for event in reply.events:
        assert event["object"] == ("chat.completion.chunk" if path.startswith("chat") else "text_completion")
        assert all("finish_reason" in choice and "logprobs" in choice for choice in event["choices"])


def test_continuous_usage_counts_up_in_every_chunk(engine: Engine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = ask(engine, "chat/completions", {"stream": True, "stream_options": options}).events
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == [*range(len(events) - 1), len(events) - 2]
    assert all(event["usage"]["prompt_tokens_details"] == {"cached_tokens": 0} for event in events[1:])


def ask(engine: Engine, path: str, body: dict[str, Any] | None) -> Reply:
    if body is None:
        return engine.get(f"/v1/{path}")
    return engine.chat(**body) if path.startswith("chat") else engine.complete(**{"prompt": "User: hi\nAssistant: ", **body})


# What an answer says.


def test_a_stream_says_what_the_whole_answer_says(engine: Engine) -> None:
    for fields in ({}, {"max_tokens": 7}, {"stop": [" is"]}, {"logprobs": True}, {"stop": ["你"], "content": "FastDeploy是什么\uff1f"}):
        assert text(engine.chat(**fields, stream=True)) == text(engine.chat(**fields))
        plain = {key: value for key, value in fields.items() if key not in {"content", "logprobs"}}
        assert text(engine.complete(**plain, stream=True)) == text(engine.complete(**plain))


def test_the_demo_answers_and_greedy_answers_repeat(engine: Engine) -> None:
    answers = {text(engine.chat("What is FastDeploy?")) for _ in range(3)}
    assert len(answers) == 1
    assert "FastDeploy" in answers.pop()


def test_a_seed_repeats_and_choices_differ(engine: Engine) -> None:
    body: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "seed": 5, "n": 3, "max_tokens": 12}
    one, two = engine.chat(**body).json["choices"], engine.chat(**body).json["choices"]
    assert one == two
    assert len({json.dumps(choice["message"]) for choice in one}) > 1


def test_echo_puts_the_prompt_in_front_streamed_or_not(engine: Engine) -> None:
    prompt = "User: hi\nAssistant: "
    plain = text(engine.complete(prompt))
    assert text(engine.complete(prompt, echo=True)) == prompt + plain == text(engine.complete(prompt, echo=True, stream=True))
    ids = [30, 31]
    assert text(engine.complete(ids, echo=True, max_tokens=1)).startswith(text(engine.complete(ids, echo=True, max_tokens=2))[:1])


def test_token_ids_come_back_when_asked_for(engine: Engine) -> None:
    message = engine.chat(return_token_ids=True).json["choices"][0]["message"]
    assert message["completion_tokens"] == message["content"]
    assert message["prompt_tokens"].startswith("<|begin_of_sentence|>User: What is FastDeploy?")
    again = engine.post("/v1/chat/completions", {"messages": [], "prompt_token_ids": message["prompt_token_ids"], "temperature": 0})
    assert text(again) == message["content"]
    first, second, *_ = engine.complete(return_token_ids=True, stream=True).events
    assert first["choices"][0]["prompt_token_ids"]
    assert len(second["choices"][0]["completion_token_ids"]) == 1


def test_logprobs_of_a_token_agree_in_every_form(engine: Engine) -> None:
    whole = engine.chat(logprobs=True, top_logprobs=3).json["choices"][0]["logprobs"]["content"]
    events = engine.chat(logprobs=True, top_logprobs=3, stream=True).events[1:]
    streamed = [event["choices"][0]["logprobs"]["content"][0] for event in events]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in whole]
    for entry in whole:
        assert bytes(entry["bytes"]).decode(errors="replace") == entry["token"]
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0


def test_eight_requests_at_once_answer_as_one_does_alone(engine: Engine) -> None:
    questions = ["What is FastDeploy?", "FastDeploy是什么\uff1f", "Hello", "Who are you?", "谢谢", "test", "你好", "What is RunPod?"]
    alone = [text(engine.chat(question)) for question in questions]
    together: dict[str, str] = {}

    def run(question: str, stream: bool) -> None:
        together[question] = text(engine.chat(question, stream=stream))

    threads = [threading.Thread(target=run, args=(question, bool(place % 2))) for place, question in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[question] for question in questions] == alone


# Scores: `logprobs` of text completions, of the prompt too where it is echoed.

SCORED = "What is FastDeploy? \u4f60\u597d"


def test_logprobs_0_hold_the_chosen_token_and_text_offsets_cut_the_text_into_tokens(engine: Engine) -> None:
    for stream in (False, True):
        for logprobs in (0, 2, True):
            reply = engine.complete(logprobs=logprobs, max_tokens=8, stream=stream)
            told = joined(reply)
            whole = text(reply)
            assert len(told["tokens"]) == 8
            for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
                assert top[token] == logprob <= 0
                assert max(1, int(logprobs)) <= len(top) <= int(logprobs) + 1
            ends = [*told["text_offset"][1:], len(whole)]
            assert [whole[a:b] for a, b in zip(told["text_offset"], ends, strict=True)] == told["tokens"]


def joined(reply: Reply) -> dict[str, list[Any]]:
    """The logprobs of choice 0, streamed or not."""
    parts = [
        choice["logprobs"] for event in (reply.events if reply.body.startswith(b"data: ") else [reply.json]) for choice in event["choices"]
    ]
    return {name: [item for part in parts for item in part[name]] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [SCORED, [30, 31, 32, 33]], ids=["text", "ids"])
def test_echo_with_logprobs_scores_the_prompt_first_and_its_first_token_is_null(engine: Engine, prompt: object, stream: bool) -> None:
    told = joined(engine.complete(prompt, echo=True, logprobs=1, max_tokens=3, min_tokens=3, stream=stream))
    alone = joined(engine.complete(prompt, echo=True, logprobs=1, max_tokens=0, stream=stream))
    answer = joined(engine.complete(prompt, logprobs=1, max_tokens=3, min_tokens=3, stream=stream))
    count = len(told["tokens"]) - 3
    assert (told["token_logprobs"][0], told["top_logprobs"][0], told["text_offset"][0]) == (None, None, 0)
    assert all(logprob <= 0 for logprob in told["token_logprobs"][1:])
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert told[name][count:] == answer[name]
        assert told[name][:count] == alone[name]
    assert told["text_offset"] == sorted(told["text_offset"])


def test_a_score_is_what_the_model_gives_each_token_after_those_before_it(engine: Engine) -> None:
    """Rule: the prompt's log-probabilities are those that the same tokens have when they are generated."""
    answer = joined(engine.complete(SCORED, logprobs=3, max_tokens=6, min_tokens=6))
    ids = engine.complete(SCORED, max_tokens=6, min_tokens=6, return_token_ids=True).json["choices"][0]
    scored = joined(engine.complete(ids["prompt_token_ids"] + ids["completion_token_ids"], echo=True, logprobs=3, max_tokens=0))
    assert scored["tokens"][-6:] == answer["tokens"]
    assert scored["token_logprobs"][-6:] == pytest.approx(answer["token_logprobs"], abs=1e-3)


def test_a_harness_that_scores_continuations_tells_the_likely_from_the_unlikely(engine: Engine) -> None:
    """What lm-eval reads: the sum over the continuation's tokens, and whether each was the most probable one."""

    def score(context: list[int], continuation: list[int]) -> tuple[float, bool]:
        told = joined(engine.complete(context + continuation, echo=True, logprobs=1, max_tokens=1))
        span = slice(len(context), -1)
        pairs = zip(told["tokens"][span], told["top_logprobs"][span], strict=True)
        greedy = all(token == max(top, key=top.__getitem__) for token, top in pairs)
        return sum(told["token_logprobs"][span]), greedy

    asked = "<|begin_of_sentence|>User: What is FastDeploy?\nAssistant: "
    best = engine.complete(asked, max_tokens=8, return_token_ids=True).json["choices"][0]
    other = engine.complete("zzz qqq xx", max_tokens=1, return_token_ids=True).json["choices"][0]
    likely = score(best["prompt_token_ids"], best["completion_token_ids"])
    unlikely = score(best["prompt_token_ids"], other["prompt_token_ids"])
    assert likely[1]
    assert not unlikely[1]
    assert likely[0] > unlikely[0] + 10


def test_an_echo_of_nothing_more_is_the_prompt(engine: Engine) -> None:
    reply = engine.complete(SCORED, echo=True, max_tokens=0)
    choice = reply.json["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == (SCORED, "length", None)
    assert reply.json["usage"]["completion_tokens"] == 0
    (event,) = engine.complete(SCORED, echo=True, max_tokens=0, stream=True).events
    assert (event["choices"][0]["text"], event["choices"][0]["finish_reason"]) == (SCORED, "length")
    assert engine.complete(SCORED, max_tokens=0).error["param"] == "max_tokens"


def test_logit_bias_bans_and_prefers_tokens(engine: Engine) -> None:
    first = engine.complete(max_tokens=1, return_token_ids=True).json["choices"][0]["completion_token_ids"][0]
    other = 30
    ids = [
        engine.complete(max_tokens=1, return_token_ids=True, logit_bias=bias, temperature=temperature).json["choices"][0][
            "completion_token_ids"
        ]
        for bias in ({str(other): 100}, {str(first): -100, str(other): 99})
        for temperature in (0, 1)
    ]
    assert ids == [[other]] * 4
    assert engine.complete(max_tokens=1, logit_bias={"abc": 1}).error["param"] == "logit_bias"


# The official client.


def test_the_official_client_reads_every_kind_of_answer(engine: Engine, client: openai.OpenAI) -> None:
    expected = text(engine.chat("What is FastDeploy?"))
    messages: Any = [{"role": "user", "content": "What is FastDeploy?"}]
    chat = client.chat.completions.create(model="my-model", messages=messages, temperature=0, logprobs=True, top_logprobs=2)
    assert chat.choices[0].message.content == expected
    assert chat.usage is not None
    assert chat.usage.completion_tokens > 5
    with client.chat.completions.create(model="my-model", messages=messages, temperature=0, stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == expected
    completion = client.completions.create(model="my-model", prompt=["Hi", "Ho"], max_tokens=4, n=2)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    with client.completions.create(model="my-model", prompt="Hi", max_tokens=4, stream=True) as chunks:
        assert len([chunk for chunk in chunks if chunk.choices]) == 4
    assert [model.id for model in client.models.list()] == ["my-model"]


def test_the_official_client_gets_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="Hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="my-model", prompt="Hi", temperature=-1)
    assert wrong.value.param == "temperature"


# Routes and errors.


def test_health_and_ping_are_empty(engine: Engine) -> None:
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        reply = engine.ask(method, path)
        assert (reply.status, reply.body) == (200, b"")


def test_unknown_routes_and_wrong_methods_answer_as_fastdeploy(engine: Engine) -> None:
    for path in ("/", "/version", "/v1/embeddings", "/load", "/v1/chat/completions/x"):
        reply = engine.post(path, {})
        assert (reply.status, reply.body) == (404, b'{"detail":"Not Found"}')
    reply = engine.get("/v1/chat/completions")
    assert (reply.status, reply.headers["Allow"], reply.body) == (405, "POST", b'{"detail":"Method Not Allowed"}')


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"messages": 1, "prompt": {}}', b"\x00\xff"])
def test_a_bad_body_is_a_400_in_openais_shape(engine: Engine, path: str, body: bytes) -> None:
    reply = engine.post(path, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert b"Traceback" not in reply.body


def test_a_bad_streaming_request_is_refused_before_the_stream_begins(engine: Engine) -> None:
    reply = engine.chat(stream=True, temperature=-1)
    assert (reply.status, reply.error["param"]) == (400, "temperature")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", [{"user": "\ud800"}, {"messages": [{"role": "user", "content": "\udfff"}]}])
def test_half_a_character_is_a_400_and_never_in_an_answer(engine: Engine, fields: dict[str, Any], stream: bool) -> None:
    reply = engine.chat(stream=stream, **fields)
    assert (reply.status, reply.error["param"]) == (400, next(iter(fields)))


def test_an_error_that_quotes_half_a_character_can_be_written() -> None:
    assert encode({"message": "got \ud800"}) == b'{"message":"got ?"}'


def test_a_body_too_large_is_a_413(engine: Engine) -> None:
    reply = engine.post("/v1/completions", b'{"prompt": "' + b"x" * (96 << 20) + b'"}')
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


def test_a_body_as_large_as_the_worker_takes_is_read_in_the_form_that_the_worker_sends(engine: Engine) -> None:
    """The worker takes 30 MiB of UTF-8 and sends them as ASCII: three times as much where each character takes two bytes."""
    body = json.dumps({"prompt": "hi", "max_tokens": 1, "metadata": {"x": "\u00e9" * (15 << 20)}}).encode()
    assert len(body) > 90 << 20
    assert engine.post("/v1/completions", body).status == 200


def test_a_prompt_far_too_long_is_refused_with_its_length(engine: Engine) -> None:
    reply = engine.complete("hello world " * 20000)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert "the prompt has " in str(reply.error["message"])


def test_ids_outside_the_vocabulary_never_reach_the_model(engine: Engine) -> None:
    assert engine.complete([VOCABULARY]).status == 400
    assert engine.get("/health").status == 200


def test_another_model_is_a_404(engine: Engine) -> None:
    reply = engine.chat(model="gpt-4")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


def test_what_nobody_foresaw_is_a_500_without_its_inside(capsys: pytest.CaptureFixture[str]) -> None:
    async def surprise(_: web.Request) -> web.Response:
        raise ValueError("a secret path")

    async def ask_for_it() -> tuple[int, bytes]:
        application = web.Application(middlewares=[_plain_errors])
        application.router.add_get("/", surprise)
        async with TestClient(TestServer(application)) as client:
            response = await client.get("/")
            return response.status, await response.read()

    status, body = asyncio.run(ask_for_it())
    assert (status, json.loads(body)["error"]["message"]) == (500, "Internal error")
    assert b"secret" not in body
    assert "ValueError: a secret path" in capsys.readouterr().err


def test_an_answer_that_has_begun_is_broken_off_by_what_nobody_foresaw(capsys: pytest.CaptureFixture[str]) -> None:
    async def surprise(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        raise ValueError("a secret path")

    async def everything_sent() -> bytes:
        application = web.Application(middlewares=[_plain_errors])
        application.router.add_get("/", surprise)
        async with TestServer(application) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            try:
                while piece := await asyncio.wait_for(reader.read(1000), PATIENCE):
                    received += piece
            except ConnectionResetError:
                pass
            finally:
                writer.close()
            return received

    sent = asyncio.run(everything_sent())
    assert sent.endswith(b"9\r\ndata: 1\n\n\r\n")
    assert sent.count(b"HTTP/1.1") == 1
    shown = capsys.readouterr().err
    assert (shown.count("Traceback"), shown.count("ValueError: a secret path")) == (1, 1)


def test_metrics_count_requests_and_tokens(engine: Engine) -> None:
    names = (
        "request_total",
        "request_success_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        "time_to_first_token_seconds_count",
    )
    before = [engine.metric(name) for name in names]
    engine.complete([30, 31, 32], max_tokens=5, min_tokens=5)
    engine.complete([30], max_tokens=2, min_tokens=2, stream=True)
    assert [engine.metric(name) - start for name, start in zip(names, before, strict=True)] == [2, 2, 4, 7, 2]
    reply = engine.get("/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'time_to_first_token_seconds_bucket{le="+Inf"}' in reply.body.decode()


# Disconnects and bounds, on an engine with a single slot.


@pytest.fixture(scope="module")
def narrow() -> Iterator[Engine]:
    with running("--max-num-seqs", "1", "--max-concurrency", "2", "--max-model-len", "4096") as made:
        yield made


def hang_up_during(engine: Engine, path: str, body: dict[str, Any]) -> None:
    """Send a request that takes seconds, wait until it runs, and close the connection."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    before = engine.metric("generation_tokens_total")
    with socket.create_connection(("127.0.0.1", engine.port), timeout=PATIENCE) as connection:
        connection.sendall(head + content)
        while engine.metric("generation_tokens_total") < before + 3:
            assert engine.process.poll() is None


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_client_that_hangs_up_frees_its_slot(narrow: Engine, path: str, stream: bool) -> None:
    before = narrow.metric("generation_tokens_total")
    body = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "stream": stream, **ENDLESS}
    hang_up_during(narrow, path, body)
    narrow.wait_until_idle()
    assert narrow.complete(max_tokens=2).status == 200
    assert narrow.metric("generation_tokens_total") - before < 3900


def test_a_client_that_hangs_up_while_waiting_leaves_the_queue(narrow: Engine) -> None:
    first, _ = narrow.open("POST", "/v1/completions", json.dumps({"prompt": "hi", "stream": True, **ENDLESS}).encode())
    content = json.dumps({"prompt": "hi", "max_tokens": 3}).encode()
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=PATIENCE) as second:
        second.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        while not narrow.metric("num_requests_waiting"):
            assert narrow.metric("num_requests_running")
    while narrow.metric("num_requests_waiting"):
        assert narrow.metric("num_requests_running")
    first.close()
    narrow.wait_until_idle()


def test_more_requests_than_the_limit_are_a_429(narrow: Engine) -> None:
    body = json.dumps({"prompt": "hi", "stream": True, **ENDLESS}).encode()
    held = [narrow.open("POST", "/v1/completions", body)[0] for _ in range(2)]
    reply = narrow.chat()
    for connection in held:
        connection.close()
    assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
    assert (reply.error["message"], reply.error["code"]) == ("Too many requests, current max concurrency is 2", "rate_limit_exceeded")
    assert narrow.get("/health").status == 200
    narrow.wait_until_idle()


def test_without_a_served_name_the_path_is_the_name_and_any_is_accepted(narrow: Engine) -> None:
    assert narrow.get("/v1/models").json["data"][0]["id"] == str(DEMO)
    assert narrow.complete(model="whatever", max_tokens=1).json["model"] == str(DEMO)
