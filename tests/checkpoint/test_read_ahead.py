"""Weights come into the page cache while something else is busy, within bounds, and no longer than wanted."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from pathlib import Path

import pytest

from checkpoint.memory import memory_left
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


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "5000", "memory.current": "2000"}, 3000),
        ({"memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "1000"}, 0),
    ],
)
def test_the_containers_own_limit_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory_left(tmp_path) == expected


def test_without_a_limit_the_machines_memory_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_left(tmp_path) > 1 << 20
    assert memory_left() > 1 << 20
