"""What counts as an answer: each kind of request against each way in which one can go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.twins.rest_api import KEY, Twin, answer
from tools.deploy.acceptance import AcceptanceTest, EndpointClient
from tools.deploy.deploy_errors import RolloutFailed

pytestmark = pytest.mark.anyio

CHAT = {"openai_route": "/v1/chat/completions", "openai_input": {"messages": []}}
STREAM = {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [], "stream": True}}
MODELS = {"openai_route": "/v1/models", "openai_input": {}}
GENERIC = {"route": "/v1/embeddings", "method": "POST", "body": {"input": "x"}}
NATIVE = {"prompt": "x"}
FRAME = 'data: {"choices": []}\n\n'
ERROR = {"error": {"message": "the engine has died", "type": "server_error"}}


async def ask(job: dict[str, Any], worker: Callable[[web.Request, Any], Any] = answer, timeout: float = 20) -> list[tuple[str, str, Any]]:
    """Send one test to an endpoint whose worker answers so, and return what was asked of it."""
    async with Twin() as twin, aiohttp.ClientSession() as session:
        identity = twin.add("mine")["id"]
        twin.answers[twin.image] = worker
        url = f"http://{twin.address}/queue/{identity}"
        client = EndpointClient(session, KEY, url=f"{url}/openai/v1", jobs=url, pause=0.02, say=lambda _: None)
        await client.run((AcceptanceTest(name="it", input=job, timeout=timeout),), cold_start=0)
        return twin.asked


@pytest.mark.parametrize(
    ("job", "method", "path", "body"),
    [
        (CHAT, "POST", "/openai/v1/chat/completions", {"messages": []}),
        (MODELS, "GET", "/openai/v1/models", None),
        (GENERIC, "POST", "/openai/v1/embeddings", {"input": "x"}),
        (NATIVE, "POST", "/runsync", {"input": {"prompt": "x"}}),
    ],
    ids=["chat", "models", "generic", "native"],
)
async def test_each_shape_of_a_job_goes_where_a_client_would_send_it(job: Any, method: str, path: str, body: Any) -> None:
    [(sent, where, what)] = await ask(job)
    assert (sent, where.removeprefix("/queue/ep000000"), what) == (method, path, body)


@pytest.mark.parametrize(
    ("job", "status", "text", "complaint"),
    [
        (CHAT, 500, json.dumps(ERROR), "the engine has died"),
        (CHAT, 200, json.dumps(ERROR), "the engine has died"),
        (CHAT, 200, json.dumps({"error": json.dumps(ERROR)}), "the engine has died"),
        (CHAT, 200, " ", "an empty answer"),
        (CHAT, 400, '{"title": "Bad Request", "status": 400, "detail": "no such route"}', "400 Bad Request: no such route"),
        (CHAT, 401, "", "401 Unauthorized"),
        (STREAM, 200, f"{FRAME}data: [DONE]\n\n", ""),
        (STREAM, 200, f"{FRAME}data: {json.dumps(ERROR)}\n\ndata: [DONE]\n\n", "the engine has died"),
        (STREAM, 200, FRAME, "a stream that breaks off after 1 frames"),
        (STREAM, 200, "data: [DONE]\n\n", "a stream without a frame"),
        (STREAM, 200, "<html>", "a stream that breaks off after 0 frames"),
        (NATIVE, 200, '{"status": "COMPLETED", "output": [{"choices": []}]}', ""),
        (NATIVE, 200, '{"status": "COMPLETED", "output": null}', "an empty output"),
        (NATIVE, 200, json.dumps({"status": "FAILED", "error": json.dumps(ERROR)}), "the engine has died"),
        (NATIVE, 200, '{"status": "TIMED_OUT"}', "the job ended as TIMED_OUT"),
        (NATIVE, 200, "[]", "not what is said of a job"),
    ],
)
async def test_an_answer_passes_only_whole_and_without_an_error(job: Any, status: int, text: str, complaint: str) -> None:
    async def worker(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    if complaint:
        with pytest.raises(RolloutFailed) as failed:
            await ask(job, worker)
        assert str(failed.value).startswith(f"test 'it' failed: {complaint}")
    else:
        assert len(await ask(job, worker)) == 1


@pytest.mark.parametrize("said", [502, 503, 524, 429, 404, 500, None], ids=str)
async def test_what_a_gateway_says_while_no_worker_is_there_is_asked_again(said: int | None) -> None:
    tries: list[int] = []

    async def worker(request: web.Request, body: Any) -> web.StreamResponse:
        tries.append(1)
        if len(tries) > 2:
            return await answer(request, body)
        if said is None:
            assert request.transport
            request.transport.abort()
        return web.Response(status=said or 200, text="no worker")

    await ask(CHAT, worker)
    assert len(tries) == 3


async def test_a_job_that_is_still_on_its_way_is_asked_after_and_not_sent_again() -> None:
    states = iter(["IN_QUEUE", "IN_PROGRESS", "COMPLETED"])

    async def worker(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.json_response({"id": "sync-7", "status": next(states), "output": ["x"]})

    asked = await ask(NATIVE, worker)
    assert [(method, path.rpartition("ep000000/")[2]) for method, path, _ in asked] == [
        ("POST", "runsync"),
        *[("GET", "status/sync-7")] * 2,
    ]


async def test_a_test_ends_when_its_time_is_up() -> None:
    async def worker(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.Response(status=503, text="no workers available")

    with pytest.raises(RolloutFailed, match="503 Service Unavailable: no workers available, and its time was up"):
        await ask(CHAT, worker, timeout=3)
