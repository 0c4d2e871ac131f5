"""JSON at the edges of the worker, made safe in one place: what comes in is bounded, what goes out is something every reader takes.

Python's reader takes NaN and the infinities, which JSON has not, ends with RecursionError or worse on deep nesting, and reads no integer
of more than 4300 digits. Its writer lets NaN and halves of surrogate pairs through. Either costs a whole job further on.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from handler.errors import InvalidJob

__all__ = [
    "MAX_DEPTH",
    "TOO_DEEP",
    "check_content_type",
    "kind_of",
    "not_finite",
    "read_answer",
    "read_bounded",
    "read_object",
    "sendable",
    "shown",
    "to_json",
]

MAX_DEPTH = 200
"""Levels of arrays and objects that a request or an answer may have; the engine's own readers give up at about a thousand."""

_MAX_DIGITS = 4300
"""Digits of the largest integer that Python reads and writes."""
_MAX_BITS = 14_000
"""Bits of the largest integer that surely has no more digits than that."""

TOO_DEEP = uuid.uuid4().hex
"""Stands in what `read_bounded` returns for what is nested too deep; random, so that no text can hold it."""
_SIGN = re.compile(r'"[^"]*"?|[\[{\]}]')
"""A whole text without escapes, or its begin if it has no end, or what begins or ends a level."""


# --- out


def to_json(value: Any) -> bytes:
    """Return a value as JSON in UTF-8, whatever it holds.

    What JSON has no form for becomes null: NaN, the infinities, objects of other types, what is nested deeper than MAX_DEPTH. Half of a
    surrogate pair becomes U+FFFD.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        return json.dumps(sendable(value), ensure_ascii=False, allow_nan=False).encode()


def sendable(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return the value with what JSON cannot say replaced, as `to_json` does."""
    if isinstance(value, str):
        return _whole_characters(value)
    if depth and isinstance(value, dict):
        return {_whole_characters(name if isinstance(name, str) else str(name)): sendable(item, depth - 1) for name, item in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return [sendable(item, depth - 1) for item in value]
    if isinstance(value, int) and value.bit_length() <= _MAX_BITS:  # True and False are integers, too
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def _whole_characters(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --- in


def read_answer(body: bytes) -> Any:
    """Return an engine's whole answer as the JSON value that it is, or as text when it is none, in a form that every JSON writer takes."""
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return text or {"status": 200}
    return sendable(value) if "\\ud" in text.lower() else value


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def read_bounded(text: str, depth: int = MAX_DEPTH) -> tuple[Any, bool]:
    """Return the value of a JSON text, and whether `TOO_DEEP` stands in it for what is nested deeper than `depth` levels.

    An integer of more digits than Python reads becomes infinite, which no request may hold.

    Raises:
        ValueError: the text is no JSON.
    """
    shallow = _shallow(text, depth) if text.count("[") + text.count("{") > depth else text
    return json.loads(shallow, parse_int=_integer), shallow != text


def _integer(text: str) -> float:
    return int(text) if len(text) <= _MAX_DIGITS else float("inf")


def _shallow(text: str, deepest: int) -> str:
    """Return a JSON text with every array and object below the deepest level allowed replaced by `TOO_DEEP`."""
    kept, depth, start = [], 0, 0
    plain = text.replace(r"\\", "__").replace(r"\"", "__")  # as long as before, and every quote left begins or ends a text
    for found in _SIGN.finditer(plain):
        sign = plain[found.start()]
        if sign in "[{":
            depth += 1
            if depth == deepest + 1:
                kept += [text[start : found.start()], f'"{TOO_DEEP}"']
        elif sign in "]}":
            if depth == deepest + 1:
                start = found.end()
            depth -= 1
    if depth > deepest:
        raise ValueError("an array or an object has no end")
    return "".join([*kept, text[start:]])


# --- the body of an HTTP request


_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json")
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)
_UTF_8 = {"utf-8", "utf8", "us-ascii"}


def check_content_type(header: str | None) -> None:
    """Refuse a body that says it is something else than JSON in UTF-8; one that says nothing is taken for that.

    Raises:
        InvalidJob: naming the header, what it holds and what was expected.
    """
    if header is None:
        return
    charset = _CHARSET.search(header)
    if not _JSON_TYPE.fullmatch(header.partition(";")[0].strip().lower()):
        raise _wrong_type(f"got {header[:80]!r}, expected application/json")
    if charset and charset[1].lower() not in _UTF_8:
        raise _wrong_type(f"got charset {charset[1][:40]!r}, expected utf-8")


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds.

    Raises:
        InvalidJob: naming the byte, or line and column, where it is none.
    """
    try:
        value = json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise _no_json(f"expected UTF-8, got the byte 0x{body[error.start]:02x} at position {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise _no_json("missing or empty, expected a JSON object" if not body.strip() else f"expected JSON ({error})") from None
    if not isinstance(value, dict):
        raise _no_json(f"got {'null' if value is None else kind_of(value)}, expected a JSON object")
    if not value:
        raise _no_json("missing or empty, expected a JSON object")
    return value


def _no_json(what: str) -> InvalidJob:
    return InvalidJob(f"body: {what}", param="body", code="invalid_json")


def _wrong_type(what: str) -> InvalidJob:
    return InvalidJob(f"Content-Type: {what}", param="Content-Type", code="invalid_content_type")


# --- for messages


def not_finite(body: object) -> str:
    """Return the name of the first field that holds NaN or an infinity, such as `messages[0].weight`, or `input`."""
    path: list[str] = []
    levels = [_items(body)]
    while levels:
        for name, value in levels[-1]:
            if isinstance(value, float) and not math.isfinite(value):
                return "".join((*path, name)).lstrip(".")
            if isinstance(value, (dict, list)):
                path.append(name)
                levels.append(_items(value))
                break
        else:
            levels.pop()
            del path[-1:]
    return "input"


def _items(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        return ((f".{key}", item) for key, item in value.items())
    return ((f"[{index}]", item) for index, item in enumerate(value if isinstance(value, list) else ()))


_KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "nothing",
}


def kind_of(value: object) -> str:
    """Return what a person calls a JSON value of this kind."""
    return _KINDS.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """Return a value as its caller wrote it, in JSON, or its kind where that is too long or JSON has no form for it."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return kind_of(value)
    return text if len(text) <= 80 else f"{kind_of(value)} of {len(text)} characters"
