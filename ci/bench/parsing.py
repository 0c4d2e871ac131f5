"""What a streamed token costs in the worker's parsers of calls and thoughts: `ci/just bench parsing [seconds=0.3]`.

Each row is a stream in FastDeploy's form, one frame for a token. The columns are microseconds of processor time per token: `look` does
nothing but search a frame for its `"delta":`, which is the cost that text must not exceed by more than a tenth; the others are
`Rewriter.frame` for a request without tools and for one with tools. The exit code is 1 when text cost more.

prose   words                         code    words, newlines and lone `<`, of which each may begin a mark
thought everything inside a thought   call    the name and arguments of calls, in the form of each family
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from handler.parsing.families import FAMILIES
from handler.parsing.reading import Reasoning
from handler.parsing.rewriter import Rewriter
from images.arguments import Command, Key, number
from tests.handler.parsing.answers import BODY, render

TOKENS = 2000
ALLOWED = 1.1
"""Of `look`, that a token of prose may cost."""
_HEAD = {
    "id": "chatcmpl-58d72b5f-2591-4c2d-b10b-d4aaa01e6276",
    "object": "chat.completion.chunk",
    "created": 1795433461,
    "model": "my-model",
}
_REST = {"prompt_token_ids": None, "completion_token_ids": None, "reasoning_content": "", "tool_calls": None}


def stream(text: str) -> list[bytes]:
    """Return a text, again and again, in frames of a token each."""
    tokens = re.findall(r"<[^>]*>|\s?\w+|\s+|.", text)
    tokens = (tokens * (TOKENS // len(tokens) + 1))[:TOKENS]
    more = {"logprobs": None, "draft_logprobs": None, "arrival_time": 0.0077130794525146484}
    return [
        b"data: "
        + json.dumps(
            _HEAD | {"choices": [{"index": 0, "delta": {"content": token} | _REST} | more]}, ensure_ascii=False, separators=(",", ":")
        ).encode()
        + b"\n\n"
        for token in tokens
    ]


def look(frame: bytes) -> list[bytes]:
    """Do the least that tells one frame from another."""
    return [frame] if b'"delta":' in frame else []


def rewriter(family: str | None, reasoning: Reasoning | None, body: Mapping[str, Any]) -> Callable[[bytes], list[bytes]]:
    """Return what takes the frames of a new answer."""
    return Rewriter(FAMILIES[family] if family else None, reasoning, body).frame


def cost(made: Callable[[], Callable[[bytes], list[bytes]]], frames: list[bytes], seconds: float) -> float:
    """Return microseconds per token, of the fastest of the trials that fit into some seconds."""
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        take, start = made(), time.process_time_ns()
        for frame in frames:
            take(frame)
        best = min(best, (time.process_time_ns() - start) / 1000 / len(frames))
    return best


def run(values: Mapping[str, str]) -> int:
    """Print the table; returns 1 if prose cost more than is allowed."""
    seconds = float(values["seconds"])
    call = ("get_weather", {"city": "Reykjavik and the villages around it", "days": 3, "units": "c"})
    rows: list[tuple[str, str | None, Reasoning | None, str]] = [
        ("prose", "hermes", None, "The quick brown fox jumps over the lazy dog, again and again. "),
        ("code", "hermes", None, "for (i = 0; i < n; i++) {\n    if (a[i] < b) return a[i];\n}\n"),
        ("thought", None, Reasoning(opened=True), "The user wants to know how the fox jumps over the dog. "),
        *((f"call {name}", name, None, render(name, [call])) for name in FAMILIES),
    ]
    print(f"{'us/token':16}{'look':>8}{'without':>9}{'with':>8}")
    worst = 0.0
    for name, family, reasoning, text in rows:
        frames = stream(text)
        least = cost(lambda: look, frames, seconds)
        without, with_tools = (cost(partial(rewriter, family, reasoning, body), frames, seconds) for body in ({}, BODY))
        print(f"{name:16}{least:8.2f}{without:9.2f}{with_tools:8.2f}")
        if name == "prose":
            worst = max(without, with_tools) / least
    print(f"prose: {worst:.2f} of look, allowed {ALLOWED}")
    return int(worst > ALLOWED)


COMMAND = Command(
    name="bench parsing",
    help="What a streamed token costs in the parsers of calls and thoughts.",
    keys=(Key("seconds", "How long each figure is measured.", default="0.3", check=number(0.01)),),
    run=run,
)
