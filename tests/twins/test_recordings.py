"""The recordings as they are kept: a line for each case, every byte in it, and shown to a person by name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tests import ROOT, TRANSCRIPTS
from tests.twins.replay.recordings import RELEASES, BadTranscripts, Recording, from_line, load, named, to_line
from tests.twins.replay.wire import Request


@given(body=st.binary(), answer=st.binary(), note=st.text())
def test_every_byte_of_request_and_answer_comes_back(body: bytes, answer: bytes, note: str) -> None:
    """Law: `from_line(to_line(recording)) == recording`, and the line is one line of UTF-8, whatever the bytes."""
    request = Request(method="POST", path="/v1/completions", headers=CIMultiDict({"Content-Type": "text/plain"}), body=body)
    one = Recording(case="base_any", note=note, duration_s=0.5, request=request, raw=answer)
    line = to_line(one)
    assert b"\n" not in line.encode()
    assert from_line(line) == one


@pytest.mark.parametrize("release", RELEASES)
def test_the_files_hold_what_the_writer_writes_and_each_case_once(release: str) -> None:
    recordings = load(release)
    lines = [to_line(one) + "\n" for one in recordings]
    assert (TRANSCRIPTS / f"{release}.jsonl").read_text(encoding="utf-8") == "".join(lines)
    assert len({one.case for one in recordings}) == len(recordings)


def test_text_is_kept_as_text_and_a_byte_that_is_none_as_its_escape() -> None:
    one = named("2.3", "base_chat_stream_unicode")
    assert "你" in to_line(one)
    assert r'"answer": "a\udcff你"' in to_line(Recording(case="x", duration_s=0, request=one.request, raw=b"a\xff" + "你".encode()))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("", "JSONDecodeError"), ("[]", "TypeError"), ('{"case": "a"}', "KeyError('request')"), ('{"request": 5}', "TypeError")],
)
def test_a_line_that_is_no_case_is_refused_with_its_place(line: str, complaint: str) -> None:
    with pytest.raises(BadTranscripts) as raised:
        from_line(line, "2.3.jsonl, line 7")
    assert str(raised.value).startswith("2.3.jsonl, line 7: expected a case as `to_line` writes it, got ")
    assert complaint in str(raised.value)


def show(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "tests.twins.replay", "show", *words], cwd=ROOT, capture_output=True, check=False)


def test_a_case_is_shown_with_its_request_and_its_answer_as_they_stood() -> None:
    one = named("2.3", "base_chat_stream_unicode")
    shown = show("2.3", "base_chat_stream_unicode")
    assert (shown.returncode, shown.stderr) == (0, b"")
    head, request, answer = shown.stdout.replace(b"# answer\n", b"# request\n").split(b"# request\n")
    assert head == b"# base_chat_stream_unicode, FastDeploy 2.3, 0.068 s: multi-byte tokens across chunks\n"
    assert request == one.request.wire + b"\n"
    assert answer == one.raw + b"\n"
    assert b"POST /v1/chat/completions HTTP/1.1\r\nHost: " in request
    assert json.loads(request.partition(b"\r\n\r\n")[2]) == json.loads(one.request.body)


def test_a_request_that_was_never_answered_is_shown_as_that() -> None:
    assert show("2.3", "base_err_min_tokens_neg").stdout.endswith(b"# answer\n(never answered)\n")


def test_without_a_case_all_are_listed_in_their_order() -> None:
    lines = show("2.5").stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [one.case for one in load("2.5")]
    assert lines[0].split() == ["base_get_health", "200", "GET", "/health"]
    assert "multi-byte tokens across chunks" in next(line for line in lines if line.startswith("base_chat_stream_unicode"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("2.3", "base_chat_strem"), "release 2.3 has no case 'base_chat_strem'; did you mean 'base_chat_stream'? `show 2.3` lists all"),
        (("2.3", "#"), "release 2.3 has no case '#'; `show 2.3` lists all"),
        (("2.9",), "no recordings of release '2.9'; there are: 2.3, 2.4, 2.5"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(words: tuple[str, ...], complaint: str) -> None:
    shown = show(*words)
    assert (shown.returncode, shown.stdout) == (2, b"")
    assert shown.stderr.decode() == f"replay: {complaint}\n"
