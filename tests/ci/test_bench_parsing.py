from __future__ import annotations

import pytest

from ci.bench.parsing import run
from handler.parsing.families import FAMILIES


def test_the_parsing_bench_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    run({"seconds": "0.05"})  # whose verdict is not asked for: coverage slows one side down
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["us/token", "look", "without", "with"]
    assert len(lines) == 5 + len(FAMILIES)
    assert all(float(figure) > 0 for line in lines[1:-1] for figure in line.split()[-3:])
