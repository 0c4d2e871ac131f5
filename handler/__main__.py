"""Read the environment, start the engine's interpreter, run, and end with the right exit code: 0 after an orderly stop, 1 otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from handler.prestart import prestart


def main(argv: list[str], environment: Mapping[str, str]) -> int:
    """Run the worker and return the process's exit code."""
    try:
        with prestart({} if argv[:1] == ["flags"] else environment) as prestarted:
            # Everything else is imported while that interpreter starts.
            from handler.worker import run

            return run(argv, environment, prestarted)
    except KeyboardInterrupt:  # before the worker's own handler was there
        return 130


if __name__ == "__main__":
    code = main(sys.argv[1:], os.environ)  # noqa: TID251
    if code != 130:
        sys.exit(code)  # noqa: TID251
    # A download that was interrupted runs on in its threads, and Python would wait for them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
