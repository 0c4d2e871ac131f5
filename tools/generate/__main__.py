"""`ci/just generate` writes every generated file; with `--check` it writes nothing, shows what would change and fails if anything would."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from images.arguments import Command, Key, call, yes_or_no
from tools.generate import pages
from tools.generate.console import console
from tools.generate.hub_listing import hub, tests

ROOT = Path(__file__).resolve().parents[2]


def generated(root: Path = ROOT) -> Mapping[str, str]:
    """Return the text of every generated file by its path from `root`; pages with marks keep what stands outside them.

    Raises:
        OSError, ValueError: naming a page that is not there, or has no marks.
    """
    return {
        ".runpod/hub.json": _json(hub()),
        ".runpod/tests.json": _json(tests()),
        "worker-config.json": _json(console()),
        "docs/configuration.md": pages.configuration(),
        "README.md": _page(root / "README.md", "variables", pages.variables()),
        ".runpod/README.md": _page(root / ".runpod" / "README.md", "listing", pages.listing()),
    }


def difference(root: Path = ROOT) -> str:
    """Return how the files on disk differ from what would be written, as a unified diff; "" when they do not."""
    lines: list[str] = []
    for name, text in generated(root).items():
        path = root / name
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        changes = difflib.unified_diff(old.splitlines(keepends=True), text.splitlines(keepends=True), name, f"{name} (generated)")
        lines += [line if line.endswith("\n") else line + "\n" for line in changes]
    return "".join(lines)


def run(values: Mapping[str, str], root: Path = ROOT) -> int:
    """Write the files, or compare them; return the exit code."""
    try:
        if values["check"] == "yes":
            return _check(root)
        for name, text in generated(root).items():
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    return 0


COMMAND = Command(
    name="generate",
    help="Write hub.json, tests.json, the console's form and the pages from the worker's tables.",
    keys=(Key("check", "Write nothing; show what would change, and fail if anything would.", check=yes_or_no),),
    run=run,
)


def main(words: Sequence[str], root: Path = ROOT) -> int:
    """Return the exit code for the words of a command line."""
    return call(replace(COMMAND, run=partial(run, root=root)), words)


def _check(root: Path) -> int:
    changes = difference(root)
    if changes:
        print(changes, end="")
        print("generate: the files above are not what the tables say: run `ci/just generate`", file=sys.stderr)
    return bool(changes)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _page(path: Path, name: str, new: str) -> str:
    try:
        return pages.between_marks(path.read_text(encoding="utf-8"), name, new)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
