"""How a job's output becomes an answer in OpenAI's form, with the worker's part of the job API spoken by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.tools.serve.by_hand import JSON, Gateway, serving

pytestmark = pytest.mark.anyio
CHAT = "openai/v1/chat/completions"
BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = BODY | {"stream": True}
FRAMES = ['data: {"choices": [{"delta": {"content": "日本"}}]}\n\n', 'data: {"n": 2}\n\ndata: {"n": 3}\n\n', "data: [DONE]\n\n"]


@pytest.fixture
async def api() -> AsyncIterator[Gateway]:
    async with serving() as gateway:
        yield gateway


async def begun(api: Gateway, frame: str = FRAMES[0]) -> str:
    """Take the next job and send the first frame of its answer."""
    job = await api.take()
    assert job["input"] == {"openai_route": "/v1/chat/completions", "openai_input": STREAM}
    await api.say(job["id"], frame)
    return str(job["id"])


async def test_each_yield_reaches_the_client_while_the_worker_still_writes(api: Gateway) -> None:
    worker = asyncio.create_task(begun(api))
    async with api.client.post(f"{api.base}/{CHAT}", json=STREAM) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        job, read = await worker, b""
        for sent, frame in enumerate(FRAMES[1:], 1):
            while len(read) < len("".join(FRAMES[:sent]).encode()):
                read += await response.content.readany()
            await api.say(job, frame)
        await api.end(job, output=FRAMES)
        read += await response.content.read()
        assert read.decode() == "".join(FRAMES)
    assert not api.table.entries, "the result is dropped with the answer"
    assert (await api.call("GET", "health"))[1]["jobs"]["completed"] == 1


@pytest.mark.parametrize(
    ("output", "answer"),
    [([{"object": "chat.completion"}], {"object": "chat.completion"}), ({"a": 1}, {"a": 1}), ([{"a": 1}, {"b": 2}], [{"a": 1}, {"b": 2}])],
)
async def test_an_answer_that_is_no_stream_is_one_object(api: Gateway, output: Any, answer: Any) -> None:
    asked = asyncio.create_task(api.call("POST", CHAT, BODY))
    job = (await api.take())["id"]
    await api.say(job, {"object": "chat.completion"})
    await api.end(job, output=output)
    assert await asked == (200, answer)


async def test_a_stream_of_which_no_yield_arrived_is_read_from_the_result(api: Gateway) -> None:
    asked = asyncio.create_task(api.client.post(f"{api.base}/{CHAT}", json=STREAM))
    await api.end((await api.take())["id"], output=FRAMES)
    response = await asked
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert await response.text() == "".join(FRAMES)


async def test_a_get_is_a_job_with_an_empty_body_and_its_query(api: Gateway) -> None:
    asked = asyncio.create_task(api.call("GET", "openai/v1/models?limit=1"))
    job = await api.take()
    assert job["input"] == {"openai_route": "/v1/models?limit=1", "openai_input": {}}
    await api.end(job["id"], output=[{"object": "list", "data": []}])
    assert await asked == (200, {"object": "list", "data": []})


@pytest.mark.parametrize(
    ("type_", "code", "status"),
    [
        ("invalid_request_error", "invalid_value", 400),
        ("invalid_request_error", None, 400),
        ("invalid_request_error", "model_not_found", 404),
        ("authentication_error", None, 401),
        ("permission_error", None, 403),
        ("not_found_error", None, 404),
        ("rate_limit_error", None, 429),
        ("timeout_error", "engine_timeout", 504),
        ("server_error", "engine_died", 503),
        ("server_error", "internal_error", 500),
        ("something new", None, 500),
    ],
)
@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_a_failed_job_is_the_workers_error_object_with_its_status(
    api: Gateway, body: dict[str, Any], type_: str, code: str | None, status: int
) -> None:
    error = {"error": {"message": "no", "type": type_, "param": "p", "code": code}}
    asked = asyncio.create_task(api.call("POST", CHAT, body))
    await api.end((await api.take())["id"], error=json.dumps(error))
    assert await asked == (status, error)


@pytest.mark.parametrize("said", ["boom", '{"error": 5}', "[1]", '"x"', "", {"a": 1}])
async def test_an_error_of_any_other_form_is_a_500_that_quotes_it(api: Gateway, said: Any) -> None:
    asked = asyncio.create_task(api.call("POST", CHAT, BODY))
    await api.end((await api.take())["id"], error=said)
    status, answer = await asked
    text = said if isinstance(said, str) else json.dumps(said)
    assert (status, answer["error"]) == (500, {"message": text, "type": "server_error", "param": None, "code": "job_failed"})


async def test_a_failure_after_the_first_frame_ends_the_stream_with_what_the_worker_said_last(api: Gateway) -> None:
    worker = asyncio.create_task(begun(api))
    async with api.client.post(f"{api.base}/{CHAT}", json=STREAM) as response:
        job = await worker
        await api.say(job, 'data: {"error": {"message": "died"}}\n\n')
        await api.end(job, error='{"error": {"message": "died"}}')
        assert (response.status, await response.text()) == (200, FRAMES[0] + 'data: {"error": {"message": "died"}}\n\n')


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_a_job_that_times_out_is_a_504_or_an_error_event(form: str) -> None:
    async with serving(execution_s=0.2) as api:
        if form == "whole":
            asked = asyncio.create_task(api.call("POST", CHAT, BODY))
            await api.take()
            status, answer = await asked
            assert (status, answer["error"]["code"]) == (504, "job_timed_out")
            return
        worker = asyncio.create_task(begun(api))
        async with api.client.post(f"{api.base}/{CHAT}", json=STREAM) as response:
            text = await response.text()
        assert text.startswith(FRAMES[0] + "data: ")
        assert json.loads(text.split("data: ")[2])["error"]["code"] == "job_timed_out"
        assert await api.told_to_stop() == [await worker]


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_a_client_that_leaves_cancels_its_job(api: Gateway, form: str) -> None:
    if form == "whole":
        asked = asyncio.create_task(api.call("POST", CHAT, BODY))
        job = (await api.take())["id"]
        asked.cancel()
    else:
        worker = asyncio.create_task(begun(api))
        response = await api.client.post(f"{api.base}/{CHAT}", json=STREAM)
        job = await worker
        response.close()
    assert await api.told_to_stop() == [job]
    assert (await api.status(job))["status"] == "CANCELLED"


@pytest.mark.parametrize("body", ["{", "[]", '"x"'])
async def test_a_body_that_is_no_object_is_refused_before_it_is_a_job(api: Gateway, body: str) -> None:
    async with api.client.post(f"{api.base}/{CHAT}", data=body, headers=JSON) as response:
        answer = await response.json()
    assert (response.status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert not api.table.entries


async def test_a_route_outside_v1_is_not_there(api: Gateway) -> None:
    status, answer = await api.call("GET", "openai/models")
    assert (status, answer["error"]["type"]) == (404, "not_found_error")
