"""The text of one answer, read by generators as it arrives.

A reader is a generator that yields when it needs more text and puts what it has understood into `pieces`. The position of a mark is kept
until the reader commits to it; before that, `rewind` turns the mark back into text. Only text that may be half a mark is held. Every mark
begins with `<`, which makes looking for half a mark cheap. What looks like a call and is none is read again only from its mark on, and
is known for none before the next mark: the work grows with the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

__all__ = ["Kind", "Marks", "Piece", "Source", "Steps"]

Kind = Literal["text", "thought", "call", "arguments"]
T = TypeVar("T")
Steps = Generator[None, None, T]
"""A reader: yields where more text is needed, and returns what it found."""

_SPACE = re.compile(r"\s*")
_NEWLINES = re.compile(r"\n*")


class Piece(NamedTuple):
    """Something understood: text, a thought, the name that begins a call, or arguments of the call begun last."""

    kind: Kind
    text: str
    end: int
    """How many characters of the answer had been read when it was."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Words to look for; none is the beginning of another. For `clear`, each begins with `<` and has no other."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]
    longest: int

    @classmethod
    def of(cls, *words: str) -> Marks:
        """Return the marks; without words, marks that are never found."""
        return cls(words, re.compile("|".join(map(re.escape, words)) or r"(?!)"), max(map(len, words), default=1))

    def suspects(self) -> re.Pattern[bytes]:
        """Return what JSON has wherever its text may hold a mark, or the beginning of one at its end."""
        seconds = {word[1].encode()[:1] for word in self.words} | {b'"', b"\\"}
        return re.compile(b"<[" + b"".join(sorted(map(re.escape, seconds))) + rb"]|\\u003")

    def clear(self, text: str, start: int) -> int:
        """Return where the end of `text` begins that may become a mark, or the length of `text`."""
        at = text.rfind("<", max(start, len(text) - self.longest + 1))
        return at if at >= 0 and any(word.startswith(text[at:]) for word in self.words) else len(text)


class Source:
    """The text of one answer: `feed` it, run the reader, take `pieces`. `decided` counts the characters that are understood for good."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.passing: Kind | None = None
        """In the middle of what the reader waits, holding nothing: more of that may pass it by, if it has neither a `<` nor a newline."""
        self.ended = self.cut = False
        self._text, self._base, self._at = "", 0, 0
        self._kept: int | None = None
        self._resume = 0
        self._gap, self._marked = True, False

    @property
    def decided(self) -> int:
        """How many characters have been read for good."""
        return self._base + (self._at if self._kept is None else self._kept)

    @property
    def over(self) -> bool:
        """The model ended its answer here by itself, white space aside; only known after a look for more."""
        return self.ended and not (self.cut or self._text[self._at :].strip())

    def feed(self, text: str) -> None:
        """Add text that arrived."""
        start = self._at if self._kept is None else self._kept
        self._text = self._text[start:] + text
        self._base, self._at, self._resume = self._base + start, self._at - start, self._resume - start
        self._kept = None if self._kept is None else 0

    def end(self, *, cut: bool) -> None:
        """Tell that no more text comes; `cut` if the model was not finished."""
        self.ended, self.cut = True, cut

    def emit(self, kind: Kind, text: str) -> None:
        """Add a piece that was read up to here."""
        self.pieces.append(Piece(kind, text, self._base + self._at))

    def _take(self, stop: int, kind: Kind, spell: Callable[[str], str] = str) -> None:
        chunk, self._at = self._text[self._at : stop], stop
        if chunk:
            self.emit(kind, spell(chunk))

    def _wait(self, kind: Kind | None) -> Steps[None]:
        self.passing = kind if self._at == len(self._text) else None
        yield
        self.passing = None

    def commit(self) -> None:
        """Take the mark that was found, or the place where the reader is, for what it seems to be: part of the format."""
        self._kept, self._gap, self._marked = None, True, True

    def call(self, name: str) -> None:
        """Commit to a call whose name is known."""
        self.commit()
        self.emit("call", name)

    def rewind(self) -> None:
        """Take the mark that was found for text, and read on after it."""
        start, self._at, self._kept, self._gap = self._kept or 0, self._resume, None, False
        if self._at > start:
            self.emit("text", self._text[start : self._at])

    def text(self, marks: Marks) -> Steps[str | None]:
        """Emit text up to a mark and return the mark, kept until `commit` or `rewind`; None at the end.

        White space alone between two marks, or between a mark and the beginning or the end, belongs to the format and is left out.
        """
        while True:
            found = marks.pattern.search(self._text, self._at)
            end = found.start() if found else len(self._text) if self.ended else marks.clear(self._text, self._at)
            start = self._at
            if end > start and not (self._gap and self._text[start:end].isspace()):
                self._at, self._gap = end, False
                self.emit("text", self._text[start:end])
            if found:
                self._kept, self._at, self._resume = self._at, found.end(), found.end()
                return found.group()
            if self.ended:
                self._at = end
                if end > start and self._gap and not self._marked:
                    self.emit("text", self._text[start:end])
                return None
            yield from self._wait(None if self._gap else "text")

    def upto(self, marks: Marks, kind: Kind, spell: Callable[[str], str] = str, *, trim: int = 0) -> Steps[bool]:
        """Emit what comes before a mark as it arrives, and read the mark; False at the end without one.

        Up to `trim` newlines right before the mark belong to it.
        """
        while True:
            found = marks.pattern.search(self._text, self._at)
            end = stop = found.start() if found else len(self._text) if self.ended else marks.clear(self._text, self._at)
            while (found or not self.ended) and stop > max(self._at, end - trim) and self._text[stop - 1] == "\n":
                stop -= 1
            self._take(stop, kind, spell)
            if found:
                self._at = found.end()
            if found or self.ended:
                return bool(found)
            yield from self._wait(kind)

    def until(self, marks: Marks, *, most: int | None = None) -> Steps[str | None]:
        """Return what comes before a mark, and read the mark; None if there is none in the next `most` characters, or at all."""
        seen = 0
        while True:
            found = marks.pattern.search(self._text, self._at + seen)
            here = (found.start() if found else len(self._text)) - self._at
            if (self.ended and not found) or (most is not None and here > most):
                return None
            if found:
                before, self._at = self._text[self._at : found.start()], found.end()
                return before
            seen = max(0, here - marks.longest + 1)
            yield

    def scan(self, end: Callable[[str, int], int], kind: Kind) -> Steps[None]:
        """Emit text as it arrives, up to the position that `end` finds in it; it returns -1 where it needs more."""
        while True:
            found = end(self._text, self._at)
            self._take(len(self._text) if found < 0 else found, kind)
            if found >= 0 or self.ended:
                return
            yield

    def rest(self) -> str:
        """Read what is left of a text that has ended."""
        rest, self._at = self._text[self._at :], len(self._text)
        return rest

    def skip(self, pattern: re.Pattern[str] = _SPACE) -> Steps[None]:
        """Read white space, or what else `pattern` takes."""
        while True:
            found = pattern.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text) or self.ended:
                return
            yield

    def newlines(self) -> Steps[None]:
        """Read newlines."""
        return self.skip(_NEWLINES)

    def words(self, *words: str) -> Steps[bool]:
        """Read words that follow, white space between them; False where another text comes. Half a word at the end is read."""
        for word in words:
            yield from self.skip()
            if not (yield from self.literal(word)):
                return False
        return True

    def literal(self, word: str) -> Steps[bool]:
        """Read exactly this word; False where another text comes. Half of it at the end is read."""
        while True:
            here = self._text[self._at : self._at + len(word)]
            if here == word or not word.startswith(here):
                break
            if self.ended:
                self._at += len(here)
                return False
            yield
        self._at += len(word) if here == word else 0
        return here == word

    def optional(self, word: str, *, read: bool = True) -> Steps[bool]:
        """Tell whether a word follows, white space aside, and read both unless told not to; else read nothing."""
        kept, start = self._kept, self._base + self._at
        self._kept = self._at if kept is None else kept
        found = yield from self.words(word)
        if not (found and read):
            self._at = start - self._base
        self._kept = None if kept is None else self._kept
        return found

    def name(self, stops: str, names: Collection[str]) -> Steps[str | None]:
        """Read one of some names up to a character of `stops`, which stays; None, at once when it is sure, where none of them comes."""
        stop = re.compile(f"[{re.escape(stops)}]")
        while True:
            found = stop.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            word = self._text[self._at : end].strip()
            if found:
                self._at = end
                return word if word in names else None
            if self.ended or not any(name.startswith(word) for name in names):
                return None
            yield
