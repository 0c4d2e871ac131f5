"""Responses and Messages at the worker's own faces: a real engine behind, the official clients before."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from handler.job import ROUTES
from handler.translation.exchange import TRANSLATIONS
from tests.handler.test_http import ready, serving
from tests.handler.worker_process import cpu_engine

pytestmark = pytest.mark.anyio

GREEDY: Any = {"temperature": 0}
MESSAGES: Any = [{"role": "user", "content": "What is FastDeploy?"}]


def test_every_translated_route_is_let_through() -> None:
    assert set(TRANSLATIONS) <= set(ROUTES)


async def test_the_official_clients_get_the_answers_that_a_chat_gets(engine_variables: dict[str, str]) -> None:
    async with serving(engine_variables) as (_, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        async with (
            openai.AsyncOpenAI(base_url=url + "/openai/v1", api_key="none", max_retries=0) as client,
            anthropic.AsyncAnthropic(base_url=url + "/openai", api_key="none", max_retries=0) as claude,
        ):
            chat = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=24)
            text = chat.choices[0].message.content
            assert text
            assert chat.usage

            response = await client.responses.create(model="demo", input="What is FastDeploy?", temperature=0, max_output_tokens=24)
            assert response.output_text == text
            assert response.usage
            assert response.usage.output_tokens == chat.usage.completion_tokens
            asked: Any = {"model": "demo", "input": "What is FastDeploy?", "temperature": 0, "max_output_tokens": 24, "stream": True}
            events = [event async for event in await client.responses.create(**asked)]
            assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
            assert events[-1].type in {"response.completed", "response.incomplete"}

            message = await claude.messages.create(model="demo", messages=MESSAGES, max_tokens=24, extra_body=GREEDY)
            assert "".join(block.text for block in message.content if block.type == "text") == text
            async with claude.messages.stream(model="demo", messages=MESSAGES, max_tokens=24, extra_body=GREEDY) as said:
                assert await said.get_final_text() == text
            count = await claude.messages.count_tokens(model="demo", messages=MESSAGES)
            assert count.input_tokens == chat.usage.prompt_tokens


async def test_errors_are_told_as_each_api_tells_them(engine_variables: dict[str, str]) -> None:
    async with serving(engine_variables) as (_, url), aiohttp.ClientSession() as session:
        async with session.post(url + "/v1/messages", json={"model": "demo", "messages": MESSAGES, "max_tokens": 4}) as early:
            if early.status != 200:
                assert (await early.json())["type"] == "error"
        await ready(session, url)

        async def refused(path: str, body: Any) -> Any:
            async with session.post(url + path, json=body) as answer:
                assert answer.status == 400, await answer.text()
                return await answer.json()

        broken = await refused("/v1/messages?beta=true", {"model": "demo", "messages": MESSAGES})
        assert broken["type"] == "error"
        assert broken["error"]["type"] == "invalid_request_error"
        assert broken["error"]["message"].startswith("max_tokens")
        # The engine's own refusal, of a field that has another name in its chat.
        broken = await refused("/v1/messages", {"model": "demo", "messages": MESSAGES, "max_tokens": 4, "top_p": 5})
        assert broken["type"] == "error"
        assert broken["error"]["message"].startswith("top_p")
        broken = await refused("/v1/responses", {"model": "demo", "input": "Hello", "max_output_tokens": -1})
        assert broken["error"]["param"] == "max_output_tokens"
        assert "max_output_tokens" in broken["error"]["message"]


async def test_a_stream_whose_engine_dies_ends_with_an_error_of_its_api() -> None:
    async with serving(cpu_engine()) as (worker, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        body = {"model": "demo", "messages": MESSAGES, "max_tokens": 400, "stream": True}
        async with session.post(url + "/v1/messages", json=body) as answer:
            assert answer.status == 200
            assert (await answer.content.readline()) == b"event: message_start\n"
            worker.engine().kill()
            rest = await answer.read()
        event = rest.rstrip().rpartition(b"\n\n")[2]
        assert event.startswith(b"event: error\n"), event
        assert json.loads(event.partition(b"data: ")[2])["error"]["type"] == "overloaded_error"
        await worker.wait()
