"""Free cores and memory: the smallest of what the kernel, the control group and the load leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpu_engine.cores import available_memory, free_cores

CORES = len(os.sched_getaffinity(0))


def test_load_counts_against_the_cores_but_one_is_always_left(tmp_path: Path) -> None:
    assert free_cores(tmp_path, load=0.0) == CORES
    assert free_cores(tmp_path, load=1000.0) == 1
    assert 1 <= free_cores() <= CORES


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, min(CORES, 2)),
        ({"cpu.max": "max 100000\n"}, CORES),
        ({"cpu.max": "garbage"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES),
    ],
    ids=["v2", "v2-fraction", "v2-none", "v2-garbage", "v1", "v1-none"],
)
def test_the_quota_of_the_control_group_counts(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert free_cores(tmp_path, load=0.0) == cores


def test_memory_is_what_kernel_and_control_group_both_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemAvailable:   50 kB\n")
    assert available_memory(tmp_path, meminfo) == 50 * 1024
    (tmp_path / "memory.max").write_text("40000\n")
    (tmp_path / "memory.current").write_text("30000\n")
    assert available_memory(tmp_path, meminfo) == 10000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path, meminfo) == 50 * 1024


def test_a_machine_that_does_not_tell_its_memory_is_not_guessed_at(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path / "nothing") is None
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    assert available_memory(tmp_path, tmp_path / "meminfo") is None
