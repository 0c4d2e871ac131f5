"""The OpenAI Agents SDK, an agent with two tools, over a socket."""

from __future__ import annotations

import asyncio

import agents
import pytest
from openai import AsyncOpenAI

from .chat_server import serving
from .chats import Call, Said

LOOP = (
    Said(thought="I look.", calls=(Call(id="call_a", name="clock", arguments='{"city": "Paris"}'),), reason="tool_calls"),
    Said(text="Now I add.", calls=(Call(id="call_b", name="add", arguments='{"a": 12, "b": 2}'),), reason="tool_calls"),
    Said(text="It will be 14."),
)


@agents.function_tool
def clock(city: str) -> str:
    """Tell the hour in a city."""
    return f"12 in {city}"


@agents.function_tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_completes_a_loop_with_two_tools(stream: bool) -> None:
    async def run(url: str) -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="test", max_retries=0) as there:
            model = agents.OpenAIResponsesModel(model="demo", openai_client=there)
            settings = agents.ModelSettings(store=False)
            agent = agents.Agent(name="clerk", instructions="Use the tools.", model=model, model_settings=settings, tools=[clock, add])
            if not stream:
                return str((await agents.Runner.run(agent, "What time is it in two hours?")).final_output)
            running = agents.Runner.run_streamed(agent, "What time is it in two hours?")
            async for _ in running.stream_events():
                pass
            return str(running.final_output)

    agents.set_tracing_disabled(disabled=True)
    with serving(*LOOP) as chat:
        assert asyncio.run(run(chat.url)) == "It will be 14."
    assert [message["role"] for message in chat.asked[-1]["messages"]] == "system user assistant tool assistant tool".split()
    assert [message["content"] for message in chat.asked[-1]["messages"] if message["role"] == "tool"] == ["12 in Paris", "14"]
