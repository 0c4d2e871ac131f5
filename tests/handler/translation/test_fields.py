from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidJob
from handler.translation.fields import Given, given_by_type, table
from tests.strategies import JSON_VALUES, SETTINGS

KNOWN = table(
    "text number",
    no_effect={"quiet silent": "it says nothing"},
    refused={"never": "it cannot be done", "seldom": "it can seldom be done"},
    harmless={"seldom": (False, [])},
)


def read(value: object, unheard: dict[str, str] | None = None) -> Given:
    return Given(value, KNOWN, "place", {} if unheard is None else unheard)


@SETTINGS
@given(st.dictionaries(st.sampled_from(["text", "number", "quiet", "silent", "never", "seldom", "other"]), JSON_VALUES))
def test_each_field_is_given_or_noted_or_refused_by_name(value: dict[str, Any]) -> None:
    """Rule: "Nothing asked is dropped in silence. An option is honoured, or refused by name, or reported once." """
    unheard: dict[str, str] = {}
    asked = {name for name, item in value.items() if item is not None}
    try:
        found = read(value, unheard)
    except InvalidJob as error:
        assert error.param in {f"place.{name}" for name in asked & {"never", "seldom", "other"}}
        assert str(error).startswith(f"{error.param}: ")
    else:
        heard = {name for name in asked if found.get(name) is not None}
        assert heard | set(unheard) | (asked & {"seldom"}) == asked
        assert set(unheard) <= {"quiet", "silent"}
        assert "seldom" not in asked or value["seldom"] in (False, [])


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        (None, "place", "invalid_value"),
        (["text"], "place", "invalid_value"),
        ({"other": 1}, "place.other", "unknown_field"),
        ({"never": False}, "place.never", "unsupported_parameter"),
        ({"seldom": True}, "place.seldom", "unsupported_parameter"),
    ],
)
def test_what_no_table_lets_through_is_refused(value: object, param: str, code: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        read(value)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)


def test_a_field_of_another_kind_is_refused_by_its_path() -> None:
    found = read({"text": 1, "number": "a"})
    for reading in (lambda: found.text("text"), lambda: found.object("number"), lambda: list(found.each("number"))):
        with pytest.raises(InvalidJob, match=r"^place\.(text|number): got (1|\"a\"), expected"):
            reading()


def test_a_missing_field_is_its_default_or_refused() -> None:
    found = read({"text": None})
    assert found.text("text", "none") == "none"
    assert found.object("number") == {}
    assert list(found.each("number")) == []
    assert found.get("text") is None
    assert found.named("text", "number") == {}
    for reading in (lambda: found.text("text"), lambda: found.object("number", required=True)):
        with pytest.raises(InvalidJob, match="missing, expected") as caught:
            reading()
        assert caught.value.code == "missing_required_parameter"


def test_an_object_is_read_by_the_table_of_its_type() -> None:
    kinds = {"a": table("type text"), "b": table("type")}
    kind, found = given_by_type({"type": "a", "text": "x"}, kinds, "place", {})
    assert (kind, found.text("text"), found.at("text")) == ("a", "x", "place.text")
    assert given_by_type({}, kinds, "place", {}, default="b")[0] == "b"


@pytest.mark.parametrize("value", [1, None, [], {"type": "c"}, {"type": ["a"]}, {"type": None}, {}])
def test_an_object_of_no_known_type_is_refused_with_those_that_are(value: object) -> None:
    with pytest.raises(InvalidJob, match=r"expected an object with a type of a, b"):
        given_by_type(value, {"a": table("type"), "b": table("type")}, "place", {})


def test_a_long_value_is_not_repeated_in_the_message() -> None:
    with pytest.raises(InvalidJob) as caught:
        read("x" * 1000)
    assert str(caught.value) == "place: got a text of 1000 characters, expected an object"
