"""Typed access to the fields of a request's JSON object; every failure is a BadRequest naming the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from cpu_engine.architecture import JsonObject
from cpu_engine.refusals import BadRequest


class Fields:
    """A JSON object whose fields are all optional: null counts as left out."""

    __slots__ = ("raw",)

    def __init__(self, raw: JsonObject) -> None:
        self.raw = raw

    def wrong(self, name: str, expected: str) -> BadRequest:
        """Return the error for a field of the wrong type or range."""
        got = json.dumps(self.raw.get(name), ensure_ascii=False)
        got = got if len(got) <= 80 else got[:77] + "..."
        return BadRequest(f"{name}: got {got}, expected {expected}", param=name)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.raw.get(name, default)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def integer(self, name: str, default: int, *, low: int, high: int | None = None) -> int:
        """Return a whole number from `low` to `high`, `default` when left out."""
        value = self.optional_integer(name, low=low, high=high)
        return default if value is None else value

    def optional_integer(self, name: str, *, low: int | None = None, high: int | None = None) -> int | None:
        """Return a whole number from `low` to `high`, None when left out."""
        value = self.raw.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        within = isinstance(value, int) and (low is None or value >= low) and (high is None or value <= high)
        if isinstance(value, bool) or not isinstance(value, int) or not within:
            bounds = ("" if low is None else f" from {low}") + ("" if high is None else f" to {high}")
            raise self.wrong(name, f"a whole number{bounds}")
        return value

    def number(self, name: str, default: float, *, low: float, high: float = math.inf) -> float:
        """Return a finite number from `low` to `high`."""
        value = self.raw.get(name)
        if value is None:
            return default
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        if not fits or not isinstance(value, (int, float)) or abs(value) > 1e30:
            raise self.wrong(name, f"a number from {low:g}" + ("" if high == math.inf else f" to {high:g}"))
        return float(value)

    def text(self, name: str) -> str | None:
        """Return a string of whole characters, None when left out."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        if not is_whole(value):
            raise self.wrong(name, "Unicode text without lone surrogates")
        return value

    def strings(self, name: str, *, single: bool = False) -> list[str]:
        """Return a list of strings of whole characters; with `single`, a bare string counts as a list of one."""
        value = self.raw.get(name)
        if single and isinstance(value, str):
            value = [value]
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings")
        if not all(map(is_whole, value)):
            raise self.wrong(name, "Unicode text without lone surrogates")
        return value

    def mapping(self, name: str) -> JsonObject | None:
        """Return an object, None when left out."""
        value = self.raw.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value

    def objects(self, name: str) -> list[Mapping[str, object]] | None:
        """Return a list of objects, None when left out."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(name, "a list of objects")
        return value

    def tokens(self, name: str, vocab_size: int, *, empty: bool = False) -> list[int] | None:
        """Return a list of token ids below `vocab_size`, None when left out; empty only if `empty`."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not (value or empty):
            raise self.wrong(name, "a list of token ids" if empty else "a list of at least one token id")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
                raise BadRequest(f"{name}: got {item!r}, expected token ids from 0 to {vocab_size - 1}", param=name)
        return value


def is_whole(text: str) -> bool:
    """Say whether `text` is free of lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
