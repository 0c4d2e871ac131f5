"""What is asked of the engine so that an answer is what tool_choice, parallel_tool_calls, strict and response_format say, or a refusal.

tool_choice none             the tools are left out of the request
tool_choice required, name   the answer is held to a JSON list of calls, which `FORCED` reads
parallel_tool_calls false    auto: the end of a call is a stop string; else a list of one
strict                       auto: the arguments of each call are held to the tool's schema by a structural tag
response_format, guided_*    passed on; beside tools, the answer is held to the format or to a list of calls
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from handler.errors import InvalidJob
from handler.parsing.families import FORCED, Family

__all__ = ["Capabilities", "Constrained", "constrain"]

_FORMATS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "structural_tag": "structural_tag",
}
_RESPONSE_FORMATS = {"json_schema": "json", "json_object": "json_object", "structural_tag": "structural_tag"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can hold its answers to."""

    guided: frozenset[str] = frozenset()
    """Of json, json_object, regex, choice, grammar and structural_tag those that its constrained decoding takes."""
    max_stops: int = 4
    """How many stop strings it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constrained:
    """A request as the engine gets it, and the family that reads calls from its answer."""

    body: dict[str, Any]
    family: Family | None


def constrain(body: Mapping[str, Any], family: Family | None, engine: Capabilities) -> Constrained:
    """Return what is sent for a chat request whose answers `family` reads.

    Raises:
        InvalidJob: the engine cannot be held to what is asked; the error names the field.
    """
    sent = {name: value for name, value in body.items() if name not in {"tool_choice", "parallel_tool_calls"}}
    functions = _functions(body)
    choice = _choice(body, functions)
    format_field, kind = _format(body)
    if kind and kind not in engine.guided:
        _refuse(
            format_field, f"this engine's constrained decoding does not take it (it takes: {', '.join(sorted(engine.guided)) or 'nothing'})"
        )
    if choice == "none" or not functions:
        return Constrained(body={name: value for name, value in sent.items() if name != "tools"} if functions else sent, family=None)
    single = body.get("parallel_tool_calls") is False
    if choice != "auto" or kind:
        return Constrained(body=_forced(sent, functions, choice, single=single, format_field=format_field, engine=engine), family=FORCED)
    strict = next((index for index, function in enumerate(functions) if function.get("strict")), None)
    if strict is not None:
        field = f"tools[{strict}].function.strict"
        if family is None or family.frame is None or "structural_tag" not in engine.guided:
            _refuse(field, "this engine cannot hold the calls of this model to a schema while it may also answer with text")
        sent["response_format"] = _tags(functions, family.frame)
    if single:
        sent["stop"] = _stops(body, family, engine)
    return Constrained(body=sent, family=family)


def _functions(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    functions = [tool["function"] for tool in body.get("tools") or ()]
    names: set[str] = set()
    for index, function in enumerate(functions):
        if function["name"] in names:
            _refuse(f"tools[{index}].function.name", f"got {function['name']!r} for a second time, expected a name for each tool")
        names.add(function["name"])
    return functions


def _choice(body: Mapping[str, Any], functions: list[dict[str, Any]]) -> str | list[str]:
    """Return auto, none, required, or a list of the one tool that is to be called."""
    choice = body.get("tool_choice")
    if choice is None or choice == "auto":
        return "auto"
    if choice == "none":
        return "none"
    if not functions:
        _refuse("tool_choice", f"got {choice!r} without tools")
    if choice == "required":
        return "required"
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in [function["name"] for function in functions]:
        named = '{"type": "function", "function": {"name": "..."}} of one of the tools'
        _refuse("tool_choice", f"got {choice!r}, expected auto, none, required, or {named}")
    return [name]


def _format(body: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the field that constrains the answer, and what an engine needs for it."""
    asked = [(field, need) for field, need in _FORMATS.items() if body.get(field) is not None]
    form = body.get("response_format") or {}
    if form.get("type") in _RESPONSE_FORMATS:
        asked.append(("response_format", _RESPONSE_FORMATS[form["type"]]))
    if len(asked) > 1:
        _refuse(asked[1][0], f"got it beside {asked[0][0]}, expected one of them")
    return asked[0] if asked else ("", None)


def _forced(
    sent: dict[str, Any], functions: list[dict[str, Any]], choice: str | list[str], *, single: bool, format_field: str, engine: Capabilities
) -> dict[str, Any]:
    """Return the request of an answer that is a list of calls, or, if the choice is auto, one in the format that the request has."""
    field = "tool_choice" if choice != "auto" else format_field
    if "json" not in engine.guided:
        _refuse(field, f"got {choice!r}, but this engine has no constrained decoding by a schema")
    callable_now = [function for function in functions if isinstance(choice, str) or function["name"] in choice]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": [_call(function) for function in callable_now]}}
    if single or isinstance(choice, list):
        schema["maxItems"] = 1
    if choice == "auto":
        schema = {"anyOf": [_schema(sent, format_field), schema]}
    rest = {name: value for name, value in sent.items() if name != format_field}
    return rest | {"response_format": {"type": "json_schema", "json_schema": {"name": "calls", "schema": schema, "strict": True}}}


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    members = {"name": {"const": function["name"]}, "arguments": arguments}
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def _schema(sent: Mapping[str, Any], field: str) -> Any:
    """Return the JSON schema that a format of the request is."""
    form = sent[field]
    if field == "guided_json":
        return form
    if field != "response_format" or form["type"] == "structural_tag":
        _refuse(field, "got it beside tools, expected a JSON schema, or tool_choice none")
    return (form.get("json_schema") or {}).get("schema") or {"type": "object"}


def _tags(functions: list[dict[str, Any]], frame: tuple[str, str, str]) -> dict[str, Any]:
    before, between, after = frame
    structures = [
        {
            "begin": before + function["name"] + between,
            "schema": (function.get("parameters") if function.get("strict") else None) or {"type": "object"},
            "end": after,
        }
        for function in functions
    ]
    return {"type": "structural_tag", "structures": structures, "triggers": [before]}


def _stops(body: Mapping[str, Any], family: Family | None, engine: Capabilities) -> list[str]:
    field = "parallel_tool_calls"
    if family is None:
        _refuse(field, "got false, but calls of this model are not read here")
    given = body.get("stop") or []
    stops = [*([given] if isinstance(given, str) else given), family.close]
    if len(stops) > engine.max_stops:
        _refuse(
            field, f"got false beside {len(stops) - 1} stop strings, expected at most {engine.max_stops - 1}: the end of a call becomes one"
        )
    return stops


def _refuse(field: str, message: str) -> NoReturn:
    raise InvalidJob(f"{field}: {message}", param=field, code="unsupported_value")
