from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from handler.fastdeploy.cleanup import QUEUES, Residue


def test_only_files_that_fastdeploy_makes_and_that_came_since_are_removed(tmp_path: Path) -> None:
    (tmp_path / "8000.socket").touch()
    residue = Residue(tmp_path, tmp_path / "none")
    for name in ("9000.socket", "worker_ready_signal.9001", "fmq_x.ipc", "psm_mine", "somebodys.file"):
        (tmp_path / name).touch()
    residue.clear()
    residue.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8000.socket", "psm_mine", "somebodys.file"]


def test_a_machine_without_shared_memory_or_queues_has_no_residue(tmp_path: Path) -> None:
    Residue(tmp_path / "none", tmp_path / "none").clear()


def test_message_queues_that_came_since_are_removed() -> None:
    libc = ctypes.CDLL(None)
    before = libc.msgget(0, 0o600)  # IPC_PRIVATE
    assert before >= 0, os.strerror(ctypes.get_errno())
    try:
        residue = Residue(Path("/nonexistent"))
        left = libc.msgget(0, 0o600)
        residue.clear()
        ids = [int(line.split()[1]) for line in QUEUES.read_text().splitlines()[1:]]
        assert before in ids
        assert left not in ids
    finally:
        libc.msgctl(before, 0, None)


@pytest.mark.parametrize("text", ["", "key msqid\n"])
def test_an_empty_table_of_queues_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "msg").write_text(text)
    Residue(tmp_path, tmp_path / "msg").clear()
