"""What binds an answer to a form: response_format, guided_* and tool_choice of a request -> one grammar in llguidance's Lark.

Only the text of the grammar is made here; constraint.py compiles it, and finds what is wrong inside a schema, a regex or a grammar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cpu_engine.architecture import JsonObject
from cpu_engine.json_fields import Fields
from cpu_engine.refusals import BadRequest, RequestKind

# No white space but one blank after each comma and colon: a small model left free to choose writes blanks without end.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_ANY_OBJECT: JsonObject = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """A grammar, and the field that asked for it."""

    field: str
    grammar: str
    """In llguidance's Lark; `guided_grammar` may be in GBNF too."""
    calls: Mapping[str, str]
    """Where the answer is a call: how the text of it begins -> the name of the tool. The arguments follow, then a closing brace."""


def read_form(kind: RequestKind, fields: Fields) -> AnswerForm | None:
    """Return what the answer has to be, None where it is free; raise BadRequest for a field that is malformed or has no place here."""
    asked = [form for form in (_response_format(fields), _guided(fields), _call(fields) if kind == "chat" else None) if form]
    if len(asked) > 1:
        message = f"{asked[1].field}: the answer cannot follow it and {asked[0].field} too, expected one of them"
        raise BadRequest(message, param=asked[1].field)
    return asked[0] if asked else None


def _response_format(fields: Fields) -> AnswerForm | None:
    form = fields.mapping("response_format")
    if form is None or form.get("type") == "text":
        return None
    if form.get("type") == "json_object":
        return _json(_ANY_OBJECT, "response_format")
    if form.get("type") != "json_schema":
        message = "response_format: the CPU engine has the types text, json_object and json_schema"
        raise BadRequest(message, param="response_format", code="unsupported_value")
    about = form.get("json_schema")
    schema = about.get("schema") if isinstance(about, dict) else None
    if not isinstance(about, dict) or not isinstance(schema, (dict, type(None))):
        raise BadRequest("response_format.json_schema: expected an object with a name and a schema", param="response_format.json_schema")
    return _json(_ANY_OBJECT if schema is None else schema, "response_format")


def _guided(fields: Fields) -> AnswerForm | None:
    names = [name for name in _GUIDED if fields.raw.get(name) is not None]
    if len(names) > 1:
        raise BadRequest(f"{names[1]}: got {names[0]} too, expected one of {', '.join(_GUIDED)}", param=names[1])
    if not names:
        return None
    (name,) = names
    if name == "guided_json":
        return _json(_schema(fields), name)
    if name == "guided_choice":
        choices = fields.strings(name)
        if not choices:
            raise fields.wrong(name, "a list of at least one string")
        return AnswerForm(field=name, grammar="start: " + " | ".join(map(_literal, choices)), calls={})
    text = fields.text(name) or ""
    if name == "guided_regex":
        from llguidance import regex_to_lark

        return AnswerForm(field=name, grammar=f"start: /{regex_to_lark(text)}/", calls={})
    return AnswerForm(field=name, grammar=text, calls={})


def _schema(fields: Fields) -> JsonObject:
    value = fields.raw["guided_json"]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise fields.wrong("guided_json", "a JSON schema, as an object or as its text")
    return value


def _call(fields: Fields) -> AnswerForm | None:
    """Return the form of a call that `tool_choice` demands: of a named tool, or of any."""
    choice, tools = fields.raw.get("tool_choice"), fields.objects("tools") or []
    if choice in (None, "none", "auto"):
        return None
    named = choice.get("function") if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if choice != "required" and not isinstance(name, str):
        raise fields.wrong("tool_choice", '"none", "auto", "required" or {"type": "function", "function": {"name": "..."}}')
    functions = [_function(number, tool) for number, tool in enumerate(tools)]
    wanted = [(known, parameters) for known, parameters in functions if name in (None, known)]
    if not wanted:
        raise BadRequest(f"tool_choice: no tool {name!r} in tools" if name else "tool_choice: no tools to choose from", param="tool_choice")
    if len({known for known, _ in functions}) < len(functions):
        raise BadRequest("tools: two of them have one name, expected each name once", param="tools")
    begins = {f'{{"name": {json.dumps(known, ensure_ascii=False)}, "arguments": ': known for known, _ in wanted}
    rules = [f"call_{number}: {_literal(begin)} %json {_compact(wanted[number][1])}" for number, begin in enumerate(begins)]
    start = "start: (" + " | ".join(f"call_{number}" for number in range(len(rules))) + ') "}"'
    return AnswerForm(field="tool_choice", grammar="\n".join([start, *rules]), calls=begins)


def _function(number: int, tool: Mapping[str, object]) -> tuple[str, JsonObject]:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    parameters = function.get("parameters") if isinstance(function, dict) else None
    if not isinstance(name, str) or not isinstance(parameters, (dict, type(None))):
        raise BadRequest(f"tools[{number}].function: expected an object with a name and parameters", param="tools")
    return name, {**_ANY_OBJECT, **(parameters or {})}


def _json(schema: JsonObject, field: str) -> AnswerForm:
    return AnswerForm(field=field, grammar=f"start: %json {_compact(schema)}", calls={})


def _compact(schema: JsonObject) -> str:
    return json.dumps({**schema, "x-guidance": _COMPACT}, ensure_ascii=False)


def _literal(text: str) -> str:
    # Of all characters that JSON leaves as they are, llguidance does not read one.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
