"""Many random fault trials: `ci/just bench trials [n=300] [seed=0] [kind=KIND] [together=2]`.

Trials of the seeds from `seed` on, `n` of each kind of trouble or of the one that is named; `together` run at a time. What a trial is, and
what must hold, is told in `tests/handler/faults/trials.py`. Each failure is printed with its seed and the worker's own words, and makes the
exit code 1; `n=1 seed=SEED kind=KIND` repeats it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.handler.faults.trials import KINDS, Trial, draw, run

NUMBERS = {"n": 300, "seed": 0, "together": 2}


async def main(numbers: dict[str, int], kinds: tuple[str, ...]) -> bool:
    """Run the trials, print the table, and return whether all of them succeeded."""
    started, failed, left = time.monotonic(), Counter[str](), asyncio.Semaphore(numbers["together"])

    async def one(trial: Trial) -> None:
        async with left:
            with tempfile.TemporaryDirectory() as folder:
                wrong = await run(trial, Path(folder))
        if wrong:
            failed[trial.kind] += 1
            print(f"FAILED: n=1 seed={trial.seed} kind={trial.kind}", *wrong, sep="\n  ", flush=True)

    seeds = range(numbers["seed"], numbers["seed"] + numbers["n"])
    await asyncio.gather(*(one(draw(seed, kind)) for seed in seeds for kind in kinds))
    print(f"{'kind':16}{'trials':>8}{'failed':>8}")
    for kind in kinds:
        print(f"{kind:16}{len(seeds):8}{failed[kind]:8}")
    print(f"seeds {seeds.start} to {seeds.stop - 1}, {time.monotonic() - started:.0f} s")
    return not failed


if __name__ == "__main__":
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    wanted = given.pop("kind", None)
    if unknown := [name for name in given if name not in NUMBERS] or [name for name in (wanted,) if name and name not in KINDS]:
        sys.exit(f"bench trials: {unknown[0]}: unknown, expected {', '.join(f'{name}=N' for name in NUMBERS)} or kind={'|'.join(KINDS)}")
    asked = {name: int(value) for name, value in given.items()}
    sys.exit(0 if asyncio.run(main(NUMBERS | asked, (wanted,) if wanted else KINDS)) else 1)
