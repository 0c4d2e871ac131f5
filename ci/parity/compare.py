"""The live comparison: fresh random checkpoints, transformers' answers to them, and the CPU engine's.

    ci/just parity [seed=N]

Exits with 1 if any checkpoint differs by more than `agreement.TOLERANCE` or in one greedy id.
"""

import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ci.parity.agreement import TOLERANCE, measure, open_model
from ci.parity.make_references import make_all
from ci.parity.reference import load_cases
from images.arguments import Command, Key, call, whole


def run(values: Mapping[str, str]) -> int:
    """Make references with the seed and print one line per checkpoint."""
    seed = int(values["seed"] or secrets.randbelow(10**6))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "parity"
        print(f"seed={seed}")
        make_all(folder, seed)
        return 0 if compare(folder) else 1


def compare(folder: Path) -> bool:
    """Print how each checkpoint under `folder` agrees with its reference; tell whether all do."""
    good = True
    for case in load_cases(folder):
        for checkpoint in case.checkpoints:
            agreement = measure(open_model(checkpoint), case.reference)
            good &= agreement.holds
            ids = "identical" if agreement.greedy_alone and agreement.greedy_batched else "DIFFER"
            print(f"{case.name:15} {checkpoint.name:28} logits {agreement.alone:.1e}, batched {agreement.batched:.1e}, greedy ids {ids}")
    verdict = (
        "all within the tolerance, greedy ids identical, batched as alone" if good else "FAILED: too large a difference, or another id"
    )
    print(f"{verdict} (tolerance {TOLERANCE})")
    return good


COMMAND = Command(
    name="parity",
    help="Compare the CPU engine with transformers on fresh random checkpoints.",
    keys=(Key("seed", "The first seed to try for each checkpoint; empty means another one each time, which is printed.", check=whole(0)),),
    run=run,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
