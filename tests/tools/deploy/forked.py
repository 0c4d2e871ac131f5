"""`ci/just deploy` many times, each in a fork of one process that has imported it: a line of JSON on stdin for each, and one on stdout."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

from images.arguments import call
from tools.deploy.__main__ import COMMAND


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(one(asked["words"], asked["variables"], asked["longest"])), flush=True)


def one(words: list[str], variables: dict[str, str], longest: float) -> dict[str, Any]:
    """Run it once, and return its exit code (None where it had to be killed), its seconds, and what it printed."""
    with tempfile.TemporaryFile() as out:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            os.environ.update(variables)
            code = call(COMMAND, words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        ended, status = 0, 0
        while not ended and time.monotonic() - began < longest:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.005)
        if not ended:
            os.kill(child, 9)
            os.waitpid(child, 0)
        out.seek(0)
        returned = os.waitstatus_to_exitcode(status) if ended else None
        return {"code": returned, "seconds": time.monotonic() - began, "printed": out.read().decode("utf-8", "replace")}


if __name__ == "__main__":
    main()
