"""Arguments of the form key=value, in any order: what `python -m images COMMAND` and the recipes of the justfile take.

A module that holds a command has a value of this kind, and one row in the table of `__main__`:

    COMMAND = Command(
        name="push",
        help="Push an image to a registry.",
        keys=(Key("arch", "The architecture, such as sm89.", required=True), Key("to", "registry/repository:tag", required=True)),
        run=run,  # def run(values: Mapping[str, str]) -> int: the exit code; every key is there, "" where nothing was given
    )

Files and folders that a person names are meant from where the command was called: `file_named` knows where that is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from images.build_errors import UnknownChoice, nearest

__all__ = ["TARGET_KEYS", "Command", "Key", "file_named", "parse", "yes_or_no"]


@dataclass(frozen=True, slots=True)
class Key:
    """One key that a command takes; `bare` means that its value may be given without the key.

    `check` raises UnknownChoice for a value that cannot be right: that is said before anything is done.
    """

    name: str
    help: str
    required: bool = False
    default: str = ""
    bare: bool = False
    check: Callable[[str], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command."""

    name: str
    help: str
    keys: tuple[Key, ...]
    run: Callable[[Mapping[str, str]], int]

    def usage(self) -> str:
        """Return what the command takes, for a person."""
        words = [f"{key.name}=..." if key.required else f"[{key.name}=...]" for key in self.keys]
        width = max(len(key.name) for key in self.keys)
        lines = [f"  {key.name:<{width}}  {key.help}" + (f" (default: {key.default})" if key.default else "") for key in self.keys]
        return "\n".join([f"usage: python -m images {self.name} {' '.join(words)}", "", self.help, "", *lines])


TARGET_KEYS = (
    Key("arch", "The architecture: sm80, sm86, sm89, sm90 or cpu.", required=True),
    Key("release", "FastDeploy's release; empty means the default one."),
    Key("cuda", "The CUDA version; empty means the release's default one."),
    Key("releases", "Another file than images/releases.toml."),
    Key("lock", "Another file than images/images.lock.json."),
)
"""What every command takes that is about one image."""


def parse(command: Command, words: Sequence[str]) -> dict[str, str]:
    """Return the value of every key, empty or its default where none was given.

    Raises:
        UnknownChoice: naming every word that is wrong, and every key that is missing.
    """
    keys = {key.name: key for key in command.keys}
    bare = next((key.name for key in command.keys if key.bare), None)
    given: dict[str, str] = {}
    problems = []
    for word in words:
        name, equals, value = word.partition("=")
        if (not equals or name not in keys) and bare and bare not in given and not _looks_like_key(name, equals):
            name, value = bare, word
        elif not equals:
            problems.append(f"got {word!r}, expected key=value")
            continue
        if name not in keys:
            problems.append(f"{name}: unknown key{nearest(name, keys)}; expected one of {', '.join(keys)}")
        elif name in given:
            problems.append(f"{name}: given twice, as {given[name]!r} and {value!r}")
        else:
            given[name] = value
            problems += _problems(keys[name], value)
    problems += [f"{name}: missing, expected {name}=...: {key.help}" for name, key in keys.items() if key.required and not given.get(name)]
    if problems:
        raise UnknownChoice("\n".join(problems))
    return {name: given.get(name) or key.default for name, key in keys.items()}


def yes_or_no(text: str) -> None:
    """Check the value of a switch.

    Raises:
        UnknownChoice: when it is neither.
    """
    if text not in ("yes", "no"):
        raise UnknownChoice(f"got {text!r}, expected yes or no")


def file_named(text: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path that a person wrote, from the folder in which ci/just was called, which changes to the repository's."""
    return Path(environment.get("CALLED_FROM", "."), text)


def _problems(key: Key, value: str) -> list[str]:
    try:
        if key.check and value:
            key.check(value)
    except UnknownChoice as error:
        return [f"{key.name}: {error}"]
    return []


def _looks_like_key(name: str, equals: str) -> bool:
    return bool(equals) and name.isidentifier()
