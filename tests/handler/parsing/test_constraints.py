from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from handler.errors import InvalidJob
from handler.parsing.constraints import Capabilities, constrain
from handler.parsing.families import FAMILIES, FORCED
from handler.parsing.rewriter import Rewriter

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
STRICT = {"type": "function", "function": {"name": "get_weather", "parameters": CITY, "strict": True}}
NOW = {"type": "function", "function": {"name": "now"}}
BODY = {"messages": [{"role": "user", "content": "hello"}], "tools": [WEATHER, NOW]}
ALL = Capabilities(guided=frozenset({"json", "json_object", "regex", "choice", "grammar", "structural_tag"}), max_stops=5)
NONE = Capabilities()
HERMES = FAMILIES["hermes"]
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def schema_of(sent: dict[str, Any]) -> Any:
    assert sent["response_format"]["type"] == "json_schema"
    return sent["response_format"]["json_schema"]["schema"]


@pytest.mark.parametrize("choice", [{}, {"tool_choice": None}, {"tool_choice": "auto"}, {"parallel_tool_calls": True}])
def test_what_leaves_the_model_free_is_sent_as_it_is(choice: dict[str, Any]) -> None:
    found = constrain(BODY | choice, HERMES, NONE)
    assert (found.body, found.family) == (BODY, HERMES)


def test_a_request_without_tools_is_sent_as_it_is() -> None:
    body = {"messages": [], "stop": "x"}
    assert constrain(body, HERMES, NONE).body == body


def test_tools_that_must_not_be_called_are_left_out() -> None:
    found = constrain(BODY | {"tool_choice": "none"}, HERMES, NONE)
    assert (found.body, found.family) == ({"messages": BODY["messages"]}, None)


@pytest.mark.parametrize(
    ("choice", "right", "wrong"),
    [
        ("required", [["get_weather"], ["now"], ["now", "get_weather"]], [[], ["later"]]),
        ({"type": "function", "function": {"name": "now"}}, [["now"]], [[], ["get_weather"], ["now", "now"]]),
    ],
)
def test_a_required_call_holds_the_answer_to_a_list_of_calls(choice: Any, right: list[list[str]], wrong: list[list[str]]) -> None:
    found = constrain(BODY | {"tool_choice": choice}, HERMES, ALL)
    assert found.family is FORCED
    assert "tool_choice" not in found.body
    schema = schema_of(found.body)
    jsonschema.Draft202012Validator.check_schema(schema)
    arguments = {"get_weather": {"city": "Rome"}}
    for names in [*right, *wrong]:
        calls = [{"name": name, "arguments": arguments.get(name, {})} for name in names]
        assert jsonschema.Draft202012Validator(schema).is_valid(calls) == (names in right)
    answer = {"choices": [{"message": {"content": json.dumps([{"name": "now", "arguments": {}}])}, "finish_reason": "stop"}]}
    assert Rewriter(found.family, None, BODY).whole(answer)["choices"][0]["finish_reason"] == "tool_calls"


def test_a_required_call_may_be_held_to_one() -> None:
    body = BODY | {"tool_choice": "required", "parallel_tool_calls": False}
    assert schema_of(constrain(body, HERMES, ALL).body)["maxItems"] == 1


@pytest.mark.parametrize(
    ("form", "valid"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}}, {"name": "Ada"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "p"}}}, {"any": "object"}),
        ({"response_format": {"type": "json_object"}}, {"any": "object"}),
        ({"guided_json": PERSON}, {"name": "Ada"}),
    ],
)
def test_a_format_beside_tools_holds_the_answer_to_either(form: dict[str, Any], valid: Any) -> None:
    found = constrain(BODY | form, HERMES, ALL)
    validator = jsonschema.Draft202012Validator(schema_of(found.body))
    assert found.family is FORCED
    assert "guided_json" not in found.body
    assert validator.is_valid(valid)
    assert validator.is_valid([{"name": "now", "arguments": {}}])
    assert not validator.is_valid([])
    assert not validator.is_valid(5)


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"guided_regex": "a+"},
        {"guided_choice": ["a"]},
        {"guided_grammar": "root ::= 'a'"},
    ],
)
def test_a_format_alone_is_passed_on(form: dict[str, Any]) -> None:
    body = {"messages": []} | form
    assert constrain(body, None, ALL).body == body


@pytest.mark.parametrize("family", ["hermes", "ernie"])
def test_strict_tools_are_held_to_their_schemas_and_others_to_an_object(family: str) -> None:
    found = constrain(BODY | {"tools": [STRICT, NOW]}, FAMILIES[family], ALL)
    form = found.body["response_format"]
    assert found.family is FAMILIES[family]
    assert form["type"] == "structural_tag"
    assert [tag["schema"] for tag in form["structures"]] == [CITY, {"type": "object"}]
    for tag, arguments in zip(form["structures"], ({"city": "Rome"}, {}), strict=True):
        assert tag["begin"].startswith(form["triggers"][0])
        text = tag["begin"] + json.dumps(arguments) + tag["end"]
        (choice,) = Rewriter(found.family, None, BODY).whole({"choices": [{"message": {"content": text}}]})["choices"]
        assert [json.loads(call["function"]["arguments"]) for call in choice["message"]["tool_calls"]] == [arguments]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("given", "stops"), [({}, []), ({"stop": "a"}, ["a"]), ({"stop": ["a", "b"]}, ["a", "b"])])
def test_one_call_at_most_is_a_stop_string_at_its_end(family: str, given: dict[str, Any], stops: list[str]) -> None:
    found = constrain(BODY | given | {"parallel_tool_calls": False}, FAMILIES[family], NONE)
    assert found.body == BODY | {"stop": [*stops, FAMILIES[family].close]}


@pytest.mark.parametrize(
    ("change", "engine", "field"),
    [
        ({"tools": [NOW, NOW]}, ALL, r"tools\[1\].function.name"),
        ({"tools": None, "tool_choice": "required"}, ALL, "tool_choice"),
        ({"tool_choice": "later"}, ALL, "tool_choice"),
        ({"tool_choice": ["now"]}, ALL, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "later"}}}, ALL, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": "now"}}, ALL, "tool_choice"),
        ({"tool_choice": "required"}, NONE, "tool_choice"),
        ({"tools": [STRICT]}, NONE, r"tools\[0\].function.strict"),
        ({"parallel_tool_calls": False, "stop": list("abcd")}, NONE, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, NONE, "response_format"),
        ({"guided_regex": "a"}, NONE, "guided_regex"),
        ({"guided_regex": "a"}, ALL, "guided_regex"),
        ({"response_format": {"type": "structural_tag"}}, ALL, "response_format"),
        ({"guided_json": {}, "response_format": {"type": "json_object"}}, ALL, "response_format"),
    ],
)
def test_what_the_engine_cannot_be_held_to_is_refused_by_name(change: dict[str, Any], engine: Capabilities, field: str) -> None:
    with pytest.raises(InvalidJob, match=f"^{field}: ") as refused:
        constrain(BODY | change, HERMES, engine)
    assert refused.value.status == 400


@pytest.mark.parametrize("change", [{"tools": [STRICT]}, {"parallel_tool_calls": False}])
def test_calls_that_are_not_read_here_are_not_constrained_here(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        constrain(BODY | change, None, ALL)
    if "tools" in change:
        with pytest.raises(InvalidJob):
            constrain(BODY | change, FAMILIES["glm"], ALL)
