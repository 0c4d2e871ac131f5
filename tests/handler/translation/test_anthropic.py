"""Messages against Anthropic's own client: its types are the schema, and it reads what the translation writes."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic import types
from anthropic.types import message_create_params
from anthropic.types.beta import BetaOutputConfigParam
from anthropic.types.beta import message_create_params as beta_create_params
from anthropic.types.shared import ErrorResponse
from hypothesis import given

from handler.translation import messages_fields as fields
from handler.translation.fields import Table
from tests.strategies import SETTINGS

from .chat_server import Chat, serving
from .chats import SIZES, Call, Json, Said, answers, streamed
from .schema import fields_of, validated
from .test_messages_events import EVERYTHING, messages

CLOCK: Any = {
    "name": "clock",
    "description": "Tells the time.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALLS = Said(
    thought="I look.",
    calls=(Call(id="call_a", name="clock", arguments='{"city": "Paris"}'), Call(id="call_b", name="clock")),
    reason="tool_calls",
)


@pytest.mark.parametrize(
    ("table", "kinds"),
    [
        (
            fields.REQUEST,
            (
                message_create_params.MessageCreateParamsBase,
                message_create_params.MessageCreateParamsStreaming,
                beta_create_params.MessageCreateParamsBase,
            ),
        ),
        (fields.COUNT, (types.MessageCountTokensParams,)),
        (fields.MESSAGE, (types.UserMessageParam, types.AssistantMessageParam, types.SystemMessageParam)),
        (fields.USER_BLOCKS["text"], (types.TextBlockParam,)),
        (fields.USER_BLOCKS["image"], (types.ImageBlockParam,)),
        (fields.USER_BLOCKS["tool_result"], (types.ToolResultBlockParam,)),
        (fields.ASSISTANT_BLOCKS["thinking"], (types.ThinkingBlockParam,)),
        (fields.ASSISTANT_BLOCKS["redacted_thinking"], (types.RedactedThinkingBlockParam,)),
        (fields.ASSISTANT_BLOCKS["tool_use"], (types.ToolUseBlockParam,)),
        (fields.SOURCES["base64"], (types.Base64ImageSourceParam,)),
        (fields.SOURCES["url"], (types.URLImageSourceParam,)),
        (fields.TOOLS["custom"], (types.ToolParam,)),
        (fields.TOOL_CHOICES["auto"], (types.ToolChoiceAutoParam,)),
        (fields.TOOL_CHOICES["any"], (types.ToolChoiceAnyParam,)),
        (fields.TOOL_CHOICES["tool"], (types.ToolChoiceToolParam,)),
        (fields.TOOL_CHOICES["none"], (types.ToolChoiceNoneParam,)),
        (fields.THINKING["enabled"], (types.ThinkingConfigEnabledParam,)),
        (fields.THINKING["adaptive"], (types.ThinkingConfigAdaptiveParam,)),
        (fields.THINKING["disabled"], (types.ThinkingConfigDisabledParam,)),
        (fields.OUTPUT, (types.OutputConfigParam, BetaOutputConfigParam)),
        (fields.OUTPUT_FORMAT["json_schema"], (types.JSONOutputFormatParam,)),
    ],
)
def test_every_field_of_the_published_schema_has_its_row(table: Table, kinds: tuple[Any, ...]) -> None:
    """Rule: "Nothing asked is dropped in silence. An option is honoured, or refused by name, or reported once." """
    rows = [set(table.translated), set(table.no_effect), set(table.refused)]
    assert fields_of(*kinds) <= set.union(*rows)
    assert sum(map(len, rows)) == len(set.union(*rows)), "a field has two rows"
    assert set(table.harmless) <= set(table.refused)


@SETTINGS
@given(answers(), SIZES)
def test_every_event_is_of_the_schema(said: Said, sizes: list[int]) -> None:
    for event in streamed(messages(stream=True), said.frames(sizes)):
        if event["type"] != "ping":  # no type of the client's: it reads over these
            validated(types.RawMessageStreamEvent, event)
    validated(types.Message, messages().whole(said.whole()))


def test_errors_and_counts_are_of_the_schema() -> None:
    for status in (400, 401, 403, 404, 413, 429, 500, 503, 504):
        validated(ErrorResponse, messages().error(status, {"error": {"message": "m", "param": None}})[1])
    validated(types.MessageTokensCount, {"input_tokens": 5})


def client(chat: Chat) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=chat.url, api_key="test", max_retries=0)


def test_the_client_streams_the_message_that_it_gets_whole() -> None:
    question: Json = {"model": "demo", "max_tokens": 99, "messages": [{"role": "user", "content": "What time is it?"}], "tools": [CLOCK]}
    with serving(EVERYTHING) as chat, client(chat) as there:
        whole = there.messages.create(**question)
        with there.messages.stream(**question) as stream:
            thoughts = "".join(event.thinking for event in stream if event.type == "thinking")
            final = stream.get_final_message()
    assert thoughts == "Let me see."
    assert final.model_dump(exclude_none=True) == whole.model_dump(exclude_none=True)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]


def test_the_client_completes_a_tool_loop() -> None:
    talk: list[Any] = [{"role": "user", "content": "What time is it?"}]
    with serving(CALLS, Said(text="It is noon.")) as chat, client(chat) as there:
        while True:
            with there.messages.stream(model="demo", max_tokens=99, messages=talk, tools=[CLOCK], system="Be brief.") as stream:
                answer = stream.get_final_message()
            talk.append({"role": "assistant", "content": answer.content})
            results = [{"type": "tool_result", "tool_use_id": b.id, "content": "noon"} for b in answer.content if b.type == "tool_use"]
            if not results:
                break
            talk.append({"role": "user", "content": results})
    assert answer.content[-1].to_dict() == {"type": "text", "text": "It is noon."}
    assert [message["role"] for message in chat.asked[-1]["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert chat.asked[-1]["messages"][2]["reasoning_content"] == "I look."


def test_the_client_counts_tokens() -> None:
    with serving(Said(text="H")) as chat, client(chat) as there:
        assert there.messages.count_tokens(model="demo", messages=[{"role": "user", "content": "Hi"}], tools=[CLOCK]).input_tokens == 5


def test_the_client_raises_what_is_refused_and_what_breaks() -> None:
    question: Json = {"model": "demo", "max_tokens": 99, "messages": [{"role": "user", "content": "Hi"}]}
    with serving(EVERYTHING, breaks=True) as chat, client(chat) as there:
        with pytest.raises(anthropic.BadRequestError, match="container"):
            there.messages.create(**question, container="c")
        with pytest.raises(anthropic.APIStatusError, match="the engine died"), there.messages.stream(**question) as stream:
            stream.get_final_message()
