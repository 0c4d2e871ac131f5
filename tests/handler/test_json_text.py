from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import InvalidJob
from handler.json_text import check_content_type, read_object
from tests.strategies import JSON_VALUES, SETTINGS


@SETTINGS
@given(st.dictionaries(st.text(), JSON_VALUES, min_size=1))
def test_what_a_client_writes_as_json_is_what_is_read(value: dict[str, Any]) -> None:
    """Rule: nothing of a request is dropped or changed."""
    assert json.dumps(read_object(json.dumps(value).encode())) == json.dumps(value)


@SETTINGS
@given(st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_the_callers_error(body: bytes) -> None:
    """Rule: malformed JSON, other JSON than an object, and bytes that are not UTF-8 are a 400 that names the body."""
    try:
        assert read_object(body)
    except InvalidJob as error:
        assert (error.status, error.param) == (400, "body")
        assert str(error).startswith("body: ")


@pytest.mark.parametrize(
    "header",
    [None, "application/json", "Application/JSON; charset=utf-8", 'application/json;charset="UTF-8"', "application/vnd.api+json"],
)
def test_json_in_utf_8_is_taken_however_it_is_named(header: str | None) -> None:
    check_content_type(header)


@pytest.mark.parametrize("header", ["", "text/plain", "application/jsonp", "application/json; charset=latin-1", "multipart/form-data; b=x"])
def test_anything_else_is_the_callers_error(header: str) -> None:
    with pytest.raises(InvalidJob, match=r"Content-Type: got .*, expected (application/json|utf-8)") as caught:
        check_content_type(header)
    assert (caught.value.status, caught.value.param) == (400, "Content-Type")
