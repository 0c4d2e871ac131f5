"""Arguments of the form key=value, in any order: the one reader of the command line, for the image builder, the tools and the benches.

A module that holds a command has a value of this kind:

    COMMAND = Command(
        name="plan",
        help="Tell whether a model fits a GPU.",
        keys=(Key("model", "A model.", required=True), Key("count", "GPUs of one worker.", default="1", check=whole(1, 8))),
        run=run,  # def run(values: Mapping[str, str]) -> int: the exit code; every key is there, "" where nothing was given
    )
    sys.exit(call(COMMAND, sys.argv[1:]))

`--key=value` means the same as `key=value`, `_` in a key the same as `-`, and a switch without a value means yes. Files and folders that a
person names are meant from where the command was called: `file_named` knows where that is.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.build_errors import ImageError, UnknownChoice, nearest

__all__ = [
    "TARGET_KEYS",
    "Command",
    "Key",
    "Kind",
    "asks_for_help",
    "call",
    "complain",
    "file_named",
    "mask_addresses",
    "number",
    "one_of",
    "parse",
    "some",
    "whole",
    "yes_or_no",
]

_OPTION = re.compile(r"--?[A-Za-z][\w.-]*(=.*)?", re.DOTALL)
_ACCOUNT = re.compile(r"(?<=://)[^\s/?#]*@")
_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.-]*=.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value may be. `read` returns what a text means, and raises ValueError for one that is not `expected`."""

    expected: str
    read: Callable[[str], Any]

    def __call__(self, text: str) -> Any:
        """Return what `text` means.

        Raises:
            UnknownChoice: with what was expected.
        """
        try:
            return self.read(text)
        except ValueError:
            raise UnknownChoice(f"got {text!r}, expected {self.expected}") from None


@dataclass(frozen=True, slots=True)
class Key:
    """One key that a command takes.

    `bare` means that its value may be given without the key. A key whose name ends with `.NAME` stands for all keys that begin as it does:
    env.NAME for env.MODEL. `check` raises UnknownChoice for a value that cannot be right, which is reported before anything is done.
    `secret` values are in no message.
    """

    name: str
    help: str
    required: bool = False
    default: str = ""
    bare: bool = False
    check: Callable[[str], Any] | None = None
    secret: bool = False

    @property
    def is_family(self) -> bool:
        """Whether it stands for any number of keys."""
        return self.name.endswith(".NAME")

    def matches(self, name: str) -> bool:
        """Tell whether a person who writes `name` means this key."""
        if self.is_family:
            return name.startswith(self.name.removesuffix("NAME"))
        return _spelling(name) == _spelling(self.name)

    def usage(self) -> str:
        """Return its sentence, with what a value may be, the default, and whether it may be left out."""
        kind = self.check.expected if isinstance(self.check, Kind) else ""
        default = f"default: {self.default}" if self.default else ""
        notes = (kind, default, "required" if self.required else "", f"may stand without {self.name}=" if self.bare else "")
        shown = "; ".join(note for note in notes if note)
        return self.help + (f" ({shown})" if shown else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. `run` returns its exit code, and may raise ImageError.

    `conflicts` yields a sentence for each combination of values that is not possible; each value by itself may be wrong too.
    """

    name: str
    help: str
    keys: tuple[Key, ...]
    run: Callable[[Mapping[str, str]], int]
    conflicts: Callable[[Mapping[str, str]], Iterable[str]] | None = None

    def usage(self, typed: str) -> str:
        """Return what the command takes; `typed` is how a person calls it, such as `ci/just plan`."""
        words = [f"{key.name}=..." for key in self.keys if key.required]
        words += ["[key=value ...]"] if len(words) < len(self.keys) else []
        width = max((len(key.name) for key in self.keys), default=0)
        lines = [f"  {key.name:<{width}}  {key.usage()}" for key in self.keys]
        return "\n".join([" ".join([f"usage: {typed}", *words]), "", self.help, *([""] if lines else []), *lines])


TARGET_KEYS = (
    Key("arch", "The architecture: sm80, sm86, sm89, sm90 or cpu.", required=True),
    Key("release", "FastDeploy's release; empty means the default one."),
    Key("cuda", "The CUDA version; empty means the release's default one."),
    Key("releases", "Another file than images/releases.toml."),
    Key("lock", "Another file than images/images.lock.json."),
)
"""What every command takes that is about one image."""


def call(command: Command, words: Sequence[str], *, typed: str = "") -> int:
    """Run a command with the words of its command line, and return the exit code: 1 for what failed, 2 for words that mean nothing.

    `typed` is how a person calls it, where that is not `ci/just NAME`.
    """
    typed = typed or f"ci/just {command.name}"
    if asks_for_help(words):
        print(command.usage(typed))
        return 0
    try:
        values = parse(command, words)
    except UnknownChoice as error:
        if not words:
            print(command.usage(typed), file=sys.stderr)
        complain(command.name, error)
        if words:
            print(f"`{typed} help` lists what it takes", file=sys.stderr)
        return 2
    try:
        return command.run(values)
    except ImageError as error:
        return complain(command.name, error)
    except KeyboardInterrupt:
        return 130


def asks_for_help(words: Sequence[str]) -> bool:
    """Tell whether the words of a command line ask for the usage."""
    return words[:1] == ["help"] or not {"-h", "--help"}.isdisjoint(words)


def mask_addresses(text: str) -> str:
    """Return `text` without the accounts in its addresses: https://name:password@host becomes https://***@host."""
    return _ACCOUNT.sub("***@", text)


def complain(name: str, error: Exception) -> int:
    """Print an error, one line for each problem, and return the exit code."""
    for line in mask_addresses(str(error)).splitlines():
        print(line if line.startswith("  ") else f"{name}: {line}", file=sys.stderr)
    return 2 if isinstance(error, UnknownChoice) else 1


def parse(command: Command, words: Iterable[str]) -> dict[str, str]:
    """Return the value of every key, empty or its default where none was given; of a family, the keys that were given.

    Raises:
        UnknownChoice: naming every word that is wrong, and every key that is missing.
    """
    given: dict[str, str] = {}
    problems: list[str] = []
    for word in words:
        try:
            key, name, value = _split(word, command.keys, given)
            _keep(key, name, value, given)
        except UnknownChoice as error:
            problems.append(str(error))
    single = [key for key in command.keys if not key.is_family]
    problems += [f"{key.name}: missing, expected {key.name}=...: {key.help}" for key in single if key.required and not given.get(key.name)]
    values = given | {key.name: given.get(key.name) or key.default for key in single}
    problems += command.conflicts(values) if command.conflicts else ()
    if problems:
        raise UnknownChoice("\n".join(problems))
    return values


def _split(word: str, keys: Sequence[Key], given: Mapping[str, str]) -> tuple[Key, str, str]:
    """Return the key that a word is about, its full name, and the value."""
    name, equals, value = word.removeprefix("--").partition("=")
    key = next((key for key in keys if key.matches(name)), None)
    bare = next((key for key in keys if key.bare), None)
    if key and not equals and key.check is yes_or_no:
        return key, key.name, "yes"
    if key and equals:
        return key, name if key.is_family else key.name, value
    if bare and bare.name not in given and not _OPTION.fullmatch(word) and not _ASSIGNMENT.fullmatch(word):
        return bare, bare.name, word
    if equals and name:
        names = [key.name for key in keys]
        expected = f"expected one of {', '.join(names)}" if names else "expected none"
        text = f", or {bare.name}=TEXT for a text with = in it" if bare and bare.name not in given else ""
        raise UnknownChoice(f"{name}: unknown key{nearest(name.replace('_', '-'), names)}; {expected}{text}")
    hint = f"{key.name}=..." if key else "key=value" + nearest(name.lstrip("-"), [key.name for key in keys])
    quoting = f"; {bare.name} is {given[bare.name]!r} already: quote a text of several words" if bare and bare.name in given else ""
    raise UnknownChoice(f"got {word!r}, expected {hint}{quoting}")


def _keep(key: Key, name: str, value: str, given: dict[str, str]) -> None:
    if name in given:
        raise UnknownChoice(f"{name}: given twice" + ("" if key.secret else f", as {given[name]!r} and {value!r}"))
    given[name] = value
    try:
        if key.check and (value or not key.required):
            key.check(value)
    except UnknownChoice as error:
        raise UnknownChoice(f"{name}: {str(error).replace(repr(value), '***') if key.secret else error}") from None


def _spelling(name: str) -> str:
    return name.replace("_", "-")


def whole(low: int, high: int | None = None) -> Kind:
    """Return the kind of whole numbers from `low`, to `high` if there is a bound."""

    def read(text: str) -> int:
        # Longer ones are refused before int() sees them: it takes quadratic time.
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= (int(text) if high is None else high):
            raise ValueError(text)
        return int(text)

    return Kind(f"a whole number from {low}" + (f" to {high}" if high is not None else ""), read)


def number(low: float, high: float = math.inf) -> Kind:
    """Return the kind of decimal numbers from `low`, to `high` if there is a bound."""

    def read(text: str) -> float:
        if not re.fullmatch(r"[0-9]{0,18}\.?[0-9]{1,18}", text) or not low <= float(text) <= high:
            raise ValueError(text)
        return float(text)

    return Kind(f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else ""), read)


def one_of(*choices: str) -> Kind:
    """Return the kind of these texts."""

    def read(text: str) -> str:
        if text not in choices:
            raise UnknownChoice(f"got {text!r}, expected one of {', '.join(choices)}{nearest(text, choices)}")
        return text

    return Kind(f"one of {', '.join(choices)}", read)


def some(expected: str) -> Kind:
    """Return the kind of all texts but the empty one, for keys where leaving out the value is not the same as leaving out the key."""

    def read(text: str) -> str:
        if not text.strip():
            raise ValueError(text)
        return text

    return Kind(expected, read)


def _switched(text: str) -> bool:
    if text not in {"yes", "no"}:
        raise ValueError(text)
    return text == "yes"


yes_or_no = Kind("yes or no", _switched)
"""The kind of switches."""


def file_named(text: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path that a person wrote, from the folder in which ci/just was called, which changes to the repository's."""
    return Path(environment.get("CALLED_FROM", "."), text)
