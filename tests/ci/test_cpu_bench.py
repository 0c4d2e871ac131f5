"""The bench of the CPU engine runs, and prints every figure it promises."""

from __future__ import annotations

import re
import subprocess
import sys

from tests import DEMO, ROOT

FIGURES = (
    r"prompt, forward pass +[\d.]+ ms +[\d.]+ ms +[\d.]+x",
    r"decode, 1 stream +[\d.]+ tok/s +[\d.]+ tok/s +[\d.]+x",
    r"decode, 8 streams +[\d.]+ tok/s +[\d.]+ tok/s +[\d.]+x",
    r"decode, bound to a schema +[\d.]+ tok/s +[\d.]+ tok/s +[\d.]+x",
    r"time to first token +[\d.]+ ms",
    r"1 stream +[\d.]+ tok/s",
    r"8 streams +[\d.]+ tok/s",
    r"process start to listening +[\d.]+ s",
    r"resident memory +[\d.]+ MB",
    r"peak memory +[\d.]+ MB",
)


def test_the_bench_prints_every_figure_for_the_demo_checkpoint() -> None:
    command = [sys.executable, "-m", "ci.bench", "cpu", f"model={DEMO}", "threads=1", "tokens=16"]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=True).stdout
    for figure in FIGURES:
        assert re.search(figure, table), table
