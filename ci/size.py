"""Print modules and code lines of each package, and hold them to their budget: `ci/just size`.

A code line holds something that runs: blank lines, comments and docstrings (also those of attributes) do not count. When a package is over
its budget, first look for what can go; CONTRIBUTING.md says when a budget is raised.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = {
    "handler": (32, 3700),
    "handler/fastdeploy": (22, 2600),
    "handler/parsing": (6, 680),
    "handler/translation": (11, 1100),
    "cpu_engine": (25, 2850),
    "checkpoint": (11, 1150),
    "images": (34, 3500),
    "tools": (42, 4000),
    "ci": (35, 3250),
}
"""Modules and code lines at most; `handler` is its core, without the packages in it."""

_IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Return how many lines of a module hold code."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    with path.open("rb") as file:
        held = {
            line
            for token in tokenize.tokenize(file.readline)
            if token.type not in _IGNORED
            for line in range(token.start[0], token.end[0] + 1)
        }
    return len(held - prose)


def measure(package: str) -> tuple[int, int]:
    """Return the modules and the code lines of a package; of `handler` those of its core."""
    folder = ROOT / package
    paths = [path for path in (folder.glob("*.py") if package == "handler" else folder.rglob("*.py")) if path.stem != "__init__"]
    return len(paths), sum(map(code_lines, paths))


def main() -> int:
    """Print the table and return 1 if a package is over its budget."""
    print(f"{'package':<22}{'modules':>8}{'budget':>8}{'code lines':>12}{'budget':>8}")
    over = []
    for package, budget in BUDGET.items():
        found = measure(package)
        print(f"{package:<22}{found[0]:>8}{budget[0]:>8}{found[1]:>12}{budget[1]:>8}")
        over += [package] if found[0] > budget[0] or found[1] > budget[1] else []
    for package in over:
        print(f"{package}: over its budget; see CONTRIBUTING.md", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
