"""The order of an answer: a thought if the model thinks, then text and calls in any number.

Newlines around a thought belong to its marks, as in the templates that write them. A thought is not searched for calls, and its opening
mark is one only at the very beginning of an answer: later, `<think>` is text. What a user typed into the prompt is never read here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from handler.parsing.families import Family, Tools
from handler.parsing.source import Marks, Source, Steps

__all__ = ["Reasoning", "read"]

_THOUGHT_END = Marks.of("</think>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """How an answer begins whose model thinks between `<think>` and `</think>`."""

    opened: bool = False
    """The prompt ends with the opening mark, so the answer begins inside the thought."""


def read(source: Source, family: Family | None, tools: Tools, reasoning: Reasoning | None) -> Steps[None]:
    """Read one answer; see `families` for what is a call, and `Source.text` for white space between marks."""
    marks = family.opens if family and (tools or family.channels) else Marks.of()
    if reasoning and not (family and family.channels):
        if not (yield from _thought(source, opened=reasoning.opened)):
            return
        if family and family.answer and (yield from source.optional(family.answer[0])):
            source.commit()
            yield from source.newlines()
            marks = Marks.of(*marks.words, family.answer[1])
    while (mark := (yield from source.text(marks))) is not None:
        if family and family.answer and mark == family.answer[1]:
            source.commit()
        elif family and not (yield from family.read(source, mark, tools)):
            source.rewind()


def _thought(source: Source, *, opened: bool) -> Steps[bool]:
    """Read a thought if there is one; False if the answer ended in it."""
    if not (yield from source.optional("<think>")) and not opened:
        return True
    source.commit()
    yield from source.newlines()
    if not (yield from source.upto(_THOUGHT_END, "thought", trim=sys.maxsize)):
        return False
    source.commit()
    yield from source.newlines()
    return True
