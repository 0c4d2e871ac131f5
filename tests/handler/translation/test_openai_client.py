"""Responses against OpenAI's own client, over a socket."""

from __future__ import annotations

import openai
import pytest
from openai.types.responses import FunctionToolParam, ResponseInputParam
from pydantic import BaseModel

from .chat_server import Chat, serving
from .chats import Call, Said
from .test_responses_events import EVERYTHING

CLOCK: FunctionToolParam = {
    "type": "function",
    "name": "clock",
    "description": "Tells the time.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": None,
}
CALLS = Said(thought="I look.", calls=(Call(id="call_a", name="clock"), Call(id="call_b", name="clock")), reason="tool_calls")


def client(chat: Chat) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{chat.url}/v1", api_key="test", max_retries=0)


def test_the_client_streams_the_response_that_it_gets_whole() -> None:
    with serving(EVERYTHING) as chat, client(chat) as there:
        whole = there.responses.create(model="demo", input="What time is it?", tools=[CLOCK], store=False)
        with there.responses.stream(model="demo", input="What time is it?", tools=[CLOCK], store=False) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            final = stream.get_final_response()
    assert text == final.output_text == whole.output_text == "Wait."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.type for item in whole.output] == [item.type for item in final.output]
    assert final.usage == whole.usage


def test_the_client_completes_a_tool_loop_without_anything_stored() -> None:
    talk: ResponseInputParam = [{"role": "user", "content": "What time is it?"}]
    with serving(CALLS, Said(text="It is noon.")) as chat, client(chat) as there:
        while True:
            answer = there.responses.create(model="demo", instructions="Be brief.", input=talk, tools=[CLOCK], store=False)
            talk += answer.output  # type: ignore[arg-type]  # as OpenAI's guide to function calling does
            calls = [item for item in answer.output if item.type == "function_call"]
            if not calls:
                break
            talk += [{"type": "function_call_output", "call_id": call.call_id, "output": "noon"} for call in calls]
    assert answer.output_text == "It is noon."
    assert [message["role"] for message in chat.asked[-1]["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert chat.asked[-1]["messages"][2]["reasoning_content"] == "I look."


class City(BaseModel):
    name: str


def test_the_client_parses_a_structured_answer() -> None:
    with serving(Said(text='{"name": "Paris"}')) as chat, client(chat) as there:
        answer = there.responses.parse(model="demo", input="A city?", text_format=City)
    assert answer.output_parsed == City(name="Paris")
    (asked,) = chat.asked
    assert asked["response_format"]["json_schema"]["name"] == "City"
    assert asked["response_format"]["json_schema"]["strict"] is True


def test_the_client_raises_what_is_refused_and_sees_what_breaks() -> None:
    with serving(EVERYTHING, breaks=True) as chat, client(chat) as there:
        with pytest.raises(openai.BadRequestError, match="previous_response_id") as caught:
            there.responses.create(model="demo", input="Hi", previous_response_id="resp_1")
        assert caught.value.param == "previous_response_id"
        last = list(there.responses.create(model="demo", input="Hi", stream=True))[-1]
        assert last.type == "response.failed"
        assert last.response.error
        assert last.response.error.message == "the engine died"
