"""Start the engine's interpreter before anything else is imported: what it serves, and how, is decided while it starts.

Only where the environment says that FastDeploy is the engine, as GPU images do. The interpreter runs fastdeploy/serve_on_loopback.py,
which imports what every server needs and waits for its flags on standard input; if none come, because the start is hopeless or another
interpreter is wanted, it ends. Nothing of FastDeploy is imported before: that reads variables which are not known yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess  # noqa: TID251
from collections.abc import Mapping, Sequence

from handler.environment import engine_variables

__all__ = ["ENGINE_PYTHON", "MARK", "SERVER", "Prestarted", "engine_environment", "new_mark", "prestart", "start_process"]

MARK = "WORKER_ENGINE"
"""The variable that marks the engine's processes, wherever they go: the worker's process id, a dash, and a word unique to one start."""

ENGINE_PYTHON = "python3"
"""The interpreter that has FastDeploy, where ENGINE_PYTHON does not name another."""

SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fastdeploy", "serve_on_loopback.py")  # noqa: PTH100, PTH118, PTH120  # pathlib is slow to import
"""The program that serves FastDeploy."""


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the engine gets of the worker's environment: the variables that engines are known to read, and ENGINE_VARIABLES'."""
    return engine_variables(environment, [name.strip() for name in environment.get("ENGINE_VARIABLES", "").split(",")])


def start_process(
    argv: Sequence[str], environment: Mapping[str, str], mark: str, *, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a process that leads a session of its own and writes into one pipe; raises OSError when it cannot be run."""
    # Not asyncio's own: its wait() waits for the end of the output too, which an orphan of the engine holds open.
    return subprocess.Popen(  # noqa: S603  # the operator's own interpreter
        argv,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment, MARK: mark},
        start_new_session=True,
    )


class Prestarted:
    """An interpreter that waits for its flags, as a context manager: leaving ends it unless it received them."""

    def __init__(self, interpreter: str, environment: Mapping[str, str], mark: str) -> None:
        self.argv, self.mark, self._used = [interpreter, SERVER], mark, False
        self.process = start_process([*self.argv, "--wait"], engine_environment(environment), mark, stdin=subprocess.PIPE)

    def __enter__(self) -> Prestarted:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._used:
            self.process.kill()
            self.process.wait()
            for pipe in filter(None, (self.process.stdin, self.process.stdout)):
                with contextlib.suppress(OSError):
                    pipe.close()

    def hand_over(self, argv: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Send it its flags and its whole environment; return whether it waited for just this program and took them."""
        if list(argv[:2]) != self.argv or not self.process.stdin or self.process.stdin.closed:
            return False
        start = {"arguments": list(argv[2:]), "environment": {**environment, MARK: self.mark}}
        try:
            with self.process.stdin as pipe:
                pipe.write(json.dumps(start).encode())
        except OSError:  # it has ended
            return False
        self._used = True
        return True


def new_mark() -> str:
    """Return the mark of a new start."""
    return f"{os.getpid()}-{os.urandom(16).hex()}"


def prestart(environment: Mapping[str, str]) -> contextlib.AbstractContextManager[Prestarted | None]:
    """Start FastDeploy's interpreter if the environment says that there is one; whatever is wrong with it is found later."""
    if environment.get("ENGINE", "").strip().lower() == "fastdeploy":
        interpreter = environment.get("ENGINE_PYTHON", "").strip() or ENGINE_PYTHON
        with contextlib.suppress(OSError):
            return Prestarted(interpreter, environment, new_mark())
    return contextlib.nullcontext()
