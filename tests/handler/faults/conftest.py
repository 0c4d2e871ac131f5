from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest

from tests.handler.faults.case import Row

ROWS = "faults"


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Takes rows for the table that `pytest -s tests/handler/faults` prints at the end."""
    return lambda row: request.node.user_properties.append((ROWS, asdict(row)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    passed = terminalreporter.stats.get("passed", [])
    rows = [value for report in passed for name, value in report.user_properties if name == ROWS]
    if not rows or config.getoption("capture") != "no":
        return
    terminalreporter.section("what fails, and what becomes of it")
    lines = [["fault", "FastDeploy by itself", "the worker", "s"]]
    lines += sorted([row["fault"], row["alone"], row["worker"], f"{row['seconds']:.1f}"] for row in rows)
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        terminalreporter.write_line(" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
