from __future__ import annotations

import pytest

from ci.fuzz_table import rows, run


def test_of_the_odd_requests_none_waits_for_ever_and_none_gets_a_500(capsys: pytest.CaptureFixture[str]) -> None:
    table = list(rows())
    assert len({row.case for row in table}) == 63
    assert sum(row.fastdeploy is None for row in table) == 18
    assert not [row for row in table if row.is_bad]
    assert all(row.status == 400 for row in table if row.fastdeploy is None and not row.case.startswith("dup"))
    assert all(row.param for row in table if not row.sent)
    assert run({}) == 0
    assert "the worker 0 of either" in capsys.readouterr().out
