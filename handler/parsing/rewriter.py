"""The answer to one chat request, with calls and thoughts in the fields that OpenAI's clients read.

Defined answers to what is odd:
- a call of a tool that was not offered, or a mark that no call follows: text, as the model wrote it.
- two tools of one name: one tool, with the parameters of the first.
- a call cut by max_tokens: its arguments as far as they came, which are no JSON then; `finish_reason` stays `length`.
- marks inside the strings of JSON arguments: part of the string. Inside XML values: only the value's own end mark ends it.
- marks in the prompt: not looked at; a model that repeats them makes a call only if the name is offered.
- broken JSON inside a call whose name has left: it leaves as the arguments, up to a `<` outside of its strings.

A frame is held only while its text may belong to a mark or a call that is not certain yet, and leaves byte for byte if it was just text. A
frame whose text was nothing but marks is left out if it has nothing else to tell. An event with several choices leaves as one for each.
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handler.parsing.families import Family, Tools
from handler.parsing.reading import Reasoning, read
from handler.parsing.source import Marks, Piece, Source
from handler.sse import data_of, is_done

__all__ = ["Rewriter", "offered"]

_LESS, _BACKSLASH = b"<\\"
"""As numbers, since `60 in frame` takes a tenth of the time of `b"<" in frame`. All marks begin with `<`; JSON may spell it `\\u003c`."""

_ENDS = ("stop", "tool_calls")
"""Reasons to finish that mean that the model had said what it wanted."""
_CONTENT, _NO_THOUGHT = b'"content":"', b'"reasoning_content":""'


def offered(body: Mapping[str, Any]) -> Tools:
    """Return the tools that a chat request lets the model call, with the schemas of their parameters."""
    tools: dict[str, Mapping[str, Any]] = {}
    if body.get("tool_choice") == "none":
        return tools
    for tool in body.get("tools") or ():
        function = tool.get("function") or {}
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(name := function.get("name"), str) and name:
            tools.setdefault(name, properties if isinstance(properties, dict) else {})
    return tools


@dataclass(slots=True)
class _Held:
    """A frame of one choice, and what was understood of its text."""

    frame: bytes | None
    """As it came; None if it held other choices too."""
    chunk: dict[str, Any]
    text: str
    end: int
    """How many characters of the choice's text have come with it."""
    pieces: list[Piece] = field(default_factory=list)

    @property
    def told(self) -> bool:
        """It holds more than text."""
        return any(piece.kind != "text" for piece in self.pieces)


class Rewriter:
    """Rewrites one answer: `frame` for each frame of a stream in order, or `whole`; `reasoning` is None where the engine makes thoughts."""

    def __init__(self, family: Family | None, reasoning: Reasoning | None, body: Mapping[str, Any]) -> None:
        self._family, self._tools, self._reasoning = family, offered(body), reasoning
        self._drops = body.get("include_reasoning") is False
        n = body.get("n")
        self._n = n if isinstance(n, int) else 1
        self._choices: dict[int, _Choice] = {}
        calls = family is not None and bool(self._tools or family.channels)
        self.active = calls or reasoning is not None or self._drops
        """Whether there is anything to do; if not, frames and answers leave as they are."""
        self._busy = (self._n + self._drops) * self.active
        """How many choices are not in the middle of text; thoughts that the engine made are looked for in every frame."""
        marks = (*family.opens.words, *(family.answer or ())) if family and self.active else ()
        self._suspects = Marks.of(*marks).suspects() if marks else None
        self._alone, self._thinking = self._n == 1 and not self._drops, False

    def frame(self, frame: bytes) -> list[bytes]:
        """Return what leaves instead of the next frame: most often that frame, else others, or none yet."""
        return [frame] if self.passes(frame) else self._read(frame)

    def passes(self, frames: bytes) -> bool:
        """Tell, by little more than a glance, that the next frame, or several of them in a row, leaves as it is; False is no promise."""
        return not (self._busy or _LESS in frames or _BACKSLASH in frames)

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an unstreamed answer, in which each choice is what the joined deltas of its stream would be."""
        if not self.active or not isinstance(answer.get("choices"), list):
            return answer
        return answer | {"choices": [self._choice().whole(choice) for choice in answer["choices"]]}

    def _read(self, frame: bytes) -> list[bytes]:
        if not self._busy and not (self._suspects and self._suspects.search(frame)):
            return [frame]
        if self._thinking and not (_LESS in frame or _BACKSLASH in frame) and (moved := _as_thought(frame)):
            return [moved]
        if is_done(frame):
            return [*(left for choice in self._choices.values() for left in choice.close()), frame]
        chunk = _chunk(frame)
        leaving: list[bytes] = []
        choices = chunk.get("choices") or []
        for choice in choices:
            alone = len(choices) == 1
            leaving += self._entry(frame if alone else None, chunk if alone else chunk | {"choices": [choice]}, choice)
        return leaving if choices else [frame]

    def _entry(self, frame: bytes | None, chunk: dict[str, Any], entry: dict[str, Any]) -> list[bytes]:
        index = entry.get("index", 0)
        if index not in self._choices:
            self._busy += len(self._choices) >= self._n
            self._choices[index] = self._choice()
        choice = self._choices[index]
        calm, leaving = choice.calm, choice.feed(frame, chunk, entry)
        self._busy += calm - choice.calm
        self._thinking = choice.thinking and self._alone
        return leaving

    def _choice(self) -> _Choice:
        return _Choice(self._family, self._tools, self._reasoning, drops=self._drops)


class _Choice:
    """One choice of an answer."""

    def __init__(self, family: Family | None, tools: Tools, reasoning: Reasoning | None, *, drops: bool) -> None:
        self._source = Source()
        self._reader = read(self._source, family, tools, reasoning)
        self._held: deque[_Held] = deque()
        self._came, self._calls, self._drops = 0, 0, drops

    @property
    def calm(self) -> bool:
        """The choice is in the middle of text: frames without a `<` need no look."""
        return self._source.passing == "text" and not self._held and not self._calls

    @property
    def thinking(self) -> bool:
        """The choice is in the middle of a thought, which frames without a `<` and without a newline go on with."""
        return self._source.passing == "thought" and not self._held

    def feed(self, frame: bytes | None, chunk: dict[str, Any], entry: dict[str, Any]) -> list[bytes]:
        """Take the next frame of this choice, and return those that leave."""
        text = (entry.get("delta") or {}).get("content")
        text = text if isinstance(text, str) else ""
        self._came += len(text)
        self._held.append(_Held(frame, chunk, text, self._came))
        reason = entry.get("finish_reason")
        if reason:
            return self.close(text, cut=reason not in _ENDS)
        return self._leave(self._run(text))

    def close(self, text: str = "", *, cut: bool = True) -> list[bytes]:
        """Take the last text, and return all frames that are still held."""
        self._source.end(cut=cut)
        return self._leave(self._run(text), all_of_them=True)

    def whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the choice of an unstreamed answer."""
        message = choice.get("message") or {}
        text = message.get("content")
        self._source.end(cut=choice.get("finish_reason") not in _ENDS)
        pieces = self._run(text if isinstance(text, str) else "")
        calls = self._told(pieces)
        changed: dict[str, Any] = {}
        if calls:
            changed["tool_calls"] = [{name: value for name, value in call.items() if name != "index"} for call in calls]
        return choice | {
            "message": message | self._texts(message, pieces) | changed,
            "finish_reason": self._reason(choice.get("finish_reason")),
        }

    def _run(self, text: str) -> list[Piece]:
        source = self._source
        source.feed(text)
        next(self._reader, None)
        pieces, source.pieces = source.pieces, []
        return pieces

    def _leave(self, pieces: list[Piece], *, all_of_them: bool = False) -> list[bytes]:
        """Give each frame its pieces, text by its place and all else where it ended, and return the frames that need not wait.

        A frame that tells of a call or a thought leaves at once; the end of its text, if that is not certain, goes with the next one.
        """
        if not self._held:
            return []
        waiting = iter(self._held)
        held = next(waiting)
        for piece in pieces:
            start = piece.end - len(piece.text)
            while piece.end > held.end:
                if piece.kind == "text" and start < held.end:
                    held.pieces.append(Piece("text", piece.text[start - piece.end : held.end - piece.end], held.end))
                    start = held.end
                held = next(waiting)
            held.pieces.append(piece._replace(text=piece.text[start - piece.end :]) if piece.kind == "text" else piece)
        leaving: list[bytes] = []
        while self._held and (all_of_them or self._held[0].end <= self._source.decided or self._held[0].told):
            leaving += self._frame(self._held.popleft())
        return leaving

    def _frame(self, held: _Held) -> list[bytes]:
        entry = held.chunk["choices"][0]
        delta = entry.get("delta") or {}
        calls = self._told(held.pieces)
        reason = entry.get("finish_reason")
        finish = self._reason(reason)
        texts = self._texts(delta, held.pieces) if held.text or held.pieces or self._drops else {}
        if not calls and finish == reason and all(delta.get(name) == value for name, value in texts.items()):
            return [held.frame or _spelled(held.chunk)]
        changed = entry | {"delta": delta | texts | ({"tool_calls": calls} if calls else {})}
        if finish != reason:
            changed["finish_reason"] = finish
        return [_spelled(held.chunk | {"choices": [changed]})] if _tells(held.chunk, changed) else []

    def _texts(self, before: Mapping[str, Any], pieces: list[Piece]) -> dict[str, Any]:
        """Return the fields of a delta or a message that hold text: null where nothing is left of what was there."""
        content = "".join(text for kind, text, _ in pieces if kind == "text")
        thought = "".join(text for kind, text, _ in pieces if kind == "thought")
        texts: dict[str, Any] = {"content": content or (None if before.get("content") else before.get("content"))}
        if self._drops:
            return texts | ({"reasoning_content": None} if before.get("reasoning_content") else {})
        return texts | ({"reasoning_content": thought} if thought else {})

    def _told(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        """Return the calls of some pieces in OpenAI's form, one entry for each call."""
        calls: dict[int, dict[str, Any]] = {}
        for kind, text, _ in pieces:
            if kind == "call":
                function = {"name": text, "arguments": ""}
                calls[self._calls] = {"index": self._calls, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
                self._calls += 1
            elif kind == "arguments":
                index = self._calls - 1
                calls.setdefault(index, {"index": index, "function": {"arguments": ""}})["function"]["arguments"] += text
        return list(calls.values())

    def _reason(self, reason: object) -> object:
        return "tool_calls" if reason == "stop" and self._calls else reason


def _as_thought(frame: bytes) -> bytes | None:
    """Return a frame of one token, without an escape, with its content made a thought; None if it is not such a frame.

    Nearly all tokens of a thinking model come here, and this costs a tenth of reading and writing JSON.
    """
    head, _, rest = frame.partition(_CONTENT)
    text, _, tail = rest.partition(b'"')
    if not text or _CONTENT in tail or b'"finish_reason":"' in tail or tail.count(_NO_THOUGHT) != 1:
        return None
    return head + b'"content":null' + tail.replace(_NO_THOUGHT, _NO_THOUGHT[:-1] + text + b'"')


def _chunk(frame: bytes) -> dict[str, Any]:
    try:
        chunk = json.loads(data_of(frame) or b"null")
    except ValueError:
        chunk = None
    return chunk if isinstance(chunk, dict) else {}


def _spelled(chunk: Mapping[str, Any]) -> bytes:
    # Half of a surrogate pair cannot be encoded, and is spelled as the JSON escape that it came as.
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n\n"


def _tells(chunk: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Tell whether a frame has anything to say: text, calls, a role, ids, logprobs, a finish, usage."""
    return bool(any(entry["delta"].values()) or entry.get("logprobs") or entry.get("finish_reason") or chunk.get("usage"))
