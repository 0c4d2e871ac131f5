"""The text of a demanded tool call -> its name and its arguments, piece by piece.

The form of the answer fixes the text: `{"name": "...", "arguments": `, the arguments, `}` (see answer_form.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping


class CallText:
    """Takes the text of one choice as it is generated, and gives OpenAI's deltas of its one call."""

    def __init__(self, begins: Mapping[str, str]) -> None:
        self._begins = begins
        self._text = ""
        self._named: tuple[str, str] | None = None
        self._id = f"chatcmpl-tool-{uuid.uuid4().hex}"
        self._arguments = ""

    def feed(self, text: str, *, finish: str | None) -> list[dict[str, object]]:
        """Return the deltas of more text. The last character is held back, since the last one of all is the brace that ends the call."""
        self._text += text
        deltas: list[dict[str, object]] = []
        if self._named is None:
            self._named = next((pair for pair in self._begins.items() if self._text.startswith(pair[0])), None)
            if self._named is None:
                return deltas
            function = {"name": self._named[1], "arguments": ""}
            deltas.append({"index": 0, "id": self._id, "type": "function", "function": function})
        known = self._text[len(self._named[0]) :]
        # An answer that was cut has no brace to its end.
        arguments = known if finish == "length" else known[:-1]
        if piece := arguments[len(self._arguments) :]:
            self._arguments = arguments
            deltas.append({"index": 0, "function": {"arguments": piece}})
        return deltas

    def whole(self) -> list[dict[str, object]] | None:
        """Return the call, None where the answer was cut before the name was complete."""
        if self._named is None:
            return None
        return [{"id": self._id, "type": "function", "function": {"name": self._named[1], "arguments": self._arguments}}]
