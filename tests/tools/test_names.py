"""A name of tools/ or ci/ means one thing over the whole tree."""

from __future__ import annotations

import ast
from collections import Counter

from tests import ROOT

FILES = [path for package in ("handler", "checkpoint", "cpu_engine", "images", "tools", "ci") for path in (ROOT / package).rglob("*.py")]
OURS = [path for path in FILES if path.relative_to(ROOT).parts[0] in {"tools", "ci"}]
EVERYWHERE = {"__init__.py", "__main__.py"}


def test_a_class_of_ours_has_its_name_for_itself() -> None:
    classes = {path: [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)] for path in FILES}
    named = Counter(name for names in classes.values() for name in names if not name.startswith("_"))
    assert [name for path in OURS for name in classes[path] if named[name] > 1] == []


def test_a_file_of_ours_has_its_name_for_itself() -> None:
    """Scripts that stand in ci/ itself are named after their recipes."""
    named = Counter(path.name for path in FILES)
    assert [path for path in OURS if named[path.name] > 1 and path.name not in EVERYWHERE and path.parent != ROOT / "ci"] == []
