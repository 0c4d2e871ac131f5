from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidJob
from handler.translation.exchange import TRANSLATIONS
from tests.strategies import JSON_VALUES, SETTINGS

from .chats import Json, Said

IMAGE = {"type": "input_image", "image_url": "https://example.com/a.png"}
REQUESTS: dict[str, Json] = {
    "/v1/responses": {
        "model": "demo",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}, IMAGE]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "I look."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]},
            {"type": "function_call", "call_id": "c", "name": "open", "namespace": "door", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "open"}]},
        ],
        "tools": [
            {"type": "function", "name": "clock", "description": "Tells the time.", "parameters": {"type": "object"}, "strict": True},
            {"type": "namespace", "name": "door", "description": "A door.", "tools": [{"type": "function", "name": "open"}]},
        ],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "metadata": {"a": "b"},
        "prompt_cache_options": {"mode": "implicit"},
        "store": False,
        "stream": True,
    },
    "/v1/messages": {
        "model": "demo",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I look.", "signature": ""},
                    {"type": "text", "text": "Wait."},
                    {"type": "tool_use", "id": "c", "name": "clock", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "12"}], "is_error": True},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ],
            },
        ],
        "tools": [{"name": "clock", "description": "Tells the time.", "input_schema": {"type": "object"}, "strict": True}],
        "tool_choice": {"type": "tool", "name": "clock", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "stop_sequences": ["end"],
        "stream": True,
    },
}
COUNTED = {name: value for name, value in REQUESTS["/v1/messages"].items() if name not in {"max_tokens", "stop_sequences", "stream"}}
REQUESTS["/v1/messages/count_tokens"] = COUNTED


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a JSON value with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


@pytest.mark.parametrize("route", REQUESTS)
@SETTINGS
@given(st.data())
def test_whatever_is_sent_becomes_a_chat_or_an_error_that_names_a_field(route: str, data: st.DataObject) -> None:
    """Rule: "A job ends exactly once: with its output, or with an OpenAI error object." """
    request = copy.deepcopy(REQUESTS[route])
    for _ in range(data.draw(st.integers(0, 2))):
        container, key = data.draw(st.sampled_from(list(places(request))))
        container[key] = data.draw(JSON_VALUES)
    before = copy.deepcopy(request)
    try:
        translation = TRANSLATIONS[route](request)
    except InvalidJob as error:
        assert error.status == 400
        assert error.param
        assert str(error).startswith(error.param)
        assert len(str(error)) < 1000
    else:
        json.dumps(translation.chat)
        json.dumps(translation.whole(Said(text="Hi").whole()))
    assert json.dumps(request) == json.dumps(before), "the request is the caller's"


@pytest.mark.parametrize("route", REQUESTS)
def test_the_requests_that_are_changed_are_valid(route: str) -> None:
    assert TRANSLATIONS[route](REQUESTS[route]).chat["messages"]
