"""Made-up tokens: FastDeploy's form, at the rate that was asked for."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import openai
import pytest

from tests.twins.replay.child import Child, running
from tests.twins.replay.recordings import named

pytestmark = pytest.mark.anyio

BODY = {"messages": [{"role": "user", "content": "go"}], "stream": True, "stream_options": {"include_usage": True}}


async def events(session: aiohttp.ClientSession, server: Child, path: str, body: dict[str, Any]) -> list[bytes]:
    async with session.post(f"{server.url}{path}", json=body) as response:
        *found, rest = (await response.read()).split(b"\n\n")
    assert (response.status, rest) == (200, b"")
    return found


def shape(value: Any) -> Any:
    """Field names in order, all the way down."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else None


def shapes(found: list[bytes]) -> list[Any]:
    """One shape per kind of event: first, second, last with a choice, usage."""
    values = [json.loads(event.removeprefix(b"data: ")) for event in found[:-1]]
    return [list(shape(value).items()) for value in (values[0], values[1], values[-2], values[-1])]


@pytest.mark.parametrize(
    ("path", "body", "case"),
    [
        ("/v1/chat/completions", BODY, "base_chat_stream_usage"),
        ("/v1/completions", {"prompt": "go", "stream": True, "stream_options": {}}, "base_cmpl_stream"),
    ],
    ids=["chat", "text"],
)
async def test_its_events_have_the_fields_and_the_order_of_fields_of_2_3(path: str, body: dict[str, Any], case: str) -> None:
    recorded = named("2.3", case).body.split(b"\n\n")[:-1]
    async with running("2.3", "--synthetic", "--tokens-per-second", "1000", "--tokens", "5") as server, aiohttp.ClientSession() as session:
        found = await events(session, server, path, body)
    assert shapes(found) == shapes(recorded)
    assert [event.endswith(b" ") for event in found[:2]] == [event.endswith(b" ") for event in recorded[:2]]
    assert found[-1] == b"data: [DONE]"
    assert json.loads(found[-2].removeprefix(b"data: "))["usage"]["completion_tokens"] == 5


async def test_fifty_streams_keep_their_rate_and_their_own_ids() -> None:
    count, tokens, rate = 50, 40, 50.0
    async with running("2.3", "--synthetic", "--tokens-per-second", str(rate), "--tokens", str(tokens)) as server:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            began = time.monotonic()
            found = await asyncio.gather(*(events(session, server, "/v1/chat/completions", BODY) for _ in range(count)))
            took = time.monotonic() - began
        entries = await server.seen(ended=count)
    assert took >= tokens / rate
    assert {len(one) for one in found} == {tokens + 4}  # role, finish, usage, [DONE]
    assert len({json.loads(one[0].removeprefix(b"data: "))["id"] for one in found}) == count
    assert {(entry["ended"], entry["events"], entry["events_total"]) for entry in entries} == {("finished", tokens + 4, tokens + 4)}


async def test_the_openai_client_reads_it_streamed_and_whole_and_may_ask_for_fewer_tokens() -> None:
    messages: Any = BODY["messages"]
    async with (
        running("2.3", "--synthetic", "--tokens-per-second", "500", "--tokens", "12") as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client,
    ):
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True, max_tokens=7)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        whole = await client.chat.completions.create(model="m", messages=messages, max_completion_tokens=7)
        text = await client.completions.create(model="m", prompt="go")
    assert streamed == whole.choices[0].message.content == " the engine says 你好, token"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 7
    assert text.usage is not None
    assert text.usage.completion_tokens == 12


async def test_an_aborted_stream_is_seen_and_stops() -> None:
    data = json.dumps(BODY).encode()
    async with running("2.3", "--synthetic", "--tokens-per-second", "100", "--tokens", "2000") as server:
        await server.abandon(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data, after_events=5)
        (entry,) = await server.seen(ended=1)
    assert entry["ended"] == "aborted-by-client"
    assert 5 <= entry["events"] < 200


async def test_faults_strike_synthetic_streams_too() -> None:
    async with (
        running("2.3", "--synthetic", "--tokens", "10", "--fault", "cut-stream:3") as server,
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/chat/completions", json=BODY) as response,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
