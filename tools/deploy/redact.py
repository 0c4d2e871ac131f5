"""What is printed: every secret masked, and a client's first lines at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from tools.deploy.api import Json
from tools.deploy.fitness import is_secret

__all__ = ["Mask", "openai_url", "secrets_of", "snippet"]

DEFAULT_ENDPOINTS = "https://api.runpod.ai/v2"

_SHAPES = re.compile(r"\b(hf_\w{8,}|rpa_\w{8,}|sk-[\w-]{8,})|(?<=Bearer )\S+")
"""What keys of Hugging Face, RunPod and OpenAI look like, and what follows the word Bearer."""
_SHORTEST = 4
"""Letters: a shorter value is no secret, and masking it would only garble the text."""


class Mask:
    """Replaces secrets in whatever is printed. More may be learnt later."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values: set[str] = set()
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """Mask these too."""
        self._values |= {value for value in values if len(value) >= _SHORTEST and not value.startswith("{{ RUNPOD_SECRET_")}

    def __call__(self, text: str) -> str:
        """Return `text` without them."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, "***").replace(json.dumps(value)[1:-1], "***")
        return _SHAPES.sub("***", text)


def secrets_of(env: Mapping[str, str]) -> list[str]:
    """Return the values of an endpoint's variables that must not be shown."""
    return [text for name, text in env.items() if is_secret(name)]


def openai_url(endpoint: Json, *, base: str | None) -> str:
    """Return the base URL that an OpenAI client needs; `base` stands in for RunPod's own address of queues' endpoints."""
    if endpoint.get("type") == "LOAD_BALANCER":
        named = (endpoint.get("requestUrls") or {}).get("base") or f"https://{endpoint['id']}.api.runpod.ai"
        return f"{named.rstrip('/')}/v1"
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
