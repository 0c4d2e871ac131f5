from __future__ import annotations

import contextvars
import json
import logging
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from handler.logs import MAX_LINE, MAX_MESSAGE, JobFormatter, Tail, current_job
from tests.strategies import SETTINGS, cuts


def test_lines_are_given_once_complete_and_files_that_appear_later_are_found(tmp_path: Path) -> None:
    tail = Tail(tmp_path, ["workerlog.*", "launch_worker.log"])
    assert tail.lines() == []
    (tmp_path / "workerlog.0").write_text("one\ntw")
    (tmp_path / "api_server.log").write_text("a prompt\n")
    assert tail.lines() == [("workerlog.0", "one")]
    with (tmp_path / "workerlog.0").open("a") as file:
        file.write("o\nthree")
    (tmp_path / "launch_worker.log").write_text("launched\n")
    assert tail.lines() == [("launch_worker.log", "launched"), ("workerlog.0", "two")]
    assert tail.lines() == []
    assert tail.lines(last=True) == [("workerlog.0", "three")]
    assert tail.lines(last=True) == []


def test_a_line_without_end_is_cut_and_a_missing_folder_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "workerlog.0").write_bytes(b"x" * (MAX_LINE + 1))
    assert Tail(tmp_path, ["workerlog.*"]).lines() == [("workerlog.0", "x" * (MAX_LINE + 1))]
    assert Tail(tmp_path / "none", ["*"]).lines() == []


@SETTINGS
@given(st.data())
def test_however_a_file_grows_its_lines_are_the_same(data: st.DataObject) -> None:
    """Rule: nothing of a log is lost or doubled."""
    import tempfile

    text = b"".join(
        line + b"\n" for line in data.draw(st.lists(st.binary(max_size=6).map(lambda raw: raw.replace(b"\n", b"")), max_size=6))
    )
    with tempfile.TemporaryDirectory() as folder:
        tail, found = Tail(Path(folder), ["log"]), []
        for piece in data.draw(cuts(text)):
            with (Path(folder) / "log").open("ab") as file:
                file.write(piece)
            found += tail.lines()
        found += tail.lines(last=True)
    assert [line for _, line in found] == [line.decode("utf-8", "replace").rstrip() for line in text.split(b"\n")[:-1]]


def formatted(message: str, *arguments: Any, platform: bool, level: int = logging.INFO, job: str | None = None, error: Any = None) -> str:
    record = logging.LogRecord("handler.part", level, __file__, 1, message, arguments, error)

    def run() -> str:
        current_job.set(job)
        return JobFormatter(platform=platform).format(record)

    return contextvars.copy_context().run(run)


def test_a_line_for_the_platform_has_the_fields_of_its_own_sdk() -> None:
    line = formatted("%d jobs", 3, platform=True, level=logging.WARNING, job="j-1")
    assert line == '{"requestId": "j-1", "message": "handler.part: 3 jobs", "level": "WARN"}'
    levels = {level: json.loads(formatted("x", platform=True, level=level))["level"] for level in (10, 20, 30, 40, 50)}
    assert levels == {10: "DEBUG", 20: "INFO", 30: "WARN", 40: "ERROR", 50: "ERROR"}


def test_a_line_for_a_person_is_text() -> None:
    assert formatted("ready", platform=False) == "INFO handler.part: ready"
    assert formatted("ready", platform=False, job="j-1") == "INFO handler.part: job j-1: ready"


def test_a_traceback_is_part_of_the_one_line() -> None:
    line = ""
    try:
        int("first\nsecond")
    except ValueError:
        line = formatted("failed", platform=True, level=logging.ERROR, error=sys.exc_info())
    assert "\n" not in line
    assert json.loads(line)["message"].endswith(r"ValueError: invalid literal for int() with base 10: 'first\nsecond'")
    assert "Traceback" in line


def test_a_long_message_loses_its_middle() -> None:
    message = json.loads(formatted("a" * MAX_MESSAGE + "b" * MAX_MESSAGE, platform=True))["message"]
    assert message.startswith("handler.part: aaa")
    assert message.endswith("bbb")
    assert f"{MAX_MESSAGE + len('handler.part: ')} characters left out" in message


@SETTINGS
@given(st.text(st.characters()), st.text(st.characters()) | st.none())
def test_whatever_is_logged_is_one_line_of_json(message: str, job: str | None) -> None:
    """Rule: one JSON object per line."""
    line = formatted("%s", message, platform=True, job=job)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["requestId"] == job
