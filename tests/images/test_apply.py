"""A layer that is laid over a system leaves what a container of it would show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from images.apply import apply_layer
from images.build_errors import DigestMismatch, UnsafePath
from images.digest import Digest
from images.entries import LayerEntry, data_entry, folder, opaque_whiteout, whiteout


def system(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write a small system."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def files_of(root: Path) -> dict[str, bytes]:
    """Return every file of a system."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_marks_remove_what_stood_there_and_nothing_else(tmp_path: Path) -> None:
    root = system(tmp_path, {"site/old/a": b"1", "site/old/deep/b": b"2", "site/other/c": b"3", "bin/tool": b"4", "bin/more": b"5"})
    (root / "site/old/link").symlink_to(root / "site/other")
    apply_layer([folder("site/old"), opaque_whiteout("site/old"), whiteout("bin/tool"), data_entry("site/old/new", b"6")], root)
    assert files_of(root) == {"site/old/new": b"6", "site/other/c": b"3", "bin/more": b"5"}


def test_modes_are_those_of_a_layer_whatever_the_umask(tmp_path: Path) -> None:
    apply_layer([folder("a"), data_entry("a/plain", b""), replace(data_entry("a/tool", b""), executable=True)], tmp_path)
    assert [oct(tmp_path.joinpath(name).stat().st_mode & 0o7777) for name in ("a", "a/plain", "a/tool")] == ["0o755", "0o644", "0o755"]


def test_other_bytes_than_the_pinned_ones_are_refused_by_name(tmp_path: Path) -> None:
    entry = replace(data_entry("a/b", b"got"), digest=Digest.of(b"wanted"), source="some.whl")
    with pytest.raises(DigestMismatch, match=r"some\.whl: a/b"):
        apply_layer([entry], tmp_path)


@pytest.mark.parametrize("paths", [("a/b", "a/b"), ("a", "a/b"), ("a/B", "a/b")], ids=["twice", "a file's file", "case"])
def test_what_may_not_stand_in_a_layer_is_not_laid(paths: tuple[str, str], tmp_path: Path) -> None:
    entries: list[LayerEntry] = [data_entry(path, b"") for path in paths]
    with pytest.raises(UnsafePath):
        apply_layer(entries, tmp_path)
    assert files_of(tmp_path) == {}
