"""Run the tests, in two processes and under coverage, and hold `handler/` to its bound: `python -m ci.test [PYTEST ARGUMENTS]`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAST_COVERED = 95
"""Per cent of the lines of handler/, branches reported beside them."""


def main(arguments: list[str]) -> int:
    """Return the exit code of the first step that failed, or 0."""
    os.chdir(ROOT)
    # Two engines share two cores: BLAS threads of one would only wait for those of the other.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", *arguments]
    tests = subprocess.run(command, env=environment, check=False).returncode
    if tests or arguments:
        return tests
    subprocess.run([sys.executable, "-m", "coverage", "combine", "--quiet"], check=True)
    report = [sys.executable, "-m", "coverage", "report", "--skip-covered", f"--fail-under={LEAST_COVERED}"]
    return subprocess.run(report, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
