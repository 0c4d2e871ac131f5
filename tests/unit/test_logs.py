from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from handler.logs import MAX_LINE, Tail
from tests.property.strategies import SETTINGS, cuts


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
