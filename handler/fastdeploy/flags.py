"""Turn variables and FASTDEPLOY_EXTRA_ARGS into the argv of FastDeploy's server, exactly as the parser of the given release reads it.

Every flag is reachable as its upper-case name (`--max-logprobs` as MAX_LOGPROBS), apart from those in `OWN` and `ONLY_EXTRA` below. The
tables are data (`flag_tables/`), one JSON file for each release, written from the release's own parser by ci/dump_flags.py. Values
live in a mapping from the flag's destination (`max_logprobs`) to what the parser would store there; a destination that is not in it is
left to the engine. An empty text means not set. Nothing here touches a file, a process or the environment.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from handler.fastdeploy.table import RELEASES, Flag, differences, every_flag, flag_table, listed, to_argv
from handler.fastdeploy.values import (
    INTEGER_VARIABLES,
    NUMBER_VARIABLES,
    check_speakable,
    range_problem,
    read_number,
    read_switch,
    read_value,
)

__all__ = [
    "EXTRA_ARGS",
    "ONLY_EXTRA",
    "OWN",
    "RELEASES",
    "Flag",
    "collect_flags",
    "collect_variables",
    "differences",
    "flag_table",
    "range_problem",
    "to_argv",
    "variable_names",
]

EXTRA_ARGS = "FASTDEPLOY_EXTRA_ARGS"

OWN: Mapping[str, str] = MappingProxyType(
    {
        "api_key": "only the worker reaches the engine, and a key would shut it out",
        "config": "the YAML file would be read past every check; set variables instead",
        "host": "the engine listens on loopback only",
        "ips": "a worker is one machine, and the engine's queues must not listen beyond it",
        "model": "set MODEL; the engine gets the directory that holds its weights",
        "port": "the worker picks the engine's port; PORT is that of the worker's own server",
        "revision": "set MODEL_REVISION; it is fetched before the engine starts",
        "scheduler_password": "everyone who lists processes or reads the log sees the engine's flags",
        "served_model_name": "set SERVED_MODEL_NAME; the worker checks requests against it",
    }
)
"""Flags that are the worker's own, whoever asks, and why; their upper-case names are not read here."""

_REFUSED = ("ips", "scheduler_password")
"""Those of them whose upper-case names nothing else has: to pass over such a variable would pass over a wish."""

ONLY_EXTRA: Mapping[str, str] = MappingProxyType(
    {
        "max_concurrency": "MAX_CONCURRENCY is how many jobs the worker takes; the engine's limit is kept above it",
        "max_model_len": "MAX_MODEL_LEN is read by settings, and reaches the engine through them",
        "max_num_seqs": "MAX_NUM_SEQS is read by settings, and reaches the engine through them",
        "workers": "WORKERS is what many containers set for other servers; more than one makes the engine's limits inexact",
    }
)
"""Flags that FASTDEPLOY_EXTRA_ARGS may hold but whose upper-case name is not read here, and why."""

_ALIASES = {"TOKENIZER_NAME": "tokenizer"}

_HIDDEN = Flag(dest="config", options=("--config",))
"""FastDeploy reads it before its parser runs, so that no table has it."""


def collect_flags(texts: Mapping[str, str], release: str) -> tuple[dict[str, Any], list[str]]:
    """Return what `texts` (the environment, or what stands in for it) ask of the engine, and one sentence for each that cannot be read.

    FASTDEPLOY_EXTRA_ARGS wins over variables.
    """
    table = flag_table(release)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, dest in _readable().items():
        text = texts.get(name, "").strip()
        if text:
            problems += _read_variable(name, dest, text, release, values)
    for dest in _REFUSED:
        if texts.get(dest.upper(), "").strip():
            problems.append(f"{dest.upper()}: expected it unset, the flag is the worker's own: {OWN[dest]}")
    extra = texts.get(EXTRA_ARGS, "").strip()
    if extra:
        problems += [f"{EXTRA_ARGS}: {problem}" for problem in _read_extra(extra, table, values)]
    return values, problems


def collect_variables(texts: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that the engine itself reads (FD_* and the like), and one sentence for each that would crash it.

    FD_API_KEY is not among them: only the worker reaches the engine, and a key would shut it out.
    """
    passed = {name: text.strip() for name, text in texts.items() if _is_engines(name) and text.strip()}
    return passed, [problem for name, text in sorted(passed.items()) if (problem := _variable_problem(name, text))]


@functools.cache
def variable_names() -> frozenset[str]:
    """Return the names of all variables that are read here, for whatever release."""
    return frozenset({EXTRA_ARGS, *_readable(), *INTEGER_VARIABLES, *NUMBER_VARIABLES})


@functools.cache
def _readable() -> Mapping[str, str]:
    """Return the destination of each variable; an alias stands before the flag's own name, which so wins."""
    names = {dest.upper(): dest for dest in every_flag() if dest not in OWN and dest not in ONLY_EXTRA}
    return _ALIASES | names


def _is_engines(name: str) -> bool:
    return (name.startswith("FD_") or name in INTEGER_VARIABLES) and name != "FD_API_KEY"


def _variable_problem(name: str, text: str) -> str:
    try:
        check_speakable(text)
        if name in INTEGER_VARIABLES:
            read_number(text, int)
        elif name in NUMBER_VARIABLES:
            read_number(text, float)
    except ValueError as error:
        hint = "; FastDeploy's switches are 1 and 0" if name in INTEGER_VARIABLES else ""
        return f"{name}: got {text!r}, expected {error}{hint}"
    return ""


def _read_variable(name: str, dest: str, text: str, release: str, values: dict[str, Any]) -> list[str]:
    table = flag_table(release)
    flag = table.get(dest) or every_flag()[dest][0]
    try:
        value = _value(flag, text) if flag.takes_value else read_switch(text)
    except ValueError as error:
        return [f"{name}: got {text!r}, expected {error}"]
    if value is None or (flag.action == "true" and not value):
        values.pop(dest, None)
        return []  # asks for what the engine does when it is told nothing, whether or not the release has the flag
    if dest not in table:
        return [f"{name}: got {text!r}, expected it unset: {_lacks(dest, release)}"]
    values[dest] = value
    return []


def _value(flag: Flag, text: str) -> Any:
    return read_value(flag.dest, flag.type, text, choices=flag.choices, many=flag.many)


def _lacks(dest: str, release: str) -> str:
    flag, having = every_flag()[dest]
    return f"FastDeploy {release} has no {flag.options[0]} ({listed(having)} {'has' if len(having) == 1 else 'have'} it)"


def _read_extra(extra: str, table: Mapping[str, Flag], values: dict[str, Any]) -> list[str]:
    try:
        words = shlex.split(extra)
    except ValueError as error:
        return [f"got {extra!r}, expected words as a shell reads them ({error})"]
    found, problems = _parse(words, table)
    for dest, value in found.items():
        if dest in OWN:
            problems.append(f"--{dest.replace('_', '-')}: the worker's own flag: {OWN[dest]}")
        elif value is None:
            values.pop(dest, None)
        else:
            values[dest] = value
    return problems


def _parse(words: Sequence[str], table: Mapping[str, Flag]) -> tuple[dict[str, Any], list[str]]:
    """Return the value of each flag among `words` (None where it asks for what the engine does anyway), and what is wrong with the rest."""
    spellings = {option: flag for flag in (*table.values(), _HIDDEN) for option in flag.options}
    values: dict[str, Any] = {}
    problems: list[str] = []
    rest = list(words)
    while rest:
        option, glued, text = rest.pop(0).partition("=")
        flag = spellings.get(option)
        if flag is None:
            problems.append(_unknown(option, table, spellings))
            taken = _values_of(rest, many=True) if option.startswith("-") else []
        else:
            taken = [text] if glued else _values_of(rest, many=flag.many) if flag.takes_value else []
            try:
                _store(flag, option, taken, values)
            except ValueError as error:
                problems.append(f"{option}: got {' '.join(taken)!r}, expected {error}")
        if not glued:
            del rest[: len(taken)]
    return values, problems


def _values_of(rest: Sequence[str], *, many: bool) -> list[str]:
    """Return the words up to the next flag, at most one unless `many`; a negative number is a value."""
    taken: list[str] = []
    for word in rest if many else rest[:1]:
        if word.startswith("-") and not word[1:].replace(".", "", 1).isdecimal():
            break
        taken.append(word)
    return taken


def _store(flag: Flag, option: str, taken: Sequence[str], values: dict[str, Any]) -> None:
    if not flag.takes_value:
        if taken:
            raise ValueError("no value: the flag is a switch")
        values[flag.dest] = flag.action == "true" or option != flag.options[1]
        return
    if not any(taken):
        raise ValueError("a value")
    value = _value(flag, " ".join(taken))
    values[flag.dest] = [*values.get(flag.dest, []), value] if flag.action == "append" else value


def _unknown(option: str, table: Mapping[str, Flag], spellings: Mapping[str, Flag]) -> str:
    if not option.startswith("-"):
        return f"got {option!r}, expected a flag"
    for flag, having in every_flag().values():
        if option in flag.options and flag.dest not in table:
            return f"{option}: this release of FastDeploy has no such flag ({listed(having)} {'has' if len(having) == 1 else 'have'} it)"
    import difflib  # only for mistakes

    near = difflib.get_close_matches(option, spellings, n=1, cutoff=0.75)  # --nope is 0.62 like --model
    return f"{option}: unknown to this release of FastDeploy" + (f"; did you mean {near[0]}?" if near else "")
