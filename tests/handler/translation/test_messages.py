from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidJob
from handler.translation.messages import CountTokens, Messages
from tests.strategies import SETTINGS

from .chats import Json, Said, chats

TOOL = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
SMALL = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


def asked(**more: Any) -> Json:
    """Return the chat that a small request becomes."""
    return Messages(SMALL | more).chat


def said(*messages: Any) -> list[Json]:
    """Return the messages that Anthropic's become, a last word of the user's left out."""
    made: list[Json] = asked(messages=[*messages, {"role": "user", "content": "."}])["messages"]
    return made[:-1]


# A chat in the words of Messages, and back


def blocks_of(content: Any, data: st.DataObject) -> Any:
    """Return a chat's content as blocks, or as a text where it is one and that may be."""
    noise = data.draw(st.sampled_from([{}, {"cache_control": {"type": "ephemeral"}}]))
    if isinstance(content, str):
        return content if data.draw(st.booleans()) else [{"type": "text", "text": content} | noise]
    blocks: list[Json] = []
    for part in content:
        if part["type"] == "text":
            blocks.append(part | noise)
            continue
        head, comma, image = part["image_url"]["url"].partition(",")
        kind = head.removeprefix("data:").removesuffix(";base64")
        source = {"type": "base64", "media_type": kind, "data": image} if comma else {"type": "url", "url": head}
        blocks.append({"type": "image", "source": source} | noise)
    return blocks


def message_of(message: Json, data: st.DataObject) -> Json:
    """Return a chat's message as Anthropic has it."""
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": blocks_of(message["content"], data)}
        return {"role": "user", "content": [result | data.draw(st.sampled_from([{}, {"is_error": False}]))]}
    if message["role"] != "assistant":
        return {"role": message["role"], "content": blocks_of(message["content"], data)}
    blocks: list[Json] = []
    if "reasoning_content" in message:
        blocks.append({"type": "thinking", "thinking": message["reasoning_content"], "signature": ""})
    if message["content"]:
        blocks.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls", ()):
        function = call["function"]
        blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": json.loads(function["arguments"])})
    return {"role": "assistant", "content": blocks}


def request_of(chat: Json, data: st.DataObject) -> Json:
    """Return the request that asks for the chat."""
    same_names = "model temperature top_p top_k seed stream chat_template_kwargs".split()
    request: Json = {name: chat[name] for name in same_names if name in chat}
    messages = chat["messages"]
    if messages[0]["role"] == "system" and data.draw(st.booleans()):
        request["system"], messages = blocks_of(messages[0]["content"], data), messages[1:]
    given_messages = [message_of(message, data) for message in messages]
    request["messages"] = together(given_messages) if data.draw(st.booleans()) else given_messages
    request["max_tokens"] = chat["max_completion_tokens"]
    output = {"effort": chat["reasoning_effort"]} if "reasoning_effort" in chat else {}
    if "response_format" in chat:
        output["format"] = {"type": "json_schema", "schema": chat["response_format"]["json_schema"]["schema"]}
    request |= {"output_config": output} if output else {}
    request |= {"stop_sequences": chat["stop"]} if "stop" in chat else {}
    if "tools" in chat:
        functions = [dict(tool["function"]) for tool in chat["tools"]]
        request["tools"] = [{"input_schema": function.pop("parameters")} | function for function in functions]
        choice = chat.get("tool_choice", "auto")
        chosen = {"type": "tool"} | choice["function"] if isinstance(choice, dict) else {"type": {"required": "any"}.get(choice, choice)}
        parallel = {} if chat.get("parallel_tool_calls", True) else {"disable_parallel_tool_use": True}
        if choice == "none":
            chat.pop("parallel_tool_calls", None)  # Anthropic's `none` has no such field
            parallel = {}
        request["tool_choice"] = chosen | parallel
    return request


def together(messages: list[Json]) -> list[Json]:
    """Return the messages with results that stand side by side in one message of the user."""
    made: list[Json] = []
    for message in messages:
        results = isinstance(message["content"], list) and message["content"][0]["type"] == "tool_result"
        if results and made and made[-1]["role"] == "user" and made[-1]["content"][0]["type"] == "tool_result":
            made[-1] = {"role": "user", "content": made[-1]["content"] + message["content"]}
        else:
            made.append(message)
    return made


@SETTINGS
@given(chats(), st.data())
def test_a_chat_said_in_the_words_of_messages_is_that_chat_again(chat: Json, data: st.DataObject) -> None:
    """Law: translation of any valid request and back loses nothing that has a place in the other."""
    request = request_of(chat, data)
    assert same(Messages(request).chat) == same(chat)


def same(chat: Json) -> Json:
    """Return a chat with the arguments of its calls read, since a call's input is an object and no text."""
    made: Json = json.loads(json.dumps(chat))
    for call in (call for message in made["messages"] for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return made


@SETTINGS
@given(chats(), st.data())
def test_tokens_are_counted_of_the_prompt_that_the_request_would_make(chat: Json, data: st.DataObject) -> None:
    request = request_of(chat, data)
    sent = Messages(request).chat
    answers = {"max_tokens", "stream", "stop_sequences", "temperature", "top_p", "top_k", "seed"}
    count = CountTokens({name: value for name, value in request.items() if name not in answers})
    prompt = {name: sent[name] for name in ("model", "messages", "tools", "chat_template_kwargs", "reasoning_effort") if name in sent}
    assert count.chat == prompt | {"max_completion_tokens": 1}
    assert count.whole(Said(text="H").whole()) == {"input_tokens": 5}


# Examples


def test_a_small_request_is_a_small_chat() -> None:
    assert asked() == {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 9}


def test_system_blocks_are_one_system_message() -> None:
    blocks = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    assert asked(system=blocks)["messages"][0] == {"role": "system", "content": "Be brief.\nBe kind."}


def test_results_and_what_the_user_says_beside_them_keep_their_order() -> None:
    blocks = [
        {"type": "tool_result", "tool_use_id": "a", "content": "1"},
        {"type": "tool_result", "tool_use_id": "b"},
        {"type": "text", "text": "And now?"},
    ]
    assert said({"role": "user", "content": blocks}) == [
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": ""},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no such file", "Error: no such file"),
        (
            [{"type": "image", "source": {"type": "url", "url": "u"}}],
            [{"type": "text", "text": "Error:"}, {"type": "image_url", "image_url": {"url": "u"}}],
        ),
    ],
)
def test_a_result_that_is_an_error_says_so_in_its_text(content: Any, told: Any) -> None:
    block = {"type": "tool_result", "tool_use_id": "a", "content": content, "is_error": True}
    assert said({"role": "user", "content": [block]}) == [{"role": "tool", "tool_call_id": "a", "content": told}]


def test_texts_side_by_side_are_one_and_thoughts_that_cannot_be_read_are_left_out() -> None:
    blocks = [
        {"type": "redacted_thinking", "data": "x"},
        {"type": "thinking", "thinking": "", "signature": "x"},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert said({"role": "assistant", "content": blocks}) == [{"role": "assistant", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("given_fields", "chat_fields"),
    [
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_max_tokens": 2048},
        ),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"a": 1}},
            {"chat_template_kwargs": {"a": 1, "enable_thinking": False}},
        ),
        ({"output_config": {"effort": "high"}}, {}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
        ({"stop_sequences": []}, {}),
        ({"tools": [], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, {}),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto", "stream": False, "container": None}, {}),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}, {}),
    ],
)
def test_each_option_has_its_place_in_the_chat(given_fields: Json, chat_fields: Json) -> None:
    assert asked(**given_fields) == asked() | chat_fields


@pytest.mark.parametrize(
    ("given_fields", "param"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "A"}}]}]},
            "messages[0].content[0].source.media_type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"task_budget": {}}}, "output_config.task_budget"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"max_completion_tokens": 1}, "max_completion_tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(given_fields: Json, param: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        asked(**given_fields)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")


@pytest.mark.parametrize("name", ["max_tokens", "stream", "stop_sequences", "temperature"])
def test_what_only_an_answer_has_is_unknown_where_tokens_are_counted(name: str) -> None:
    with pytest.raises(InvalidJob, match=f"^{name}: unknown field"):
        CountTokens({"model": "demo", "messages": SMALL["messages"], name: 1})
