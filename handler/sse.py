"""Cut a byte stream into whole server-sent events (SSE frames), without touching a byte of them.

A frame ends at a blank line, and a line ends with LF, CR or CRLF and with nothing else: U+2028 or U+0085 inside a JSON text must not
split it, which is why no `splitlines` is used. Specification: HTML Living Standard, 9.2.5 "Parsing an event stream".
"""

from __future__ import annotations

import re

from handler.errors import EngineDied

__all__ = ["DONE", "MAX_FRAME", "FrameSplitter", "data_of", "is_done"]

MAX_FRAME = 16 * 1024 * 1024
"""Largest frame in bytes. The largest real ones are logprobs of a long echoed prompt, under 4 MiB; without a bound a broken engine
could fill the memory."""

DONE = b"[DONE]"
"""The data of the last frame of an OpenAI stream."""

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_FRAME_END = re.compile(_LINE_END + _LINE_END)
_LINE = re.compile(_LINE_END)


class FrameSplitter:
    """Collects bytes and gives back whole frames, each with the blank line that ends it: joined, they are the input."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._only_lf = True
        self._max_frame = max_frame

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the frames that `chunk` completes.

        Raises:
            EngineDied: when more than `max_frame` bytes have come without the end of a frame.
        """
        self._buffer += chunk
        self._only_lf = self._only_lf and b"\r" not in chunk
        frames, start = [], 0
        while (end := self._end(max(start, self._scanned))) > 0:
            frames.append(bytes(self._buffer[start:end]))
            start = end
        del self._buffer[:start]
        # The longest tail that may still become a frame's end is CR LF CR, of three bytes.
        self._scanned = max(0, len(self._buffer) - 3)
        if len(self._buffer) > self._max_frame:
            raise EngineDied(f"the engine sent {len(self._buffer)} bytes without the end of an event, expected at most {self._max_frame}")
        return frames

    def _end(self, start: int) -> int:
        """Return where the frame ends whose end is looked for from `start` on, or 0 when that is not known yet."""
        if self._only_lf:  # as engines write; several times faster than the expression
            at = self._buffer.find(b"\n\n", start)
            return at + 2 if at >= 0 else 0
        found = _FRAME_END.search(self._buffer, start)
        if found is None or (found.end() == len(self._buffer) and self._buffer.endswith(b"\r")):
            return 0  # half of a CRLF, perhaps: the next byte tells
        return found.end()

    def close(self) -> list[bytes]:
        """Return the last frame if the stream ended right after it.

        Raises:
            EngineDied: when the stream ended inside a frame.
        """
        rest, self._buffer = bytes(self._buffer), bytearray()
        if not rest.strip(b"\r\n"):
            return []
        if _FRAME_END.search(rest, max(0, len(rest) - 2)):
            return [rest]
        raise EngineDied(f"the engine's stream ended inside an event, after {len(rest)} bytes of it")


def data_of(frame: bytes) -> bytes | None:
    """Return a frame's data, its lines joined by LF, or None for a comment or another frame without data."""
    lines = [line[5:] for line in _LINE.split(frame) if line.startswith(b"data:")]
    return b"\n".join(line[1:] if line.startswith(b" ") else line for line in lines) if lines else None


def is_done(frame: bytes) -> bool:
    """Tell whether this is the frame that ends an OpenAI stream."""
    return len(frame) < 32 and (data_of(frame) or b"").strip() == DONE
