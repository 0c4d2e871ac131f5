"""Read TOML and JSON tables into frozen dataclasses: a file may hold what the dataclass declares, and nothing else.

The fields of the dataclass are the keys; a field with a default may be missing. Values are strings, integers, booleans, `Digest`s,
dataclasses, and tuples of these. A dataclass may refuse a value with a ValueError in `__post_init__`. Every problem of a file is found
before the first one is reported, each with its place: `bases[1].layers[0].size: got "x", expected a whole number`.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from images.build_errors import InvalidFile, nearest
from images.digest import Digest

__all__ = ["decode", "encode", "read_table", "read_toml"]

T = TypeVar("T")
_BAD = object()
"""Stands for a value that cannot be used; its problem is in the list."""

_NAMES = {str: "a string", int: "a whole number", bool: "true or false"}


def read_table(kind: type[T], path: Path) -> T:
    """Return the `kind` that a TOML file holds.

    Raises:
        InvalidFile: with every problem of the file.
    """
    problems: list[str] = []
    found = decode(kind, read_toml(path), problems)
    if found is None or problems:
        raise InvalidFile(str(path), problems)
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file.

    Raises:
        InvalidFile: when it cannot be read, or is not TOML.
    """
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidFile(str(path), [f"cannot be read as TOML ({error})"]) from None


def decode(kind: type[T], value: Any, problems: list[str], place: str = "") -> T | None:
    """Return the `kind` that a parsed table stands for, or None where it cannot be used: its problems are in the list then."""
    found = _decode(kind, value, problems, place)
    return None if found is _BAD else found


def encode(value: Any) -> Any:
    """Return the dictionaries, lists, strings and numbers that `decode` reads back."""
    if isinstance(value, Digest):
        return str(value)
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _decode(kind: Any, value: Any, problems: list[str], place: str) -> Any:
    if dataclasses.is_dataclass(kind) and kind is not Digest:
        return _table(kind, value, problems, place)
    if get_origin(kind) is tuple:
        return _list(get_args(kind)[0], value, problems, place)
    if get_origin(kind) in (Union, types.UnionType):
        [inner] = [choice for choice in get_args(kind) if choice is not type(None)]
        return None if value is None else _decode(inner, value, problems, place)
    try:
        return _leaf(kind, value)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return _BAD


def _leaf(kind: Any, value: Any) -> Any:
    if kind is Digest:
        return Digest.parse(_leaf(str, value))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"got {value!r}, expected {' or '.join(map(str, get_args(kind)))}")
    elif type(value) is not kind:  # exactly: True is an int to isinstance
        raise ValueError(f"got {_shown(value)}, expected {_NAMES[kind]}")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)[:80]


def _list(kind: Any, value: Any, problems: list[str], place: str) -> Any:
    if not isinstance(value, list):
        problems.append(f"{place}: got {_shown(value)}, expected a list")
        return _BAD
    found = [_decode(kind, item, problems, f"{place}[{number}]") for number, item in enumerate(value)]
    return _BAD if any(item is _BAD for item in found) else tuple(found)


def _table(kind: Any, value: Any, problems: list[str], place: str) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{place or 'the file'}: got {_shown(value)}, expected a table")
        return _BAD
    hints = _hints(kind)
    before = f"{place}." if place else ""
    problems += [f"{before}{key}: unknown{nearest(str(key), hints)}" for key in value if key not in hints]
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = _decode(hints[field.name], value[field.name], problems, before + field.name)
        elif field.default is dataclasses.MISSING:
            problems.append(f"{before}{field.name}: missing")
            found[field.name] = _BAD
    if any(item is _BAD for item in found.values()):
        return _BAD
    try:
        return kind(**found)
    except ValueError as error:
        problems.append(f"{before}{error}" if place else str(error))
        return _BAD


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
