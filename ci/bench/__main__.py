"""Run one of the benches, each of which says in its docstring what it measures: `ci/just bench NAME [key=value ...]`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from images.arguments import Command, asks_for_help, call
from images.build_errors import nearest

__all__ = ["BENCHES", "command"]

BENCHES = {
    "api-trials": "api_trials",
    "cpu": "forward_pass",
    "images": "images",
    "parsing": "parsing",
    "readahead": "readahead",
    "soak": "soak",
    "start": "cold_start",
    "stream": "stream",
    "trials": "trials",
}
"""Each bench's module, imported only when it is called."""


def command(name: str) -> Command:
    """Return the command of the bench of that name, which is one of BENCHES."""
    found = importlib.import_module(f"ci.bench.{BENCHES[name]}").COMMAND
    assert isinstance(found, Command)
    return found


def main(words: Sequence[str]) -> int:
    """Run the bench that the first word names, and return the exit code."""
    if not words or asks_for_help(words[:1]):
        print(f"usage: ci/just bench {'|'.join(BENCHES)} [key=value ...]\n\n`ci/just bench NAME help` lists what a bench takes.")
        return 0 if words else 2
    if words[0] not in BENCHES:
        print(f"bench: {words[0]}: unknown{nearest(words[0], BENCHES)}; expected one of {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    return call(command(words[0]), words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
