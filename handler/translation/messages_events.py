"""Write an answer as Anthropic's /v1/messages does: content blocks, the events that build them up, and errors in Anthropic's shape."""

from __future__ import annotations

import json
from typing import Any

from handler.translation.answer import Arguments, Began, Call, Piece, Text, Thought, Usage, Writer, event_frame

__all__ = ["MessageWriter", "error_object"]

_STOPS = {"length": "max_tokens", "content_filter": "refusal"}
"""Why a chat ended -> stop_reason, where it is neither a call nor the end of the turn."""

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Status -> type of error; for other statuses an `invalid_request_error` below 500, an `api_error` from 500 on."""

_TEXTS = {"thinking": "thinking", "text": "text", "tool_use": "partial_json"}
_DELTAS = {"thinking": "thinking_delta", "text": "text_delta", "tool_use": "input_json_delta"}
"""Block -> field of its text in a delta, and type of that delta."""


class MessageWriter(Writer):
    """Writes one Message; thoughts that are `hidden` leave an empty block."""

    def __init__(self, *, hidden: bool = False) -> None:
        self._message: dict[str, Any] = {"type": "message", "role": "assistant", "content": [], "stop_reason": None, "stop_sequence": None}
        self._usage = _usage(Usage(0, 0, 0, 0))
        self._hidden, self._called = hidden, False
        self._frames: list[bytes] = []
        self._block: dict[str, Any] = {}
        """The block that is being written, empty between two."""
        self._said: list[str] = []

    def take(self, piece: Piece) -> list[bytes]:
        """Return the events that the next piece makes."""
        if isinstance(piece, Began):
            self._message |= {"id": f"msg_{piece.id}", "model": piece.model}
            self._tell("message_start", message=self._message | {"usage": self._usage})
            self._tell("ping")
        elif isinstance(piece, Thought):
            self._more("thinking", "" if self._hidden else piece.text)
        elif isinstance(piece, Text):
            self._more("text", piece.text)
        elif isinstance(piece, Call):
            self._called = True
            self._open({"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})
        elif isinstance(piece, Arguments):
            self._more("tool_use", piece.text)
        elif isinstance(piece, Usage):
            self._usage = _usage(piece)
        else:
            self._close()
            ended = "tool_use" if self._called else "stop_sequence" if piece.stop else "end_turn"
            self._message |= {"stop_reason": _STOPS.get(piece.reason, ended), "stop_sequence": piece.stop}
        return self._leaving()

    def end(self) -> list[bytes]:
        """Return the last events."""
        self._close()
        ended = {name: self._message[name] for name in ("stop_reason", "stop_sequence")}
        self._tell("message_delta", delta=ended, usage=self._usage)
        self._tell("message_stop")
        return self._leaving()

    def answer(self) -> dict[str, Any]:
        """Return the Message."""
        return self._message | {"usage": self._usage}

    def broken(self, status: int, body: dict[str, Any]) -> list[bytes]:
        """Return the event of the error."""
        return [event_frame(error_object(status, body))]

    def _more(self, kind: str, text: str) -> None:
        """Add to the block of that kind, or begin one."""
        if self._block.get("type") != kind:
            self._open({"type": "thinking", "thinking": "", "signature": ""} if kind == "thinking" else {"type": "text", "text": ""})
        if text:
            self._said.append(text)
            self._tell("content_block_delta", index=self._index, delta={"type": _DELTAS[kind], _TEXTS[kind]: text})

    def _open(self, block: dict[str, Any]) -> None:
        self._close()
        self._block = block
        self._tell("content_block_start", index=self._index, content_block=block)

    def _close(self) -> None:
        """Finish the block that is being written."""
        if not self._block:
            return
        text, kind = "".join(self._said), self._block["type"]
        self._block |= {"input": _input(text)} if kind == "tool_use" else {_TEXTS[kind]: text}
        self._tell("content_block_stop", index=self._index)
        self._message["content"].append(self._block)
        self._block, self._said = {}, []

    @property
    def _index(self) -> int:
        return len(self._message["content"])

    def _tell(self, kind: str, **fields: Any) -> None:
        self._frames.append(event_frame({"type": kind} | fields))

    def _leaving(self) -> list[bytes]:
        frames, self._frames = self._frames, []
        return frames


def error_object(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAI error object in Anthropic's shape."""
    kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}


def _input(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object; text that is none, such as that of a call that was cut, is kept under one name.

    The name is the one that Anthropic documents for giving a broken input back to the model.
    """
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}


def _usage(usage: Usage) -> dict[str, Any]:
    """Return the tokens as Anthropic counts them: those read from a cache are not among `input_tokens`."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.thought},
    }
