"""Read a chat answer, whole or streamed, as pieces, and write them as another API does.

Both forms of an answer become the same pieces and go through the same writer. So the events of a stream, joined, are the whole answer.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from handler.errors import EngineDied
from handler.sse import data_of, is_done

__all__ = ["Arguments", "Began", "Call", "Ended", "Piece", "Text", "Thought", "Translation", "Usage", "Writer", "event_frame", "renamed"]


@dataclass(frozen=True, slots=True)
class Began:
    """The answer has begun."""

    id: str
    """The chat answer's own, without `chatcmpl-`."""
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class Thought:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """More of what the model says."""

    text: str
    logprobs: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """The model calls a tool; the arguments follow."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of the last call, which are JSON when joined."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The model has ended."""

    reason: str
    stop: str | None
    """The stop sequence that ended it, from an engine that tells."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, all in all."""

    prompt: int
    cached: int
    """Of the prompt."""
    completion: int
    thought: int
    """Of the completion."""


Piece = Began | Thought | Text | Call | Arguments | Ended | Usage


class _Reader:
    """Reads one chat answer: the frames of a stream in order, or a whole one."""

    def __init__(self) -> None:
        self._began = False
        self._call = -1

    def read(self, chunk: dict[str, Any]) -> Iterator[Piece]:
        """Yield what a frame's JSON holds, or all of a whole answer."""
        if not self._began:
            self._began = True
            yield Began(str(chunk["id"]).removeprefix("chatcmpl-"), chunk["created"], chunk["model"])
        for choice in chunk.get("choices") or ():
            yield from self._choice(choice)
        if usage := chunk.get("usage"):
            prompt, completion = (usage.get(f"{part}_tokens_details") or {} for part in ("prompt", "completion"))
            cached, thought = prompt.get("cached_tokens") or 0, completion.get("reasoning_tokens") or 0
            yield Usage(usage["prompt_tokens"], cached, usage["completion_tokens"], thought)

    def _choice(self, choice: dict[str, Any]) -> Iterator[Piece]:
        said = choice.get("delta") or choice.get("message") or {}
        if thought := said.get("reasoning_content"):
            yield Thought(thought)
        if text := said.get("content"):
            yield Text(text, (choice.get("logprobs") or {}).get("content") or [])
        for position, call in enumerate(said.get("tool_calls") or ()):
            index, function = call.get("index", position), call["function"]
            if index < self._call:
                raise EngineDied(f"the engine went on with tool call {index} after it had begun call {self._call}")
            if index > self._call:
                self._call = index
                yield Call(call["id"], function["name"])
            if arguments := function.get("arguments"):
                yield Arguments(arguments)
        if reason := choice.get("finish_reason"):
            stop = choice.get("stop_reason")
            yield Ended(reason, stop if isinstance(stop, str) else None)


class Writer(ABC):
    """Writes one answer in the form of an API."""

    @abstractmethod
    def take(self, piece: Piece) -> list[bytes]:
        """Return the frames that the next piece makes."""

    @abstractmethod
    def end(self) -> list[bytes]:
        """Return the last frames; call it once, after the last piece."""

    @abstractmethod
    def answer(self) -> dict[str, Any]:
        """Return the whole answer; call it after `end`."""

    @abstractmethod
    def broken(self, status: int, body: dict[str, Any]) -> list[bytes]:
        """Return the last frames of an answer that cannot be finished, by HTTP status and OpenAI error object."""


class Translation:
    """One request as a chat completion, and its answer on the way back; used for one answer, streamed or whole."""

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Field of a chat -> the field of this API that it came from."""

    def __init__(self, chat: dict[str, Any], unheard: Mapping[str, str], writer: Writer) -> None:
        self.chat = chat
        self.no_effect = tuple(f"{name} has no effect: {reason}" for name, reason in unheard.items())
        self._reader, self._writer = _Reader(), writer

    def frame(self, frame: bytes) -> list[bytes]:
        """Return the frames that the next frame of the chat's stream becomes; an error's frame is for `broken`.

        Raises:
            EngineDied: the engine mixes up its tool calls.
        """
        data = data_of(frame)
        if data is None:
            return []
        if is_done(frame):
            return self._writer.end()
        return [made for piece in self._reader.read(json.loads(data)) for made in self._writer.take(piece)]

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the answer that a whole chat answer becomes."""
        for piece in self._reader.read(answer):
            self._writer.take(piece)
        self._writer.end()
        return self._writer.answer()

    def error(self, status: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and body of an error, from the status and the OpenAI error object of the chat."""
        return status, renamed(body, self.RENAMED)

    def broken(self, status: int, body: dict[str, Any]) -> list[bytes]:
        """Return the last frames of a stream that has begun and breaks with such an error."""
        return self._writer.broken(status, renamed(body, self.RENAMED))


def renamed(body: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return an OpenAI error object that names the caller's field where it names the chat's."""
    error = body["error"]
    name = error.get("param")
    if name not in names:
        return body
    message = names[name] + error["message"][len(name) :] if error["message"].startswith(name) else error["message"]
    return {"error": error | {"param": names[name], "message": message}}


def event_frame(event: dict[str, Any]) -> bytes:
    """Return an event as a frame that names its type."""
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    # Half of a surrogate pair, which JSON can hold and UTF-8 cannot, leaves as the escape that it came as.
    return f"event: {event['type']}\ndata: {text}\n\n".encode(errors="backslashreplace")
