"""The container's memory, as its control group tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint.memory import memory_left, oom_kills


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


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0),
        ("memory.events", "not a table of counts at all\n", 0),
        ("other", "", 0),
    ],
)
def test_the_kernels_kills_for_want_of_memory_are_counted_by_both_versions(tmp_path: Path, name: str, text: str, expected: int) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == expected


def test_this_machine_gives_a_count() -> None:
    assert oom_kills() >= 0
