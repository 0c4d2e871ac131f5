"""Cut a byte stream into whole server-sent events (SSE frames), without touching a byte of them.

A frame ends at a blank line, and a line ends with LF, CR or CRLF and with nothing else: U+2028 or U+0085 inside a JSON text must not
split it, which is why no `splitlines` is used. Specification: HTML Living Standard, 9.2.5 "Parsing an event stream".

What arrives together leaves together: `FrameSplitter` gives the whole frames of a chunk as one run of bytes, and `frames_of` cuts a run
where somebody has to look at each frame.
"""

from __future__ import annotations

import re

from handler.errors import EngineDied

__all__ = ["DONE", "MAX_FRAME", "FrameSplitter", "data_of", "ends_with_done", "frames_of", "is_done"]

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
        self._rest = bytearray()
        self._scanned = 0
        self._only_lf = True
        self._max_frame = max_frame

    def feed(self, chunk: bytes) -> bytes:
        """Return the frames that `chunk` completes, as one run; empty when it completes none.

        Raises:
            EngineDied: when more than `max_frame` bytes have come without the end of a frame.
        """
        self._only_lf = self._only_lf and b"\r" not in chunk
        if not self._rest and self._only_lf and chunk.endswith(b"\n\n") and not chunk.endswith(b"\n\n\n"):
            return chunk  # as engines write: nothing is copied
        self._rest += chunk
        end = self._last_end()
        run = bytes(self._rest[:end])
        del self._rest[:end]
        # The longest tail that may still become a frame's end is CR LF CR, of three bytes.
        self._scanned = max(0, len(self._rest) - 3)
        if len(self._rest) > self._max_frame:
            raise EngineDied(f"the engine sent {len(self._rest)} bytes without the end of an event, expected at most {self._max_frame}")
        return run

    def _last_end(self) -> int:
        """Return where the last whole frame ends; 0 without one."""
        if self._only_lf:
            at = self._rest.rfind(b"\n\n", self._scanned)
            if at < 0:
                return 0
            if self._rest[max(0, at - 1) : at] != b"\n":
                return at + 2
        end, start = 0, self._scanned
        while (found := _next_end(self._rest, max(start, end))) > 0:
            end = found
        return end

    def close(self) -> bytes:
        """Return the last frame if the stream ended right after it.

        Raises:
            EngineDied: when the stream ended inside a frame.
        """
        rest, self._rest = bytes(self._rest), bytearray()
        if not rest.strip(b"\r\n"):
            return b""
        if _FRAME_END.search(rest, max(0, len(rest) - 2)):
            return rest
        raise EngineDied(f"the engine's stream ended inside an event, after {len(rest)} bytes of it")


def _next_end(buffer: bytearray, start: int) -> int:
    """Return where the frame ends whose end is looked for from `start` on, or 0 when that is not known yet."""
    found = _FRAME_END.search(buffer, start)
    if found is None or (found.end() == len(buffer) and buffer.endswith(b"\r")):
        return 0  # half of a CRLF, perhaps: the next byte tells
    return found.end()


def frames_of(run: bytes) -> list[bytes]:
    """Return the frames of a run that `FrameSplitter` gave, one by one."""
    frames, start = [], 0
    if b"\r" not in run:
        while (at := run.find(b"\n\n", start)) >= 0:
            frames.append(run[start : at + 2])
            start = at + 2
    else:
        while found := _FRAME_END.search(run, start):
            frames.append(run[start : found.end()])
            start = found.end()
    return frames if start == len(run) else [*frames, run[start:]]


def data_of(frame: bytes) -> bytes | None:
    """Return a frame's data, its lines joined by LF, or None for a comment or another frame without data."""
    lines = [line[5:] for line in _LINE.split(frame) if line.startswith(b"data:")]
    return b"\n".join(line[1:] if line.startswith(b" ") else line for line in lines) if lines else None


def is_done(frame: bytes) -> bool:
    """Tell whether this is the frame that ends an OpenAI stream."""
    return len(frame) < 32 and (data_of(frame) or b"").strip() == DONE


def ends_with_done(run: bytes) -> bool:
    """Tell whether a run holds the frame that ends an OpenAI stream; it is the last one, but for comments."""
    return DONE in run[-64:] and any(map(is_done, frames_of(run)))
