"""Tools, as FastDeploy was recorded calling them, through the gateway to the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.handler.test_transcripts import FLAGS, SERVED
from tests.handler.worker_process import replayed_engine
from tests.tools.serve.running import Twin
from tests.twins.replay.recordings import json_object, named


def asked(case: str) -> Any:
    """The body of a recorded request."""
    return json_object(named("2.3", case).request.body)


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    engine = replayed_engine("--setup", "x1", "--twins", fallbacks=("base_cmpl_stream",))
    variables = engine | {"SERVED_MODEL_NAME": SERVED["x1"], "MAX_MODEL_LEN": "4096", **FLAGS["x1"]}
    with Twin("engine=fastdeploy", variables=variables) as twin:
        twin.ready()
        with openai.OpenAI(base_url=f"{twin.base}/openai/v1", api_key="none", max_retries=0, timeout=30) as made:
            yield made


def test_a_tool_call_arrives_whole(client: openai.OpenAI) -> None:
    body = asked("x1_tool1")
    [choice] = client.chat.completions.create(model=SERVED["x1"], **body).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})


def test_a_tool_call_arrives_in_a_stream(client: openai.OpenAI) -> None:
    body = asked("x1_tool1_stream")
    name = arguments = ""
    reasons = []
    for chunk in client.chat.completions.create(model=SERVED["x1"], **body):
        for choice in chunk.choices:
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or []:
                assert call.function
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert (name, json.loads(arguments), reasons) == ("get_weather", {"city": "Paris"}, ["tool_calls"])
