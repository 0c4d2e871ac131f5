"""Print the flags that the installed FastDeploy's own parser declares, in the form of the JSON files beside this one.

Run by the interpreter that has FastDeploy: `python describe.py`, or `python describe.py --version` for its version alone. The last line of
the output is the answer; FastDeploy prints whatever it likes before it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["canonical", "describe_installed", "describe_parser", "installed_version"]

_ACTIONS = {
    "_StoreAction": "store",
    "_AppendAction": "append",
    "_StoreTrueAction": "true",
    "DeprecatedOptionWarning": "true",  # FastDeploy's own: warns, and stores true
    "BooleanOptionalAction": "optional",
}
_TYPES = {
    "str": "str",
    "int": "int",
    "float": "float",
    "loads": "json",
    "nullable_str": "nullable_str",
    "parse_quantization": "quantization",
}


def describe_installed() -> dict[str, Any]:
    """Return release (such as 2.5) and flags of the FastDeploy that this interpreter imports."""
    # FastDeploy is looked for only here, so that the rest can be imported by any interpreter.
    from fastdeploy.entrypoints.openai.utils import make_arg_parser  # type: ignore[import-not-found, unused-ignore]
    from fastdeploy.utils import FlexibleArgumentParser  # type: ignore[import-not-found, unused-ignore]

    release = ".".join(installed_version().split(".")[:2])
    return {"release": release, "flags": describe_parser(make_arg_parser(FlexibleArgumentParser()))}


def installed_version() -> str:
    """Return the version of the installed FastDeploy without importing it (that takes half a minute); "" when there is none.

    The package holds a version.txt with a line `fastdeploy version: X`, the wheels carry the usual metadata as well; one that tells
    neither way is of version "unknown".
    """
    found = importlib.util.find_spec("fastdeploy")
    if found is None:
        return ""
    for folder in found.submodule_search_locations or ():
        path = Path(folder, "version.txt")
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            name, _, version = line.partition(":")
            if name.strip() == "fastdeploy version":
                return version.strip()
    wheels = (wheel for name in ("fastdeploy-gpu", "fastdeploy") for wheel in importlib.metadata.distributions(name=name))
    return next((wheel.version for wheel in wheels), "unknown")


def describe_parser(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """Return the parser's flags, sorted by their first option, with only the fields that differ from argparse's own defaults."""
    actions = [action for action in parser._actions if action.option_strings and action.dest != "help"]  # noqa: SLF001  # no other way
    return sorted((_describe(action) for action in actions), key=lambda flag: flag["options"])


def canonical(release: str, flags: list[dict[str, Any]]) -> str:
    """Return the text of a release's file: one flag a line, so that a difference reads well."""
    lines = ",\n".join("  " + json.dumps(flag) for flag in flags)
    return f'{{\n "release": "{release}",\n "flags": [\n{lines}\n ]\n}}\n'


def _describe(action: argparse.Action) -> dict[str, Any]:
    kind = _ACTIONS.get(type(action).__name__, type(action).__name__)
    flag: dict[str, Any] = {"options": list(action.option_strings)}
    if kind != "store":
        flag["action"] = kind
    if kind in ("store", "append"):
        flag["type"] = _type(action)
    if action.nargs not in (None, 0):
        flag["nargs"] = action.nargs
    if action.choices:
        flag["choices"] = list(action.choices)
    if action.default is not None and not (kind == "true" and action.default is False):
        flag["default"] = action.default
    return flag


def _type(action: argparse.Action) -> str:
    if action.type is None:
        return "str"
    name = getattr(action.type, "__name__", str(action.type))
    return "list" if name == "<lambda>" and _splits(action.type) else _TYPES.get(name, name)


def _splits(read: Any) -> bool:
    """Whether a type without a name reads values between commas; those of --cache-queue-port are numbers to FastDeploy."""
    try:
        return [str(value) for value in read("1,2")] == ["1", "2"]
    except Exception:  # noqa: BLE001  # it may be any function
        return False


if __name__ == "__main__":
    del sys.path[0]  # this script's folder, whose modules are none of FastDeploy's
    answer = installed_version() if sys.argv[1:] == ["--version"] else json.dumps(describe_installed())
    print(answer)  # noqa: T201  # what it is for
