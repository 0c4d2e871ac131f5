"""Gather what a request says into the messages of a chat completion, in the order in which it is said.

Chat templates set the form. Most read a text and not a list of parts, so texts that stand side by side become one; most take the system
message from the first place only, so those at the start become one; none knows the role `developer`. What the assistant thought, said and
called in one turn is one message, as long as it came in that order. Images stay parts, also those of a tool's result.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Content", "Conversation", "content_of", "image_part", "text_part"]

Content = str | list[dict[str, Any]]
"""What a chat message holds: a text, or parts of which one at least is an image."""


def text_part(text: str) -> dict[str, Any]:
    """Return a part of a text."""
    return {"type": "text", "text": text}


def image_part(url: str, detail: str | None = None) -> dict[str, Any]:
    """Return a part of an image, whose URL may be a `data:` URL."""
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})}


def content_of(parts: list[dict[str, Any]]) -> Content:
    """Return the parts as a message holds them: as one text, a line break between two, if there are only texts."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


class Conversation:
    """What is said, in order."""

    def __init__(self) -> None:
        self._instructions: list[str] = []
        """Those at the start."""
        self._said: list[dict[str, Any]] = []

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages of the chat; an empty line parts the instructions at its start."""
        begin = [{"role": "system", "content": "\n\n".join(self._instructions)}] if self._instructions else []
        return begin + self._said

    def system(self, text: str) -> None:
        """Add an instruction."""
        if self._said:
            self._said.append({"role": "system", "content": text})
        else:
            self._instructions.append(text)

    def user(self, content: Content) -> None:
        """Add what the user says."""
        self._said.append({"role": "user", "content": content})

    def thought(self, text: str) -> None:
        """Begin a turn of the assistant with a thought."""
        self._said.append({"role": "assistant", "content": "", "reasoning_content": text})

    def said(self, text: str) -> None:
        """Add a text of the assistant to its turn, or begin one if the turn has a text or a call already."""
        turn = self._turn()
        if turn is None or turn["content"] or "tool_calls" in turn:
            self._said.append({"role": "assistant", "content": text})
        else:
            turn["content"] = text

    def called(self, call_id: str, name: str, arguments: str) -> None:
        """Add a call to the assistant's turn, or begin one."""
        turn = self._turn()
        if turn is None:
            turn = {"role": "assistant", "content": ""}
            self._said.append(turn)
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        turn.setdefault("tool_calls", []).append(call)

    def result(self, call_id: str, content: Content) -> None:
        """Add what a call gave."""
        self._said.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _turn(self) -> dict[str, Any] | None:
        """Return the assistant's turn, if it is the assistant's."""
        return self._said[-1] if self._said and self._said[-1]["role"] == "assistant" else None
