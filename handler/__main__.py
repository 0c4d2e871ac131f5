"""Read the environment, start the engine's interpreter, run, and end with the right exit code: 0 after an orderly stop, 1 otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

from handler.early import start_early


def main(argv: list[str], environment: MutableMapping[str, str]) -> int:
    """Run the worker and return the process's exit code."""
    try:
        with start_early({} if argv[:1] == ["flags"] else environment) as waiting:
            # Everything else is imported while that interpreter starts.
            from handler.compose import run

            return run(argv, environment, waiting)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))  # noqa: TID251
