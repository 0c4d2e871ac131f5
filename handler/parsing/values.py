"""Where a JSON value ends, and how the text of a typed parameter is spelled in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

__all__ = ["ValueEnd", "escaped", "spelled", "types_of"]

_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\],<]')
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)


class ValueEnd:
    """Finds the end of one JSON value in a text that arrives in pieces; strings may hold anything.

    A value that is broken ends where a `<` stands outside of a string, which JSON never has, so it does not swallow what follows.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._string = self._escape = False

    def __call__(self, text: str, at: int) -> int:
        """Return the position after the value, whose next piece begins at `at`, or -1 if more is needed."""
        while at < len(text):
            if self._escape:
                self._escape, at = False, at + 1
                continue
            found = (_IN_STRING if self._string else _OUTSIDE).search(text, at)
            if found is None:
                return -1
            at, char = found.end(), found.group()
            if self._string:
                self._escape, self._string = char == "\\", char != '"'
            elif char == '"':
                self._string = True
                continue
            elif char in "{[":
                self._depth += 1
            elif char in "}]" and self._depth:
                self._depth -= 1
            elif char == "<" or not self._depth:
                return found.start()
            if not (self._depth or self._string):
                return at
        return -1


def escaped(text: str) -> str:
    """Return text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def types_of(schema: object) -> frozenset[str]:
    """Return the JSON types that a parameter's schema allows, by its type, enum or const and those in its anyOf; none if unclear."""
    if not isinstance(schema, Mapping):
        return frozenset()
    found = _named(schema)
    several = schema.get("anyOf")
    for one in several if isinstance(several, list) else ():
        found |= _named(one) if isinstance(one, Mapping) else frozenset()
    return found


def spelled(text: str, types: frozenset[str]) -> str:
    """Return a parameter's text as JSON.

    Text that is JSON of an allowed type, or of any where the types are unclear, stays as it is; all other text becomes a string. Of a
    string and another type the other is taken if it fits. Templates that print values with Jinja write Python's True, False and None.
    """
    bare = text.strip()
    bare = _PYTHON.get(bare, bare) if types and "string" not in types else bare
    try:
        value = json.loads(bare, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    if "string" in types and _type(value) not in types - {"string"}:
        return json.dumps(text, ensure_ascii=False)
    return bare


def _named(schema: Mapping[str, Any]) -> frozenset[str]:
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else {one for one in kind if isinstance(one, str)} if isinstance(kind, list) else set()
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    return frozenset(found or {_type(value) for value in values})


def _type(value: object) -> str:
    return next((name for kind, name in _TYPES if isinstance(value, kind)), "null")


def _no_json(constant: str) -> NoReturn:
    raise ValueError(constant)
