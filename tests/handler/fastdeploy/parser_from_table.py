"""A real argparse parser rebuilt from a release's JSON file, with FastDeploy's own types and actions as its parser declares them.

Copied as `fastdeploy/utils.py` into the stand-in package of these tests, so it imports nothing of the project.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class FlexibleArgumentParser(argparse.ArgumentParser):
    """Reads --config with a parser of its own before the real one, as FastDeploy's does."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        before = argparse.ArgumentParser(add_help=False)
        before.add_argument("--config", type=str)
        _, rest = before.parse_known_args(args)
        return super().parse_args(rest, namespace)


class DeprecatedOptionWarning(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        setattr(namespace, self.dest, True)


def nullable_str(text: str) -> str | None:
    return text or None


def parse_quantization(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"quantization": text}


TYPES: Mapping[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "json": json.loads,
    "nullable_str": nullable_str,
    "quantization": parse_quantization,
    "list": lambda s: s.split(",") if s else None,
}
NUMBERS = lambda s: [int(item.strip()) for item in s.split(",")] if s else None  # noqa: E731  # as --cache-queue-port has it
ACTIONS: Mapping[str, Any] = {"store": "store", "append": "append", "true": "store_true", "optional": argparse.BooleanOptionalAction}


def build(entries: Iterable[Mapping[str, Any]], parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the flags of a release's file to a parser."""
    for entry in entries:
        action = entry.get("action", "store")
        options = [option for option in entry["options"] if action != "optional" or not option.startswith("--no-")]
        more: dict[str, Any] = {"action": ACTIONS[action]}
        if "--enable-mm" in options:
            more["action"] = DeprecatedOptionWarning
        if "type" in entry:
            more["type"] = NUMBERS if "--cache-queue-port" in options else TYPES[entry["type"]]
        more |= {key: entry[key] for key in ("nargs", "choices", "default") if key in entry}
        if action == "true":
            more.setdefault("default", False)
        parser.add_argument(*options, **more)
    return parser
