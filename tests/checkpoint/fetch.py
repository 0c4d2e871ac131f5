"""A worker's process that only finds its weights: `python -m tests.checkpoint.fetch MODEL REVISION HOME`, with the hub in HF_ENDPOINT."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from checkpoint.find import Places, Source, find_weights
from checkpoint.unavailable import ModelUnavailable


def main(model: str, revision: str, home: str) -> int:
    """Print where the weights are, or why they are not."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    wanted = Source(name=model, revision=revision, token=os.environ.get("HF_TOKEN", ""))
    nowhere = Path(home) / "nowhere"
    try:
        found = find_weights(wanted, Places(baked=nowhere, cached=nowhere, volume=nowhere, home=Path(home)))
    except ModelUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(found.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
