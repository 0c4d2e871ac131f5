"""Write an answer as OpenAI's /v1/responses does: output items, and the events that build them up, numbered from 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handler.translation.answer import Arguments, Began, Call, Piece, Text, Thought, Usage, Writer, event_frame

__all__ = ["ResponseWriter"]

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a chat ended -> why a response is incomplete; for any other reason it is complete."""

_FAILED = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
"""Status of an error -> code of a failed response, if it is not `server_error`."""

_PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}
"""Item -> type of its one part, after which the events of its text are named."""


class ResponseWriter(Writer):
    """Writes one Response, which holds the fields `repeated`; `names` has namespace and name of functions that came with a namespace."""

    def __init__(self, repeated: Mapping[str, Any], names: Mapping[str, tuple[str, str]]) -> None:
        self._response: dict[str, Any] = {
            "object": "response",
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            "background": False,
            "previous_response_id": None,
            "service_tier": "default",
            "truncation": "disabled",
        } | dict(repeated)
        self._names, self._reason, self._number = names, "stop", 0
        self._frames: list[bytes] = []
        self._item: dict[str, Any] = {}
        """The item that is being written, empty between two."""
        self._said: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def take(self, piece: Piece) -> list[bytes]:
        """Return the events that the next piece makes."""
        if isinstance(piece, Began):
            self._response |= {"id": f"resp_{piece.id}", "created_at": piece.created, "model": piece.model}
            self._tell("response.created", response=self._response)
            self._tell("response.in_progress", response=self._response)
        elif isinstance(piece, Thought):
            self._more("reasoning", piece.text)
        elif isinstance(piece, Text):
            self._more("message", piece.text, piece.logprobs)
        elif isinstance(piece, Call):
            namespace, name = self._names.get(piece.name, ("", piece.name))
            self._open(
                "function_call", {"call_id": piece.id, "name": name, "arguments": ""} | ({"namespace": namespace} if namespace else {})
            )
        elif isinstance(piece, Arguments):
            self._said.append(piece.text)
            self._tell("response.function_call_arguments.delta", **self._place(), delta=piece.text)
        elif isinstance(piece, Usage):
            self._response["usage"] = _usage(piece)
        else:
            self._reason = piece.reason
            self._close()
        return self._leaving()

    def end(self) -> list[bytes]:
        """Return the last event."""
        self._close()
        if self._reason in _INCOMPLETE:
            self._response |= {"status": "incomplete", "incomplete_details": {"reason": _INCOMPLETE[self._reason]}}
        else:
            self._response["status"] = "completed"
        self._tell(f"response.{self._response['status']}", response=self._response)
        return self._leaving()

    def answer(self) -> dict[str, Any]:
        """Return the Response."""
        return self._response

    def broken(self, status: int, body: dict[str, Any]) -> list[bytes]:
        """Return the event of the failure. An item that is not finished gets no last event, since clients run a call at that."""
        error = body["error"]
        if "id" in self._response:
            failure = {"code": _FAILED.get(status, "server_error"), "message": error["message"]}
            self._tell("response.failed", response=self._response | {"status": "failed", "error": failure})
        else:
            self._tell("error", code=error.get("code"), message=error["message"], param=error.get("param"))
        return self._leaving()

    def _more(self, kind: str, text: str, logprobs: list[dict[str, Any]] | None = None) -> None:
        """Add to the item of that kind, or begin one."""
        if self._item.get("type") != kind:
            self._open(kind, {"summary": [], "content": []} if kind == "reasoning" else {"role": "assistant", "content": []})
            self._tell("response.content_part.added", **self._place(), content_index=0, part=self._part(kind, ""))
        self._said.append(text)
        self._logprobs += logprobs or []
        event = {"delta": text} | ({} if logprobs is None else {"logprobs": _brief(logprobs)})
        self._tell(f"response.{_PARTS[kind]}.delta", **self._place(), content_index=0, **event)

    def _open(self, kind: str, fields: dict[str, Any]) -> None:
        self._close()
        number = len(self._response["output"])
        self._item = {"id": f"{_PREFIXES[kind]}_{self._response['id'][5:]}_{number}", "type": kind, "status": "in_progress"} | fields
        self._tell("response.output_item.added", output_index=number, item=self._item)

    def _close(self) -> None:
        """Finish the item that is being written."""
        if not self._item:
            return
        text, kind = "".join(self._said), self._item["type"]
        if kind == "function_call":
            self._item["arguments"] = text
            self._tell("response.function_call_arguments.done", **self._place(), arguments=text)
        else:
            part = self._part(kind, text)
            logprobs = {} if kind == "reasoning" else {"logprobs": _brief(self._logprobs)}
            self._tell(f"response.{_PARTS[kind]}.done", **self._place(), content_index=0, text=text, **logprobs)
            self._tell("response.content_part.done", **self._place(), content_index=0, part=part)
            self._item["content"] = [part]
        self._item["status"] = "incomplete" if self._reason in _INCOMPLETE else "completed"
        self._tell("response.output_item.done", output_index=len(self._response["output"]), item=self._item)
        self._response["output"].append(self._item)
        self._item, self._said, self._logprobs = {}, [], []

    def _part(self, kind: str, text: str) -> dict[str, Any]:
        if kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": [_full(entry) for entry in self._logprobs]}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self._response["output"])}

    def _tell(self, kind: str, **fields: Any) -> None:
        self._frames.append(event_frame({"type": kind, "sequence_number": self._number} | fields))
        self._number += 1

    def _leaving(self) -> list[bytes]:
        frames, self._frames = self._frames, []
        return frames


def _full(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat's logprob of one token as a part has it."""
    return _with_bytes(entry) | {"top_logprobs": [_with_bytes(other) for other in entry.get("top_logprobs") or ()]}


def _with_bytes(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a token and its logprob; bytes that the engine does not tell are those of the text."""
    return {"token": entry["token"], "logprob": entry["logprob"], "bytes": entry.get("bytes") or list(entry["token"].encode())}


def _brief(logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return logprobs as an event has them."""
    return [_pair(entry) | {"top_logprobs": [_pair(other) for other in entry.get("top_logprobs") or ()]} for entry in logprobs]


def _pair(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"]}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.thought},
        "total_tokens": usage.prompt + usage.completion,
    }
