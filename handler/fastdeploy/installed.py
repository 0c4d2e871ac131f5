"""Ask the FastDeploy that an interpreter has for its version and its flags, in a child process of that interpreter."""

from __future__ import annotations

import json
import subprocess  # noqa: TID251
from pathlib import Path

from handler.fastdeploy.table import differences

__all__ = ["check_installed", "installed_version"]

_SCRIPT = Path(__file__).with_name("describe.py")
_PATIENCE = 600
"""Seconds for an import of FastDeploy, which takes half a minute from a cold disk."""


def installed_version(python: str) -> str:
    """Return the version of FastDeploy that the interpreter `python` has ("2.5.0"), without importing it.

    "" means that there is none, or no such interpreter; "unknown" a package that does not tell its version.
    """
    return _ask(python, "--version")[0]


def check_installed(release: str, python: str) -> list[str]:
    """Return one sentence for each way in which the parser of the FastDeploy that `python` has departs from the table of the release."""
    answer, errors = _ask(python)
    try:
        described = json.loads(answer)
    except ValueError:
        return [f"{python}: FastDeploy's parser could not be asked: {errors or 'no answer'}"]
    return differences(release, described)


def _ask(python: str, *arguments: str) -> tuple[str, str]:
    """Return the last lines of the script's output and of its errors."""
    try:
        # No shell, no input of a client: the interpreter is the operator's own.
        done = subprocess.run([python, str(_SCRIPT), *arguments], check=False, capture_output=True, text=True, timeout=_PATIENCE)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    return done.stdout.strip().rpartition("\n")[2], done.stderr.strip().rpartition("\n")[2]
