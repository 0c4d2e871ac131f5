from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import EngineDied
from handler.sse import FrameSplitter, data_of, ends_with_done, frames_of, is_done
from tests.strategies import SETTINGS, cuts, frames

STREAM = 'data: {"c":"日本\u2028\u0085 語"} \n\ndata: one\r\ndata: two\r\n\r\n: comment\n\ndata:\n\ndata: 😀\r\rdata: [DONE]\n\n'.encode()
FRAMES = [
    'data: {"c":"日本\u2028\u0085 語"} \n\n'.encode(),
    b"data: one\r\ndata: two\r\n\r\n",
    b": comment\n\n",
    b"data:\n\n",
    "data: 😀\r\r".encode(),
    b"data: [DONE]\n\n",
]


def split(chunks: list[bytes]) -> list[bytes]:
    splitter = FrameSplitter()
    runs = [splitter.feed(chunk) for chunk in chunks]
    runs.append(splitter.close())
    return [frame for run in runs for frame in frames_of(run)]


@pytest.mark.parametrize("position", range(len(STREAM) + 1))
def test_a_stream_cut_at_any_byte_yields_the_same_frames(position: int) -> None:
    assert split([STREAM[:position], STREAM[position:]]) == FRAMES


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_stream_cut_into_small_pieces_yields_the_same_frames(size: int) -> None:
    assert split([STREAM[at : at + size] for at in range(0, len(STREAM), size)]) == FRAMES


@SETTINGS
@given(st.data())
def test_any_rechunking_yields_the_same_frames_and_joined_they_are_the_input(data: st.DataObject) -> None:
    """Rule: "Whole frames. A consumer never sees half an event or half a character, whatever the chunking underneath." """
    whole = data.draw(st.lists(frames(), max_size=6))
    stream = b"".join(whole)
    found = split(data.draw(cuts(stream)))
    assert found == split([stream])
    assert b"".join(found) == stream
    for frame in found:
        frame.decode("utf-8")  # no half characters


@SETTINGS
@given(
    st.lists(frames(), max_size=4),
    st.binary(min_size=1, max_size=20).filter(lambda rest: rest.strip(b"\r\n") and not rest.endswith((b"\n", b"\r"))),
)
def test_a_stream_that_ends_inside_a_frame_is_an_error_and_never_a_frame(whole: list[bytes], rest: bytes) -> None:
    splitter = FrameSplitter()
    splitter.feed(b"".join(whole))
    splitter.feed(rest)
    with pytest.raises(EngineDied, match="ended inside an event"):
        splitter.close()


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_blank_lines_at_the_end_are_no_frame(end: bytes) -> None:
    assert split([b"data: x\n\n" + end]) == [b"data: x\n\n"]


def test_a_frame_is_given_back_as_soon_as_its_last_byte_is_there() -> None:
    splitter = FrameSplitter()
    assert splitter.feed(b"data: x\n") == b""
    assert splitter.feed(b"\n") == b"data: x\n\n"
    assert splitter.feed(b"data: y\r\n\r") == b""
    assert splitter.feed(b"\n") == b"data: y\r\n\r\n"


def test_a_frame_without_end_is_given_up_at_the_bound() -> None:
    splitter = FrameSplitter(max_frame=10)
    assert splitter.feed(b"x" * 10) == b""
    with pytest.raises(EngineDied, match="11 bytes without the end of an event, expected at most 10"):
        splitter.feed(b"x")


def test_many_frames_in_one_chunk_are_no_frame_over_the_bound() -> None:
    assert FrameSplitter(max_frame=10).feed(b"data: 1\n\n" * 50) == b"data: 1\n\n" * 50


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x \n\n", b" x "),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"event: e\ndata: a\n\n", b"a"),
        (b": keep-alive\n\n", None),
        (b"event: e\n\n", None),
    ],
)
def test_data_is_what_the_specification_says(frame: bytes, data: bytes | None) -> None:
    assert data_of(frame) == data


@pytest.mark.parametrize(
    ("frame", "done"),
    [(b"data: [DONE]\n\n", True), (b"data:[DONE] \r\n\r\n", True), (b'data: "[DONE]"\n\n', False), (b": [DONE]\n\n", False)],
)
def test_only_the_done_frame_ends_a_stream(frame: bytes, done: bool) -> None:
    assert is_done(frame) is done


@pytest.mark.parametrize("start", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n"])
def test_blank_lines_at_the_start_are_kept_in_front(start: bytes) -> None:
    found = split([start + b"data: x\n\n"])
    assert b"".join(found) == start + b"data: x\n\n"
    assert found[-1].endswith(b"data: x\n\n")
    assert found == split([start[:1], start[1:], b"data: x\n\n"])
    assert found[0] == (start if len(start) > 1 else b"\ndata: x\n\n")


@pytest.mark.parametrize("rest", [b" ", b"\t\n", b"X", b"data: x\n"])
def test_anything_but_line_ends_after_the_last_frame_is_half_a_frame(rest: bytes) -> None:
    with pytest.raises(EngineDied, match=f"ended inside an event, after {len(rest)} bytes"):
        split([b"data: x\n\n" + rest])


@SETTINGS
@given(st.data())
def test_a_run_is_cut_into_the_frames_that_it_was_made_of(data: st.DataObject) -> None:
    """Rule: the way that passes a chunk as a whole and the way that looks at each frame give the same bytes."""
    stream = b"".join(data.draw(st.lists(frames(), max_size=6)))
    splitter = FrameSplitter()
    for chunk in data.draw(cuts(stream)):
        run = splitter.feed(chunk)
        assert b"".join(frames_of(run)) == run
        assert all(frame.strip(b"\r\n") for frame in frames_of(run)) or not run.strip(b"\r\n") or b"\n\n" in run


@pytest.mark.parametrize(
    ("run", "done"),
    [
        (b"data: x\n\ndata: [DONE]\n\n", True),
        (b"data: [DONE]\n\n: bye\n\n", True),
        (b'data: {"text":"[DONE]"}\n\n', False),
        (b"", False),
    ],
)
def test_a_run_with_the_done_frame_is_the_end_of_a_stream(run: bytes, done: bool) -> None:
    assert ends_with_done(run) is done
