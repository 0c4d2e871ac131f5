from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.parsing.values import ValueEnd, escaped, spelled, types_of
from tests.strategies import JSON_VALUES, SETTINGS


@SETTINGS
@given(JSON_VALUES, st.sampled_from(["}", ",", "]", "</tool_call>", '}, "x"']), st.integers(1, 9))
def test_the_end_of_a_json_value_is_found_whatever_its_strings_hold_and_however_it_arrives(value: object, after: str, size: int) -> None:
    text = json.dumps(value)
    whole, end = text + after, ValueEnd()
    for at in range(0, len(whole), size):
        found = end(whole[at : at + size], 0)
        if found >= 0:
            assert at + found == len(text)
            return
    raise AssertionError(text)


@SETTINGS
@given(st.text(), st.text())
def test_escaped_pieces_of_a_string_join_to_the_string(one: str, two: str) -> None:
    assert json.loads(f'"{escaped(one)}{escaped(two)}"') == one + two


@SETTINGS
@given(st.text(), st.frozensets(st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])))
def test_any_text_becomes_valid_json_whatever_the_types(text: str, types: frozenset[str]) -> None:
    json.loads(spelled(text, types))


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", {"integer"}, 5),
        ("5", {"string", "integer"}, 5),
        ("5", {"string"}, "5"),
        ("5", {"string", "null"}, "5"),
        ("null", {"string", "null"}, None),
        ("5", set(), 5),
        ("five", {"integer"}, "five"),
        ("True", {"boolean"}, True),
        ("None", {"object", "null"}, None),
        ("None", {"string", "null"}, "None"),
        ("None", set(), "None"),
        (' {"a": 1}\n', {"object"}, {"a": 1}),
        ('"quoted"', {"string", "null"}, '"quoted"'),
        ("NaN", {"number"}, "NaN"),
        ("9" * 5000, {"integer"}, "9" * 5000),  # Python reads no longer numbers
        ("[" * 100_000, {"array"}, "[" * 100_000),
    ],
)
def test_a_parameter_becomes_json_of_the_type_that_its_schema_names(text: str, types: set[str], value: object) -> None:
    assert json.loads(spelled(text, frozenset(types))) == value


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null", 3]}, {"integer", "null"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}, "odd"]}, {"integer", "null"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"enum": [1, 2.5, None, True, {}, []]}, {"integer", "number", "null", "boolean", "object", "array"}),
        ({"const": "x"}, {"string"}),
        ({"$ref": "#/$defs/Place"}, set()),
        ({"type": 3, "enum": 4, "anyOf": 5}, set()),
        (None, set()),
        (True, set()),
    ],
)
def test_the_types_of_a_schema_are_those_that_it_names(schema: object, types: set[str]) -> None:
    assert types_of(schema) == types
