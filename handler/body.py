"""Read the body of an HTTP request into a JSON object, or say at which place it is none."""

from __future__ import annotations

import json
import re
from typing import Any

from handler.errors import InvalidJob

__all__ = ["check_content_type", "read_object"]

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
        kind = {list: "a list", str: "a text", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
        raise _no_json(f"got {kind}, expected a JSON object")
    if not value:
        raise _no_json("missing or empty, expected a JSON object")
    return value


def _no_json(what: str) -> InvalidJob:
    return InvalidJob(f"body: {what}", param="body", code="invalid_json")


def _wrong_type(what: str) -> InvalidJob:
    return InvalidJob(f"Content-Type: {what}", param="Content-Type", code="invalid_content_type")
