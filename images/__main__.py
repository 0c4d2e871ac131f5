"""Run a command of the image builder: python -m images COMMAND key=value ..."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from images.arguments import Command, parse
from images.errors import ImageError, UnknownChoice, nearest

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
    """Run the command that the words name and return the exit code: 0 if all is well, 1 if not, 2 for words that mean nothing."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(f"usage: python -m images {'|'.join(COMMANDS)} [key=value ...]\n\nEach says with --help what it takes.")
        return 0 if words else 2
    try:
        command = _command(words[0])
        if {"-h", "--help"} & set(words[1:]):
            print(command.usage())
            return 0
        return command.run(parse(command, words[1:]))
    except UnknownChoice as error:
        return _complain(error, 2)
    except ImageError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise UnknownChoice(f"{name}: unknown command{nearest(name, COMMANDS)}; expected one of {', '.join(COMMANDS)}")
    module, attribute = COMMANDS[name]
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, Command)  # noqa: S101  # for the type checker
    return found


def _complain(error: Exception, code: int) -> int:
    for line in str(error).splitlines():
        print(f"error: {line}" if not line.startswith("  ") else line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
