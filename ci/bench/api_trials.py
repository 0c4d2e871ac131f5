"""Deployments against an API that lies: `ci/just bench api-trials`.

Trials of the seeds from `seed` on. `tests/tools/deploy/hostile_api.py` says what a trial is and what must hold. Each failure is
printed with its seed, and makes the exit code 1; `n=1 seed=SEED` repeats it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from images.arguments import Command, Key, whole
from tests.tools.deploy.hostile_api import run_trials


def run(values: Mapping[str, str]) -> int:
    """Run them, and print the table."""
    first = int(values["seed"])
    tally = asyncio.run(run_trials(range(first, first + int(values["n"]))))
    print(tally.table())
    return 1 if tally.failures else 0


COMMAND = Command(
    name="bench api-trials",
    help="Deploy against an API that lies, and print what must not have happened.",
    keys=(
        Key("n", "Trials.", default="300", check=whole(1)),
        Key("seed", "The first one's seed; the others' follow.", default="0", check=whole(0)),
    ),
    run=run,
)
