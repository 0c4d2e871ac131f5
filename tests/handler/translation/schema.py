"""Hold values against the types of an official client: nothing that they do not know, and all that they require."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # seconds of work for the unions of the clients


def validated(kind: Any, value: object) -> Any:
    """Return the value as that type; fails where a required field is missing, a value is another's, or a field is unknown."""
    made = _adapter(kind).validate_python(value)
    unknown = sorted(_unknown(made, type(made).__name__))
    assert not unknown, unknown
    return made


def _unknown(value: object, path: str) -> list[str]:
    if isinstance(value, BaseModel):
        inner = [found for name in type(value).model_fields for found in _unknown(getattr(value, name), f"{path}.{name}")]
        return [*(f"{path}.{name}" for name in value.model_extra or ()), *inner]
    if isinstance(value, (list, tuple)):
        return [found for item in value for found in _unknown(item, f"{path}[]")]
    return []


def fields_of(*kinds: Any) -> set[str]:
    """Return the names of the fields of parameter types, those of all members where one is a union."""
    found: set[str] = set()
    for kind in kinds:
        members = get_args(kind) if get_origin(kind) is not None else ()
        found |= fields_of(*members) if members else set(get_type_hints(kind))
    return found
