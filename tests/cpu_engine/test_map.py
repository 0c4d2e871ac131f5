"""The shape of the engine: its map names every file, in an order in which each imports only earlier ones."""

from __future__ import annotations

import ast
import re

import pytest

from tests import ROOT

ENGINE = ROOT / "cpu_engine"
NAMES = re.findall(r"^ *\d+\. (\w+)\.py ", (ENGINE / "__init__.py").read_text(), re.MULTILINE)


def test_the_map_names_every_file() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in ENGINE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_earlier_ones(name: str) -> None:
    nodes = [node for node in ast.walk(ast.parse((ENGINE / f"{name}.py").read_text())) if isinstance(node, ast.ImportFrom)]
    imported = {node.module.split(".")[1] for node in nodes if node.module and node.module.startswith("cpu_engine.")}
    assert imported <= set(NAMES[: NAMES.index(name)])
