"""The worker's HTTP face, spoken to by the official OpenAI client."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest

from tests.handler.worker_process import Worker, aborted_at, replayed_engine

pytestmark = pytest.mark.anyio

MESSAGES: Any = [{"role": "user", "content": "What is FastDeploy?"}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(variables: dict[str, str]) -> AsyncIterator[tuple[Worker, str]]:
    port = free_port()
    async with Worker(variables, {"PORT": str(port)}) as worker:
        await worker.wait_line("answering on port")
        yield worker, f"http://127.0.0.1:{port}"


async def ready(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(600):
        async with session.get(url + "/ping") as ping:
            if ping.status == 200:
                return
            assert ping.status == 204
        await asyncio.sleep(0.05)
    pytest.fail("not ready within 30 s")


async def test_the_openai_client_gets_chat_completions_and_models(engine_variables: dict[str, str]) -> None:
    async with serving(engine_variables) as (worker, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        for base in ("/v1", "/openai/v1"):
            async with openai.AsyncOpenAI(base_url=url + base, api_key="none", max_retries=0) as client:
                whole = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=64)
                text = whole.choices[0].message.content
                assert text
                assert whole.usage is not None
                assert whole.usage.completion_tokens > 0

                pieces = await client.chat.completions.create(
                    model="demo",
                    messages=MESSAGES,
                    temperature=0,
                    max_tokens=64,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                chunks = [chunk async for chunk in pieces]
                assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
                assert chunks[-1].usage is not None
                assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

                completion = await client.completions.create(model="demo", prompt="User: Hello\nAssistant: ", temperature=0, max_tokens=16)
                assert completion.choices[0].text
                assert [part async for part in await client.completions.create(model="demo", prompt="Hello", max_tokens=4, stream=True)]

                assert (await client.models.list()).data[0].id
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert not worker.left_behind()


async def test_errors_arrive_as_the_right_exception_classes(engine_variables: dict[str, str]) -> None:
    async with serving(engine_variables) as (_, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError, match="body: missing or empty") as bad:
                await client.post("/chat/completions", cast_to=object, body={})
            assert bad.value.param == "body"
            with pytest.raises(openai.BadRequestError, match="expected true or false"):
                await client.post("/chat/completions", cast_to=object, body={"messages": MESSAGES, "stream": "yes"})
            with pytest.raises(openai.NotFoundError, match="/v1/fine_tuning/jobs: no such route"):
                await client.fine_tuning.jobs.list()
        async with session.get(url + "/elsewhere") as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["message"].startswith("/elsewhere: no such route")


async def test_ping_says_204_while_loading_and_requests_are_refused_until_ready() -> None:
    async with serving(replayed_engine("--start-delay", "2")) as (_, url), aiohttp.ClientSession() as session:
        async with session.get(url + "/ping") as ping:
            assert ping.status == 204
        async with session.get(url + "/v1/models") as models:
            assert (models.status, models.headers["Retry-After"]) == (503, "5")
            assert (await models.json())["error"]["code"] == "not_ready"
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none") as client:  # which sends again what may be sent again
            assert (await client.models.list()).data
        async with session.get(url + "/ping") as ping:
            assert ping.status == 200


async def answering_at(engine_url: str) -> None:
    """Return once the replayed engine is writing an answer."""
    async with aiohttp.ClientSession(engine_url) as session:
        for _ in range(600):
            async with session.get("/__seen") as seen:
                if any(entry["events"] and entry["ended"] is None for entry in await seen.json()):
                    return
            await asyncio.sleep(0.02)
    pytest.fail("no answer was begun within 12 s")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_aborts_the_engines_work(stream: bool) -> None:
    async with (
        serving(replayed_engine("--synthetic", "--tokens-per-second", "20", "--tokens", "1000")) as (worker, url),
        aiohttp.ClientSession() as session,
    ):
        await ready(session, url)
        body = {"messages": MESSAGES, "stream": stream, "max_tokens": 900}
        asked = asyncio.create_task(session.post(url + "/v1/chat/completions", json=body))
        await answering_at(worker.engine_url)
        if stream:
            (await asked).close()
        else:
            asked.cancel()
        await aborted_at(worker.engine_url)
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert "Traceback" not in worker.output


async def test_an_engine_killed_mid_stream_ends_the_stream_with_an_error_frame_and_the_worker_with_1() -> None:
    async with (
        serving(replayed_engine("--synthetic", "--tokens-per-second", "20", "--tokens", "1000")) as (worker, url),
        aiohttp.ClientSession() as session,
    ):
        await ready(session, url)
        async with session.post(url + "/v1/chat/completions", json={"messages": MESSAGES, "stream": True, "max_tokens": 900}) as answer:
            await answer.content.readuntil(b"\n\n")
            worker.remember_family()
            worker.engine().kill()
            rest = await answer.content.read()
        assert json.loads(rest.rpartition(b"data: ")[2])["error"]["code"] == "engine_died"
        assert await worker.wait() == 1
        assert not worker.left_behind()


async def test_a_taken_port_is_a_clear_error(engine_variables: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104
        taken.listen()
        port = taken.getsockname()[1]
        async with Worker(engine_variables, {"PORT": str(port)}) as worker:
            await worker.wait_line(f"error: PORT: got {port}, which is taken")
            assert await worker.wait() == 1
            assert not worker.left_behind()
