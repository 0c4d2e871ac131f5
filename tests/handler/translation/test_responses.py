from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import responses as types
from openai.types.responses import response_create_params, response_input_item_param, response_reasoning_item_param
from openai.types.responses.namespace_tool_param import NamespaceToolParam, ToolFunction
from openai.types.responses.response_create_params import PromptCacheOptions, ResponseCreateParamsBase
from openai.types.responses.tool_choice_allowed_param import ToolChoiceAllowedParam
from openai.types.responses.tool_choice_function_param import ToolChoiceFunctionParam
from openai.types.shared_params import Reasoning

from handler.errors import InvalidJob
from handler.translation import responses_fields as fields
from handler.translation.fields import Table
from handler.translation.responses import Responses
from tests.strategies import SETTINGS

from .chats import Json, chats
from .schema import fields_of

FUNCTION = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}, "strict": True}


def asked(**more: Any) -> Json:
    """Return the chat that a small request becomes."""
    return Responses({"model": "demo", "input": "Hi"} | more).chat


def said(*items: Any) -> list[Json]:
    """Return the messages that input items become."""
    messages: list[Json] = asked(input=list(items))["messages"]
    return messages


# Schema


@pytest.mark.parametrize(
    ("table", "kinds"),
    [
        (fields.REQUEST, (ResponseCreateParamsBase, response_create_params.ResponseCreateParamsStreaming)),
        (fields.PROMPT_CACHE, (PromptCacheOptions,)),
        (fields.REASONING, (Reasoning,)),
        (fields.TEXT, (types.ResponseTextConfigParam,)),
        (fields.FORMATS["json_schema"], (types.ResponseFormatTextJSONSchemaConfigParam,)),
        (fields.FUNCTIONS["function"], (types.FunctionToolParam, ToolFunction)),
        (fields.TOOLS["namespace"], (NamespaceToolParam,)),
        (fields.TOOL_CHOICES["function"], (ToolChoiceFunctionParam,)),
        (fields.TOOL_CHOICES["allowed_tools"], (ToolChoiceAllowedParam,)),
        (
            fields.ITEMS["message"],
            (types.EasyInputMessageParam, response_input_item_param.Message, types.ResponseOutputMessageParam),
        ),
        (fields.ITEMS["reasoning"], (types.ResponseReasoningItemParam,)),
        (fields.ITEMS["function_call"], (types.ResponseFunctionToolCallParam,)),
        (fields.ITEMS["function_call_output"], (response_input_item_param.FunctionCallOutput,)),
        (fields.PARTS["input_text"], (types.ResponseInputTextParam, types.ResponseInputTextContentParam)),
        (fields.PARTS["input_image"], (types.ResponseInputImageParam, types.ResponseInputImageContentParam)),
        (fields.OUTPUT_PARTS["output_text"], (types.ResponseOutputTextParam,)),
        (fields.OUTPUT_PARTS["refusal"], (types.ResponseOutputRefusalParam,)),
        (fields.THOUGHTS["content"]["reasoning_text"], (response_reasoning_item_param.Content,)),
        (fields.THOUGHTS["summary"]["summary_text"], (response_reasoning_item_param.Summary,)),
    ],
)
def test_every_field_of_the_published_schema_has_its_row(table: Table, kinds: tuple[Any, ...]) -> None:
    """Rule: "Nothing asked is dropped in silence. An option is honoured, or refused by name, or reported once." """
    rows = [table.translated, set(table.no_effect), set(table.refused)]
    assert fields_of(*kinds) <= set.union(*map(set, rows))
    assert sum(map(len, rows)) == len(set.union(*map(set, rows))), "a field has two rows"
    assert set(table.harmless) <= set(table.refused)


def test_everything_that_include_may_ask_for_is_known() -> None:
    assert set(get_args(types.ResponseIncludable)) <= set(fields.INCLUDED)


# A chat in the words of Responses, and back


def parts_of(content: Any, kind: str) -> list[Json]:
    """Return a chat's content as a list of parts."""
    if isinstance(content, str):
        return [{"type": kind, "text": content}]
    return [
        {"type": kind, "text": part["text"]} if part["type"] == "text" else {"type": "input_image", "image_url": part["image_url"]["url"]}
        for part in content
    ]


def items_of(message: Json, data: st.DataObject) -> list[Json]:
    """Return a chat's message as input items, in any of the spellings that mean the same."""
    role, content = message["role"], message["content"]
    noise = data.draw(st.sampled_from([{}, {"id": "x", "status": "completed"}]))
    short = isinstance(content, str) and data.draw(st.booleans())
    if role == "tool":
        output = content if short else parts_of(content, "input_text")
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": output} | noise]
    if role != "assistant":
        spelled = data.draw(st.sampled_from(["system", "developer"])) if role == "system" else role
        item = {"role": spelled, "content": content if short else parts_of(content, "input_text")}
        return [item | data.draw(st.sampled_from([{}, {"type": "message"}]))]
    items: list[Json] = []
    if "reasoning_content" in message:
        thought = message["reasoning_content"]
        forms = [
            {"summary": [], "content": [{"type": "reasoning_text", "text": thought}]},
            {"summary": [{"type": "summary_text", "text": thought}]},
            {"summary": [{"type": "summary_text", "text": "brief"}], "content": [{"type": "reasoning_text", "text": thought}]},
        ]
        items.append({"type": "reasoning", "id": "rs_1"} | data.draw(st.sampled_from(forms)))
    if content:
        items.append({"type": "message", "role": role, "content": content if short else parts_of(content, "output_text")} | noise)
    calls = message.get("tool_calls", ())
    return items + [{"type": "function_call", "call_id": call["id"], **call["function"]} | noise for call in calls]


def request_of(chat: Json, data: st.DataObject) -> Json:
    """Return the request that asks for the chat."""
    same_names = "model temperature top_p top_k seed stop chat_template_kwargs parallel_tool_calls stream".split()
    request: Json = {name: chat[name] for name in same_names if name in chat}
    messages = chat["messages"]
    if messages[0]["role"] == "system" and data.draw(st.booleans()):
        request["instructions"], messages = messages[0]["content"], messages[1:]
    request["input"] = [item for message in messages for item in items_of(message, data)]
    request["max_output_tokens"] = chat["max_completion_tokens"]
    if "reasoning_effort" in chat:
        request["reasoning"] = {"effort": chat["reasoning_effort"]}
    if "response_format" in chat:
        request["text"] = {"format": {"type": "json_schema"} | chat["response_format"]["json_schema"]}
    if "tools" in chat:
        request["tools"] = [{"type": "function"} | tool["function"] for tool in chat["tools"]]
        choice = chat.get("tool_choice", "auto")
        request["tool_choice"] = {"type": "function"} | choice["function"] if isinstance(choice, dict) else choice
    return request


@SETTINGS
@given(chats(), st.data())
def test_a_chat_said_in_the_words_of_responses_is_that_chat_again(chat: Json, data: st.DataObject) -> None:
    """Law: translation of any valid request and back loses nothing that has a place in the other."""
    assert Responses(request_of(chat, data)).chat == chat


# Examples


def test_a_text_is_what_the_user_says() -> None:
    assert asked() == {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}


def test_instructions_and_what_developers_say_first_are_one_system_message() -> None:
    chat = asked(instructions="Be brief.", input=[{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi"}])
    assert chat["messages"] == [{"role": "system", "content": "Be brief.\n\nBe kind."}, {"role": "user", "content": "Hi"}]


def test_parts_that_are_texts_become_one_text() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert said({"role": "user", "content": parts}) == [{"role": "user", "content": "a\nb"}]


def test_a_turn_is_one_message_and_a_text_after_a_call_begins_another() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    text = {"role": "assistant", "content": "b"}
    assert [sorted(message) for message in said(call, call, text, text)] == [
        ["content", "role", "tool_calls"],
        ["content", "role"],
        ["content", "role"],
    ]


def test_a_thought_is_kept_before_its_summary() -> None:
    thought = {
        "type": "reasoning",
        "content": [{"type": "reasoning_text", "text": "a"}],
        "summary": [{"type": "summary_text", "text": "b"}],
    }
    assert said(thought) == [{"role": "assistant", "content": "", "reasoning_content": "a"}]


def test_thoughts_that_cannot_be_read_are_left_out_with_a_reason() -> None:
    made = Responses(
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}, {"role": "user", "content": "Hi"}]}
    )
    assert made.chat["messages"] == [{"role": "user", "content": "Hi"}]
    assert "encrypted_content has no effect: only OpenAI can read it" in made.no_effect


def test_what_the_model_refused_to_say_is_what_it_said() -> None:
    assert said({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}) == [{"role": "assistant", "content": "No."}]


def test_the_detail_of_an_image_is_kept() -> None:
    image = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}
    (message,) = said({"role": "user", "content": [image]})
    assert message["content"] == [{"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}]


@pytest.mark.parametrize(
    ("given_fields", "chat_fields"),
    [
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        ({"text": {}}, {}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
        ({"store": False, "background": False, "truncation": "disabled", "previous_response_id": None}, {}),
        ({"reasoning": {"effort": "none", "summary": "auto"}}, {"reasoning_effort": "none"}),
        ({"prompt_cache_options": {"mode": "implicit", "prewarm": False}}, {}),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"metadata": {"a": "b"}, "user": "u", "stream": False}, {}),
    ],
)
def test_each_option_has_its_place_in_the_chat(given_fields: Json, chat_fields: Json) -> None:
    assert asked(**given_fields) == asked() | chat_fields


def test_only_allowed_tools_are_offered() -> None:
    tools = [FUNCTION, FUNCTION | {"name": "calculator"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "calculator"}]}
    chat = asked(tools=tools, tool_choice=choice)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["calculator"]
    assert chat["tool_choice"] == "required"


def test_functions_of_a_namespace_carry_its_name_and_description() -> None:
    functions = [{"type": "function", "name": "open", "description": "Opens."}, {"type": "function", "name": "close"}]
    chat = asked(tools=[{"type": "namespace", "name": "door", "description": "A door.", "tools": functions}])
    assert [tool["function"] for tool in chat["tools"]] == [
        {"name": "door__open", "description": "A door.\n\nOpens."},
        {"name": "door__close", "description": "A door."},
    ]
    call = {"type": "function_call", "call_id": "c", "namespace": "door", "name": "open", "arguments": "{}"}
    assert said(call)[0]["tool_calls"][0]["function"]["name"] == "door__open"


@pytest.mark.parametrize(
    ("given_fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 1}, "input"),
        ({"input": ["Hi"]}, "input[0]"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0].file_id"),
        ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "u"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type"),
        ({"input": [{"type": "custom_tool_call", "name": "f"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}, "input[0].arguments"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"include": ["thoughts"]}, "include[0]"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "f"}]}, "tools[0].type"),
        ({"tools": [FUNCTION | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": "f"}]}]}, "tools[0].tools[0].type"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(given_fields: Json, param: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        asked(**given_fields)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")


def test_an_error_of_the_chat_names_the_field_of_the_request() -> None:
    body = {"error": {"message": "max_completion_tokens: got 0, expected 1", "type": "t", "param": "max_completion_tokens", "code": None}}
    status, made = Responses({"input": "Hi"}).error(400, body)
    assert (status, made["error"]["param"], made["error"]["message"]) == (400, "max_output_tokens", "max_output_tokens: got 0, expected 1")
    other = {"error": {"message": "busy", "type": "t", "param": None, "code": None}}
    assert Responses({"input": "Hi"}).error(429, other) == (429, other)
