"""The official `openai` client against the gateway, the real SDK loop and the CPU engine, as it will be used in production."""

from __future__ import annotations

import time
from collections.abc import Iterator

import openai
import pytest

from tests.tools.serve.running import KEY, Twin

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "What is FastDeploy?"}]
TEXT = "FastDeploy is PaddlePaddle's engine"


@pytest.fixture(scope="module")
def client(twin: Twin) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{twin.base}/openai/v1", api_key=KEY, max_retries=0, timeout=30) as made:
        yield made


def test_a_chat_is_answered_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=64)
    assert answer.object == "chat.completion"
    assert (answer.choices[0].message.content or "").startswith(TEXT)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.completion_tokens > 5


def test_a_chat_is_streamed_and_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=64)
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=MESSAGES, temperature=0, max_tokens=64, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.usage for chunk in chunks if chunk.usage][-1] is not None
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_clients_own_helper_for_streams_puts_the_answer_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=MESSAGES, temperature=0, max_tokens=64) as stream:
        content = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert (final.choices[0].message.content or "").startswith(TEXT)
    assert "".join(content) == final.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_text_is_completed(client: openai.OpenAI, stream: bool) -> None:
    answer = client.completions.create(model="demo", prompt="FastDeploy is", temperature=0, max_tokens=8, stream=stream)
    chunks = [answer] if isinstance(answer, openai.types.Completion) else list(answer)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text.strip()


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


@pytest.mark.parametrize(
    ("change", "error", "param", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", None),
        ({"temperature": -1}, openai.BadRequestError, "temperature", None),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", None),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, openai.BadRequestError, None, None),
    ],
    ids=["model", "messages", "temperature", "max_tokens", "too-long"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_mistake_is_raised_as_the_class_that_it_is(
    client: openai.OpenAI, change: dict[str, object], error: type[openai.APIStatusError], param: str | None, code: str | None, stream: bool
) -> None:
    with pytest.raises(error) as raised:
        client.post("/chat/completions", body={"model": "demo", "messages": MESSAGES, "stream": stream} | change, cast_to=object)
    assert raised.value.type in {"invalid_request_error", "not_found_error"}
    assert param in {None, raised.value.param}
    assert code in {None, raised.value.code}
    assert raised.value.message
    assert "Traceback" not in raised.value.message


def test_an_unknown_route_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises((openai.NotFoundError, openai.BadRequestError), match="nope"):
        client.post("/nope", body={"a": 1}, cast_to=object)


def test_a_wrong_key_and_a_wrong_endpoint_are_told_apart(twin: Twin) -> None:
    with openai.OpenAI(base_url=f"{twin.base}/openai/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.NotFoundError, match="elsewhere: not found"):
            stranger.with_options(base_url=f"{twin.url}/v2/elsewhere/openai/v1").models.list()


def test_a_client_that_leaves_a_stream_frees_the_worker(client: openai.OpenAI, twin: Twin) -> None:
    before = time.monotonic()
    stream = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=64, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=64)
    assert (answer.choices[0].message.content or "").startswith(TEXT)
    assert time.monotonic() - before < 30
