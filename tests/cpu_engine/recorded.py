"""Answers of FastDeploy 2.3 as recorded: the JSON of a transcript, and its shape to compare with."""

from __future__ import annotations

import json
from typing import Any

from tests.twins.replay.recordings import named


def frames(name: str) -> list[bytes]:
    """Return the SSE frames of a recorded stream, or its whole body as the only one."""
    return [frame for frame in named("2.3", name).body.split(b"\n\n") if frame.strip()]


def values(name: str) -> list[dict[str, Any]]:
    """Return the JSON values of a recorded answer, without the end mark."""
    pieces = [frame.removeprefix(b"data: ").strip() for frame in frames(name)]
    return [json.loads(piece) for piece in pieces if piece != b"[DONE]"]


def shape(value: object) -> object:
    """Return keys in order and types of a JSON value; a list has the shapes of its elements, once each."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        shapes: list[object] = []
        for item in value:
            if shape(item) not in shapes:
                shapes.append(shape(item))
        return ["list", shapes]
    return type(value).__name__


def shapes(events: list[dict[str, Any]]) -> list[object]:
    """Return the shapes of a stream's events, each once, in the order of their first appearance."""
    found: list[object] = []
    for event in events:
        if shape(event) not in found:
            found.append(shape(event))
    return found
