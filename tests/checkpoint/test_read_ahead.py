"""Weights come into the page cache while something else is busy, within bounds, and no longer than wanted."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from checkpoint.read_ahead import ReadAhead
from tests.checkpoint.checkpoints import write_checkpoint

BLOCK = 8 << 20


def resident(path: Path) -> float:
    """Return the share of a file that is in the page cache, as mincore(2) tells."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        view = (ctypes.c_char * size).from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), pages)
        del view
    assert not failed
    return sum(page & 1 for page in pages) / len(pages)


def dropped(directory: Path) -> Path:
    """Write a checkpoint of one file of 38 MB, and drop it from the page cache."""
    path = write_checkpoint(directory, shards=1, rows=300_000) / "model.safetensors"
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return path


def test_what_was_dropped_is_in_memory_again(tmp_path: Path) -> None:
    path = dropped(tmp_path)

    def read_again() -> float:
        with ReadAhead(tmp_path) as ahead:
            ahead.wait()
        assert ahead.done == path.stat().st_size
        return resident(path)

    # What other programs need meanwhile, the kernel takes from what was read but once.
    assert any(read_again() == 1 for _ in range(3))


def test_the_budget_is_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=3, rows=100_000)
    with ReadAhead(tmp_path, budget=2 * BLOCK) as ahead:
        ahead.wait()
    # Each shard is one whole block and a rest; a rest counts for a block.
    assert BLOCK < ahead.done < 2 * BLOCK
    with ReadAhead(tmp_path, budget=0) as ahead:
        ahead.wait()
    assert ahead.done == 0


def test_stopping_ends_all_threads_and_may_be_done_twice(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=1, rows=300_000)
    before = threading.active_count()
    with ReadAhead(tmp_path) as ahead:
        ahead.stop()
        ahead.stop()
        assert threading.active_count() == before


def test_a_directory_that_is_not_there_or_not_whole_is_the_engines_to_complain_about(tmp_path: Path) -> None:
    with ReadAhead(tmp_path / "none") as ahead:
        ahead.wait()
    assert ahead.done == 0
    model = write_checkpoint(tmp_path / "model", shards=3)
    (model / "model-00002-of-00003.safetensors").unlink()
    with ReadAhead(model) as ahead:
        ahead.wait()
    assert ahead.done == (model / "model-00001-of-00003.safetensors").stat().st_size


def test_the_time_that_is_told_is_the_reading_s_and_not_the_engine_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: an engine is ready minutes after all is read, and who tunes a volume wants to know how fast that is."""
    write_checkpoint(tmp_path, shards=1, rows=30_000)
    clock = time.monotonic
    with caplog.at_level("INFO"), ReadAhead(tmp_path) as ahead:
        ahead.wait()
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
    (message,) = caplog.messages
    assert message.startswith("read 4 MB of weights ahead in ")
    assert "min" not in message
    assert 0 < ahead.seconds < 3000


def test_what_is_stopped_early_says_so_and_what_read_nothing_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(tmp_path, shards=1, rows=600_000)
    with caplog.at_level("INFO"):
        ahead = ReadAhead(tmp_path)
        for thread in ahead._threads:
            thread.run = lambda: None  # type: ignore[method-assign]
        ahead.done = 5
        with ahead:
            pass
        with ReadAhead(tmp_path / "none"):
            pass
    assert caplog.messages == ["read 5 B of weights ahead in 0 s, and stopped before the rest"]
