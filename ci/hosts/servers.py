"""Start a server with its log in a file, wait until it answers, and end it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["HostFailed", "free_port", "running"]


class HostFailed(Exception):
    """A program that the proofs need did not start; the text ends with its last words."""


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, answers: Callable[[], bool], *, environment: Mapping[str, str] | None = None, patience: float = 60
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block is left: it has answered when the block is entered, and is reaped when it is left.

    `answers` is asked again and again, for `patience` seconds; it may raise OSError for "not yet". The server ends with this process
    whatever happens to it: setpriv asks the kernel for a TERM on the death of the parent.
    """
    with log.open("ab") as output:
        guarded = ["setpriv", "--pdeathsig", "TERM", *command]
        process = subprocess.Popen(guarded, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)
    try:
        _wait(process, log, answers, patience)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path, answers: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            if answers():
                return
        if process.poll() is not None or time.monotonic() > deadline:
            state = "still starting" if process.returncode is None else f"ended with code {process.returncode}"
            last_words = log.read_text(errors="replace")[-3000:]
            raise HostFailed(f"{' '.join(map(str, process.args))}: {state}, expected an answer within {patience:.0f} s:\n{last_words}")  # type: ignore[arg-type]  # a list of words
        time.sleep(0.05)


def free_port() -> int:
    """Return a loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
