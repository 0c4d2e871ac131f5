"""Messages -> prompt text, by a chat template (Jinja2, sandboxed), rendered exactly as transformers renders it.

This runs in a process of its own (template_process.py), which bounds what a template costs. Names, filters, tags and white space of the
environment are those of transformers 5 (utils/chat_template_utils.py); tests/data/templates.json holds renderings by transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeAlias

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

JsonObject: TypeAlias = Mapping[str, Any]


class TemplateFailure(Exception):
    """A template cannot render a conversation; `place` is the field of a message that it read last, None if it read none."""

    def __init__(self, said: str, place: str | None) -> None:
        super().__init__(said)
        self.place = place


class ChatTemplate:
    """The templates of one checkpoint, by name; raises jinja2.TemplateError for one that does not parse."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        self._special_tokens = special_tokens
        self._templates = {name: environment.from_string(source) for name, source in sources.items()}

    def render(self, messages: Sequence[JsonObject], *, tools: object = None, arguments: JsonObject | None = None) -> str:
        """Return the prompt of `messages`; `arguments` (chat_template_kwargs) become the template's variables.

        Raises TemplateFailure.
        """
        template = self._templates.get("tool_use" if tools is not None else "default", self._templates["default"])
        variables: dict[str, object] = {"documents": None, "add_generation_prompt": True, **self._special_tokens, **(arguments or {})}
        read: list[_Read] = []
        watched = [_Watched(_as_read(message), f"messages[{number}]", read) for number, message in enumerate(messages)]
        try:
            return template.render(variables | {"messages": watched, "tools": tools})
        except MemoryError:
            raise
        except Exception as error:
            raise _failure(error, read) from error


def _as_read(message: JsonObject) -> JsonObject:
    """Return the message without what is null, and its thoughts under each name by which templates read them."""
    given = {name: value for name, value in message.items() if value is not None}
    thoughts = next((given[name] for name in ("reasoning_content", "thinking", "reasoning") if name in given), None)
    return given if thoughts is None else {"thinking": thoughts, **given, "reasoning_content": thoughts}


def _failure(error: Exception, read: Sequence[_Read]) -> TemplateFailure:
    """Return what to tell of a failure: the template's own words, or the field that it read last and what stood there."""
    if not read:
        return TemplateFailure(f"says: {error}" if isinstance(error, _Raised) else "cannot render this conversation", None)
    place, message, name = read[0]
    said = f"cannot render {_KINDS.get(type(message[name]), 'a text')}" if name in message else "needs it, and it is missing"
    return TemplateFailure(f"says: {error}" if isinstance(error, _Raised) else said, f"{place}.{name}")


_KINDS = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}


_Read: TypeAlias = tuple[str, Mapping[str, Any], str]
"""Where a message stands, the message, and the field of it that was read."""


class _Raised(jinja2.TemplateError):
    """What a template says of a conversation itself, by `raise_exception`."""


class _Watched(dict[str, Any]):
    """A message that notes which field of it was read last."""

    __slots__ = ("_place", "_read")

    def __init__(self, message: JsonObject, place: str, read: list[_Read]) -> None:
        super().__init__(message)
        self._place, self._read = place, read

    def __getitem__(self, name: str) -> Any:
        self._read[:] = [(self._place, self, name)]
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read[:] = [(self._place, self, name)]
        return super().get(name, default)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which transformers marks what an assistant said; its content is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - the attribute and its type are Jinja's

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        # A scope of its own, as transformers' macro has: what is set inside is not seen outside.
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which a prompt is not. Names and order of the arguments are those that templates use.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise _Raised(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - local time without a zone, as transformers tells it
