"""The flags of each release of FastDeploy's server, read from the JSON files beside this module, and their form on a command line."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from handler.errors import InvalidSettings
from handler.fastdeploy.values import values_known_to

__all__ = ["RELEASES", "Flag", "differences", "every_flag", "flag_table", "listed", "to_argv"]

RELEASES = ("2.3", "2.4", "2.5", "2.6")
"""The releases there is a table for, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag as a release's parser declares it.

    `options` are its spellings, the full one first (`--no-...` among them where action is "optional"). `action`: "store" takes one
    value, or several with `many`; "append" may be repeated; "true" takes none; "optional" is on, off or unset. `choices` are the parser's,
    or else those that the release's configuration is known to take later on; none means anything goes.
    """

    dest: str
    options: tuple[str, ...]
    action: Literal["store", "append", "true", "optional"] = "store"
    type: str = "str"
    many: bool = False
    choices: tuple[str, ...] = ()
    default: Any = None

    @property
    def takes_value(self) -> bool:
        """Whether a word follows it on the command line."""
        return self.action in ("store", "append")


@functools.cache
def flag_table(release: str) -> Mapping[str, Flag]:
    """Return the flags of a release by destination: `max_logprobs` for --max-logprobs.

    Raises:
        InvalidSettings: when there is no table for the release.
    """
    return MappingProxyType({flag.dest: flag for flag in (_flag(entry, release) for entry in _entries(release))})


@functools.cache
def every_flag() -> Mapping[str, tuple[Flag, tuple[str, ...]]]:
    """Return every flag of any release by destination: its newest form, and the releases that have it."""
    newest = {dest: flag for release in RELEASES for dest, flag in flag_table(release).items()}
    return {dest: (flag, tuple(release for release in RELEASES if dest in flag_table(release))) for dest, flag in newest.items()}


def to_argv(values: Mapping[str, Any], table: Mapping[str, Flag]) -> list[str]:
    """Return the words that make the parser store `values`; a destination that is not in it is left to the engine."""
    return [word for dest, flag in table.items() if dest in values for word in _words(flag, values[dest])]


def differences(release: str, described: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each way in which a parser's description (see describe.py) departs from the table; none when they agree."""
    found = {} if described["release"] == release else {"": f"installed is FastDeploy {described['release']}, expected {release}"}
    wanted, got = ({entry["options"][0]: entry for entry in entries} for entries in (_entries(release), described["flags"]))
    for option in sorted(wanted.keys() | got.keys()):
        if option not in got:
            found[option] = f"{option}: in the table, unknown to the parser"
        elif option not in wanted:
            found[option] = f"{option}: not in the table; the parser has {json.dumps(got[option])}"
        elif wanted[option] != got[option]:
            found[option] = f"{option}: the table has {json.dumps(wanted[option])}, the parser has {json.dumps(got[option])}"
    return list(found.values())


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _entries(release: str) -> list[dict[str, Any]]:
    if release not in RELEASES:
        raise InvalidSettings([f"FastDeploy: got release {release!r}, expected {listed(RELEASES[:-1])} or {RELEASES[-1]}"])
    text = (Path(__file__).parent / "flag_tables" / f"{release}.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)["flags"]
    return entries


def _flag(entry: Mapping[str, Any], release: str) -> Flag:
    dest = entry["options"][0].removeprefix("--").replace("-", "_")
    return Flag(
        dest=dest,
        options=tuple(entry["options"]),
        action=entry.get("action", "store"),
        type=entry.get("type", "str"),
        many="nargs" in entry,
        choices=tuple(entry.get("choices", ())) or values_known_to(release, dest),
        default=entry.get("default"),
    )


def _words(flag: Flag, value: Any) -> list[str]:
    option = flag.options[0]
    if flag.action == "true":
        return [option] if value else []
    if flag.action == "optional":
        return [option if value else flag.options[1]]
    if flag.many:
        return [option, *value]
    return [word for one in (value if flag.action == "append" else [value]) for word in _pair(option, _text(flag, one))]


def _pair(option: str, text: str) -> list[str]:
    # A parser takes a word that starts with a dash for the next flag, unless it hangs on its own.
    return [f"{option}={text}"] if text.startswith("-") else [option, text]


def _text(flag: Flag, value: Any) -> str:
    if flag.type == "list":
        return ",".join(value)
    if flag.type == "quantization" and value.keys() == {"quantization"}:
        return str(value["quantization"])
    return json.dumps(value) if isinstance(value, dict) else str(value)
