from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from handler import errors
from handler.errors import EngineDied, EngineRejected, InvalidJob, InvalidSettings, Told, WorkerError, to_openai
from tests.twins.replay.recordings import RELEASES, Recording, load


def all_classes(root: type[WorkerError]) -> list[type[WorkerError]]:
    return [root, *(found for child in root.__subclasses__() for found in all_classes(child))]


MAKERS: dict[str, Callable[[], WorkerError]] = {
    "EngineRejected": lambda: EngineRejected(500, b""),
    "Told": lambda: Told("words", 503, {"error": {"message": "words", "type": "server_error", "param": None, "code": None}}, b""),
    "InvalidSettings": lambda: InvalidSettings(["A: wrong", "B: wrong"]),
}


@pytest.mark.parametrize("kind", [kind for kind in all_classes(WorkerError) if kind is not WorkerError], ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_is_public_drawn_and_becomes_an_openai_error(kind: type[WorkerError]) -> None:
    assert kind.__name__ in errors.__all__
    assert kind.__name__ in (errors.__doc__ or "")
    error = MAKERS[kind.__name__]() if kind.__name__ in MAKERS else kind("words")
    status, body = to_openai(error)
    assert 400 <= status < 600
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    json.dumps(body)


def test_an_error_from_outside_the_tree_tells_nothing_of_itself() -> None:
    status, body = to_openai(KeyError("/secret/path"))
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert body["error"]["code"] == "internal_error"


def test_the_callers_mistake_names_field_and_code() -> None:
    assert to_openai(InvalidJob("n: got 0", param="n", code="too_small", status=422)) == (
        422,
        {"error": {"message": "n: got 0", "type": "invalid_request_error", "param": "n", "code": "too_small"}},
    )


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {"error": {"message": "Field required", "type": "invalid_request_error", "param": "messages", "code": "missing"}},
            (400, "invalid_request_error", "messages", "missing"),
        ),
        (
            500,
            {"error": {"message": "too long", "type": "invalid_request_error", "param": None, "code": None}},
            (400, "invalid_request_error", None, None),
        ),
        (
            500,
            {"error": {"message": "Unsupported model", "type": "internal_error", "code": "model_not_support"}},
            (404, "not_found_error", "model", "model_not_found"),
        ),
        (500, {"error": {"message": "boom", "type": "internal_error", "param": 14}}, (500, "server_error", "14", None)),
        (404, {"detail": "Not Found"}, (404, "not_found_error", None, None)),
        (429, {"detail": "Too many requests"}, (429, "rate_limit_error", None, None)),
        (401, {"error": "Unauthorized"}, (401, "authentication_error", None, None)),
        (405, {"detail": "Method Not Allowed"}, (405, "invalid_request_error", None, None)),
        (502, [1, 2], (502, "server_error", None, None)),
    ],
)
def test_what_fastdeploy_answers_is_translated(status: int, body: object, expected: tuple[object, ...]) -> None:
    found, answer = to_openai(EngineRejected(status, json.dumps(body).encode()))
    error = answer["error"]
    assert (found, error["type"], error["param"], error["code"]) == expected
    assert error["message"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"null"])
def test_an_error_without_json_still_says_something(body: bytes) -> None:
    status, answer = to_openai(EngineRejected(503, body))
    assert status == 503
    assert answer["error"]["message"] == "the engine answered 503 without a message"


@pytest.mark.parametrize(
    ("message", "left"),
    [
        (
            'request[chatcmpl-1] generator error: too long, Traceback (most recent call last):\n  File "/x.py", line 1\nValueError: x\n',
            "too long",
        ),
        ('Traceback (most recent call last):\n  File "/opt/x.py", line 1, in f\n    y\nmodule.SomeError: the reason', "the reason"),
        ("Traceback (most recent call last):\n  File x", "File x"),
        ("plain words", "plain words"),
    ],
)
def test_tracebacks_are_cut_out_of_messages(message: str, left: str) -> None:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()
    assert to_openai(EngineRejected(500, body))[1]["error"]["message"] == left


ANSWERS = [(release, one) for release in RELEASES for one in load(release) if one.status and one.status >= 300]


@pytest.mark.parametrize("one", [one for _, one in ANSWERS], ids=[f"{release}-{one.case}" for release, one in ANSWERS])
def test_no_recorded_error_carries_a_traceback_or_a_path_to_the_caller(one: Recording) -> None:
    assert one.status
    status, answer = to_openai(EngineRejected(one.status, one.body))
    message = answer["error"]["message"]
    assert message
    assert "Traceback" not in message
    assert "/opt/" not in message
    assert not re.search(r"\.py\b(?!dantic)", message)
    assert 400 <= status < 600 or status == 304


def test_an_engine_death_may_be_tried_again_elsewhere() -> None:
    assert to_openai(EngineDied("gone"))[0] == 503
