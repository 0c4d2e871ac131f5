from __future__ import annotations

import pytest

from ci.bench.parsing import run
from handler.parsing.families import FAMILIES


def test_the_parsing_bench_prints_its_table_and_text_costs_no_more_than_a_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"seconds": "0.05"}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["us/token", "look", "without", "with"]
    assert len(lines) == 5 + len(FAMILIES)
    assert all(float(figure) > 0 for line in lines[1:-1] for figure in line.split()[-3:])
