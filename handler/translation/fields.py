"""Read one JSON object of a request against a table of what becomes of each of its fields.

A field of a published schema is translated, refused by name, or without effect for a reason that the log can tell. A field that no table
names is refused as unknown, and null counts as not given. So nothing that is asked is dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from handler.errors import InvalidJob

__all__ = ["SAMPLING", "Given", "Table", "given_by_type", "refuse", "shown", "table"]

SAMPLING = """temperature top_p top_k min_p min_tokens seed presence_penalty frequency_penalty repetition_penalty bad_words logit_bias
stop_token_ids chat_template chat_template_kwargs reasoning_max_tokens guided_choice guided_grammar guided_json guided_regex
structural_tag include_stop_str_in_output"""
"""Fields of chat completions, the engine's own among them, that either route takes under the same name."""


@dataclass(frozen=True, slots=True)
class Table:
    """What becomes of the fields of one kind of object."""

    translated: frozenset[str]
    no_effect: Mapping[str, str] = field(default_factory=dict)
    """Field -> why it has none."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Field -> why it cannot be done here."""
    harmless: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Refused field -> values that ask for nothing, and pass."""


def table(
    translated: str,
    *,
    no_effect: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    harmless: Mapping[str, tuple[object, ...]] | None = None,
) -> Table:
    """Return a table from rows in which one key names several fields, separated by blanks."""
    return Table(frozenset(translated.split()), _rows(no_effect or {}), _rows(refused or {}), harmless or {})


def _rows(rows: Mapping[str, str]) -> dict[str, str]:
    return {name: reason for names, reason in rows.items() for name in names.split()}


class Given:
    """The fields that were given of one object, at `path` in the request; what has no effect is noted in `unheard`, with the reason.

    Raises:
        InvalidJob: the value is no object, or holds a field that is refused or unknown.
    """

    def __init__(self, value: object, known: Table, path: str, unheard: dict[str, str]) -> None:
        if not isinstance(value, dict):
            refuse(path or "body", f"got {shown(value)}, expected an object")
        self._path, self._fields = path, dict[str, Any]()
        for name, item in value.items():
            if item is None:
                continue
            if name in known.translated:
                self._fields[name] = item
            elif name in known.no_effect:
                unheard[name] = known.no_effect[name]
            elif name not in known.refused:
                refuse(self.at(name), "unknown field", code="unknown_field")
            elif item not in known.harmless.get(name, ()):
                refuse(self.at(name), f"got {shown(item)}, which is not supported: {known.refused[name]}", code="unsupported_parameter")

    def at(self, name: str) -> str:
        """Return the path of a field, for a message."""
        return f"{self._path}.{name}" if self._path else name

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field as it came."""
        return self._fields.get(name, default)

    def named(self, *names: str) -> dict[str, Any]:
        """Return those of the fields that were given."""
        return {name: self._fields[name] for name in names if name in self._fields}

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; raises InvalidJob when it is something else, or missing without a default."""
        value = self._fields.get(name, default)
        if value is None:
            refuse(self.at(name), "missing, expected a text", code="missing_required_parameter")
        if not isinstance(value, str):
            refuse(self.at(name), f"got {shown(value)}, expected a text")
        return value

    def whole(self, name: str) -> int:
        """Return a whole number above 0; raises InvalidJob when it is something else, or missing."""
        value = self._fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            refuse(self.at(name), f"got {shown(value)}, expected a whole number of at least 1")
        return value

    def object(self, name: str, *, required: bool = False) -> dict[str, Any]:
        """Return an object, empty when it was not given; raises InvalidJob when it is something else, or required and missing."""
        value = self._fields.get(name, None if required else {})
        if value is None:
            refuse(self.at(name), "missing, expected an object", code="missing_required_parameter")
        if not isinstance(value, dict):
            refuse(self.at(name), f"got {shown(value)}, expected an object")
        return value

    def each(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield the items of a list, each with its path; raises InvalidJob when it is no list."""
        value = self._fields.get(name, [])
        if not isinstance(value, list):
            refuse(self.at(name), f"got {shown(value)}, expected a list")
        yield from ((f"{self.at(name)}[{position}]", item) for position, item in enumerate(value))


def given_by_type(value: object, kinds: Mapping[str, Table], path: str, unheard: dict[str, str], *, default: str = "") -> tuple[str, Given]:
    """Return the `type` of an object, `default` where it has none, and its fields by the table of that type."""
    kind = (value.get("type") or default) if isinstance(value, dict) else default
    if not isinstance(value, dict) or not isinstance(kind, str) or kind not in kinds:
        expected = f"expected an object with a type of {', '.join(kinds)}"
        if not isinstance(value, dict):
            refuse(path, f"got {shown(value)}, {expected}")
        refuse(f"{path}.type", f"got {shown(kind)}, {expected}", code="unsupported_value")
    return kind, Given(value, kinds[kind], path, unheard)


def refuse(path: str, problem: str, *, code: str = "invalid_value") -> NoReturn:
    """Raise an InvalidJob that names the field."""
    raise InvalidJob(f"{path}: {problem}", param=path, code=code)


def shown(value: object) -> str:
    """Return a value as its caller wrote it, or what it is where that may be long: values have no bound but that of a body."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str) and len(value) > 80:
        return f"a text of {len(value)} characters"
    return json.dumps(value, ensure_ascii=False)
