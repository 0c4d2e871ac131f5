"""Run a command of the image builder: python -m images COMMAND key=value ...

Several commands may be joined, fetch,build,push: all get the words of the last one, and the first that fails ends the run.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from images.arguments import Command, asks_for_help, complain, parse
from images.build_errors import ImageError, UnknownChoice, nearest
from images.programs import require_docker, require_skopeo

COMMANDS = {
    "plan": ("images.build", "PLAN"),
    "lock": ("images.resolve", "COMMAND"),
    "fetch": ("images.fetch", "COMMAND"),
    "build": ("images.build", "COMMAND"),
    "verify": ("images.verify", "COMMAND"),
    "push": ("images.push", "COMMAND"),
    "mirror": ("images.mirror", "COMMAND"),
    "load": ("images.load", "COMMAND"),
    "apply": ("images.apply", "COMMAND"),
}
"""Each command's module, imported when it is called: `build` needs nothing of what fetches."""

PROGRAMS: dict[str, tuple[Callable[[], None], ...]] = {
    "push": (require_skopeo,),
    "mirror": (require_skopeo,),
    "load": (require_skopeo, require_docker),
}
"""What to check before the first of several commands runs."""

_SETTLED_MS = 5
"""Milliseconds without another change after which an edit is complete: `git checkout` writes many files in a row."""

_LOOK_MS = 100
"""Milliseconds between two looks for changes."""


def main(words: Sequence[str]) -> int:
    """Run the commands that the words name and return the exit code: 0 for success, 1 for an error, 2 for words without a meaning."""
    if not words or asks_for_help(words[:1]):
        print(f"usage: python -m images {'|'.join(COMMANDS)} [key=value ...]")
        print("\nEach lists with --help what it takes; fetch,build,push runs all three, with the words of the last.")
        return 0 if words else 2
    try:
        names = words[0].split(",")
        commands = [_command(name) for name in names]
        if asks_for_help(words[1:]):
            print(commands[-1].usage(os.environ.get("CALLED_AS") or f"python -m images {words[0]}"))
            return 0
        values = parse(commands[-1], words[1:])
        checks = [check for name in names for check in PROGRAMS.get(name, ())]
        run = partial(_run, checks, commands, {key.name: key.default for command in commands for key in command.keys} | values)
        return _after_every_edit(run) if values.get("watch") == "yes" else run()
    except UnknownChoice as error:
        return complain("error", error)
    except KeyboardInterrupt:
        return 130


def _run(checks: Sequence[Callable[[], None]], commands: Sequence[Command], values: Mapping[str, str]) -> int:
    """Run the commands until one fails, and return its exit code."""
    try:
        for check in checks:
            check()
        return next((code for code in (command.run(values) for command in commands) if code), 0)
    except ImageError as error:
        return complain("error", error)


def _after_every_edit(run: Callable[[], int]) -> int:
    """Call `run`, and again whenever a file of the worker has changed since it began; return its last exit code on Ctrl-C.

    A first call that fails is the only one; after a later one that fails the next edit is tried.
    """
    from watchfiles import watch  # the kernel reports edits, also those made while `run` is at work

    from images.worker_layers import PACKAGES, TREE

    code = None
    try:
        for edited in watch(*(TREE / name for name in PACKAGES["cpu"]), step=_SETTLED_MS, rust_timeout=_LOOK_MS, yield_on_timeout=True):
            if not edited and code is not None:
                continue
            code = run()
            if code and not edited:
                return code
            sys.stdout.flush()
            print("waiting for the next edit of the worker; Ctrl-C ends", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        if code is None:
            raise
    return code or 0


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise UnknownChoice(f"{name}: unknown command{nearest(name, COMMANDS)}; expected one of {', '.join(COMMANDS)}")
    module, attribute = COMMANDS[name]
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, Command)  # noqa: S101  # for the type checker
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
