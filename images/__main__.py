"""Run a command of the image builder: python -m images COMMAND key=value ...

Commands that prepare for another may stand before it, fetch,build,push: all get its words, and the first that fails ends it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from images.arguments import Command, asks_for_help, complain, parse
from images.build_errors import ImageError, UnknownChoice, nearest

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
"""Each command's module, imported only when it is called: what builds needs nothing of what fetches."""


def main(words: Sequence[str]) -> int:
    """Run the commands that the words name and return the exit code: 0 if all is well, 1 if not, 2 for words that mean nothing."""
    if not words or asks_for_help(words[:1]):
        print(f"usage: python -m images {'|'.join(COMMANDS)} [key=value ...]")
        print("\nEach says with --help what it takes; fetch,build,push runs all three, with the words of the last.")
        return 0 if words else 2
    try:
        commands = [_command(name) for name in words[0].split(",")]
        if asks_for_help(words[1:]):
            print(commands[-1].usage(os.environ.get("CALLED_AS") or f"python -m images {words[0]}"))
            return 0
        values = parse(commands[-1], words[1:])
        run = partial(_run, commands, {key.name: key.default for command in commands for key in command.keys} | values)
        if values.get("watch") == "yes":
            from images.watch import after_every_edit

            return after_every_edit(run)
        return run()
    except UnknownChoice as error:
        return complain("error", error)
    except KeyboardInterrupt:
        return 130


def _run(commands: Sequence[Command], values: Mapping[str, str]) -> int:
    """Run them until one fails, and return its exit code."""
    try:
        return next((code for code in (command.run(values) for command in commands) if code), 0)
    except ImageError as error:
        return complain("error", error)


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise UnknownChoice(f"{name}: unknown command{nearest(name, COMMANDS)}; expected one of {', '.join(COMMANDS)}")
    module, attribute = COMMANDS[name]
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, Command)  # noqa: S101  # for the type checker
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
