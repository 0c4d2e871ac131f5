"""Chat templates are the engine's: what says how to render a prompt arrives there as it was given."""

from __future__ import annotations

import json
import shlex
from typing import Any

import aiohttp
import pytest

from tests.handler.worker_process import Worker, replayed_engine
from tools.serve.job_server import JobServer

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "Hello"}]


async def seen_bodies(worker: Worker) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(worker.engine_url + "/__seen") as response:
        return [json.loads(entry["body"]) for entry in await response.json() if entry["path"] == "/v1/chat/completions"]


async def test_templates_of_a_request_arrive_at_the_engine(jobs: JobServer) -> None:
    template, switches = "{{ messages[0].content }}", {"enable_thinking": False, "style": "brief"}
    asked = {"messages": MESSAGES, "chat_template": template, "chat_template_kwargs": switches}
    async with Worker(replayed_engine(), jobs.environment()) as worker:
        await jobs.submit({"openai_route": "/v1/chat/completions", "openai_input": asked}).wait_done(30)
        await jobs.submit(asked).wait_done(10)
        await jobs.submit({"prompt": "Hello", "apply_chat_template": True, "sampling_params": {"chat_template": template}}).wait_done(10)
        first, second, third = await seen_bodies(worker)
    for body in (first, second):
        assert (body["messages"], body["chat_template"], body["chat_template_kwargs"]) == (MESSAGES, template, switches)
    assert (third["messages"], third["chat_template"]) == (MESSAGES, template)


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "/etc/template.jinja"], ids=["text", "file"])
async def test_the_deployments_template_is_the_engines_flag(template: str) -> None:
    async with Worker(replayed_engine("--start-delay", "30"), {"CHAT_TEMPLATE": template}) as worker:
        await worker.wait_line("Waiting for worker processes")
        argv = shlex.split((await worker.wait_line("starting the fastdeploy engine: ")).partition("engine: ")[2])
        assert argv[argv.index("--chat-template") + 1] == template
