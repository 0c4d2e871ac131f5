"""The address of an endpoint for OpenAI clients, and the first lines of one."""

from __future__ import annotations

from tools.deploy.api_answers import Endpoint
from tools.deploy.runpod_api import is_secure

__all__ = ["DEFAULT_ENDPOINTS", "openai_url", "snippet"]

DEFAULT_ENDPOINTS = "https://api.runpod.ai/v2"


def openai_url(endpoint: Endpoint, *, base: str | None) -> str:
    """Return the base URL that an OpenAI client needs; `base` stands in for RunPod's own address of queues' endpoints."""
    if endpoint.get("type") == "LOAD_BALANCER":
        named = endpoint.get("requestUrls", {}).get("base", "")
        address = named if is_secure(named) else f"https://{endpoint['id']}.api.runpod.ai"
        return address.rstrip("/") + "/v1"
    return f"{base or DEFAULT_ENDPOINTS}/{endpoint['id']}/openai/v1"


def snippet(url: str, model: str) -> str:
    """Return lines for a client, ready to paste; the key stays in the environment."""
    return f"""\
from openai import OpenAI  # pip install openai
import os

client = OpenAI(base_url={url!r}, api_key=os.environ["RUNPOD_API_KEY"])
for chunk in client.chat.completions.create(
    model={model!r}, messages=[{{"role": "user", "content": "Hello"}}], stream=True
):
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
"""
