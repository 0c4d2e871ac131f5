"""Many random fault trials: `ci/just bench trials`.

Trials of the seeds from `seed` on, `n` of each kind of trouble or of the one that is named; `together` run at a time. What a trial is and
what must hold stands in `tests/handler/faults/trials.py`. Each failure is printed with its seed and the worker's own words, and makes the
exit code 1; `n=1 seed=SEED kind=KIND` repeats it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from images.arguments import Command, Key, one_of, whole
from tests.handler.faults import trials
from tests.handler.faults.trials import KINDS, Trial, draw


async def measure(seeds: range, kinds: Sequence[str], together: int) -> bool:
    """Run the trials, print the table, and return whether all of them succeeded."""
    started, failed, left = time.monotonic(), Counter[str](), asyncio.Semaphore(together)

    async def one(trial: Trial) -> None:
        async with left:
            with tempfile.TemporaryDirectory() as folder:
                wrong = await trials.run(trial, Path(folder))
        if wrong:
            failed[trial.kind] += 1
            print(f"FAILED: n=1 seed={trial.seed} kind={trial.kind}", *wrong, sep="\n  ", flush=True)

    await asyncio.gather(*(one(draw(seed, kind)) for seed in seeds for kind in kinds))
    print(f"{'kind':16}{'trials':>8}{'failed':>8}")
    for kind in kinds:
        print(f"{kind:16}{len(seeds):8}{failed[kind]:8}")
    print(f"seeds {seeds.start} to {seeds.stop - 1}, {time.monotonic() - started:.0f} s")
    return not failed


def run(values: Mapping[str, str]) -> int:
    """Run them."""
    first, kinds = int(values["seed"]), (values["kind"],) if values["kind"] else KINDS
    return 0 if asyncio.run(measure(range(first, first + int(values["n"])), kinds, int(values["together"]))) else 1


COMMAND = Command(
    name="bench trials",
    help="Run random fault trials, and print the seeds of those that failed.",
    keys=(
        Key("n", "Trials of each kind.", default="300", check=whole(1)),
        Key("seed", "The first one's seed; the others' follow.", default="0", check=whole(0)),
        Key("kind", "The one kind of trouble; empty means all.", check=one_of(*KINDS)),
        Key("together", "Trials that run at the same time.", default="2", check=whole(1, 100)),
    ),
    run=run,
)
