"""The shape of the worker: imports point one way, and each dangerous thing has one importer."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.conftest import KINDS

HANDLER = ROOT / "handler"
ORDER = re.search(r"a file may import those before it: ([\w\s,]+)\.", (HANDLER / "__init__.py").read_text())
assert ORDER
PROGRAMS = {"__main__", "describe", "serve_on_loopback"}
LAYERS = [name.strip() for name in ORDER.group(1).split(",")]
FILES = sorted(HANDLER.rglob("*.py"))
MODULES = [path for path in FILES if path.stem != "__init__"]


def layer(path: Path) -> str:
    """The module or package of the worker that a file belongs to."""
    return path.relative_to(HANDLER).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_map_names_every_module() -> None:
    assert sorted(LAYERS) == sorted({layer(path) for path in MODULES})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{layer(path)}-{path.stem}")
def test_imports_point_upwards(path: Path) -> None:
    allowed = {*LAYERS[: LAYERS.index(layer(path))], *([layer(path)] if path.parent != HANDLER else [])}
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("handler.")}
    assert inside <= allowed, f"{path.stem} may import {sorted(allowed)}"


PACKAGES = {
    "checkpoint": set[str](),
    "cpu_engine": {"checkpoint"},
    "handler": {"checkpoint"},
    "images": {"checkpoint"},
    "tools": {"checkpoint", "handler", "images"},
    "ci": {"checkpoint", "cpu_engine", "handler", "images", "tools", "tests"},
}
"""What each package may import beside itself."""


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_are_built_on(package: str) -> None:
    found = {name.split(".")[0] for path in (ROOT / package).rglob("*.py") for name in imports(path)}
    assert found & {*PACKAGES, "tests"} <= {package} | PACKAGES[package]


@pytest.mark.parametrize(
    ("dangerous", "importers"),
    [
        ("runpod", {"sdk_loop"}),
        ("subprocess", {"prestart", "gpus", "installed", "describe"}),
        ("psutil", {"processes"}),
        ("aiohttp", {"web"}),
        ("ctypes", {"cleanup", "serve_on_loopback"}),
        ("os.environ", {"__main__", "serve_on_loopback", "sdk_loop"}),
        ("sys.exit", {"__main__", "serve_on_loopback"}),
        ("signal.signal", {"shutdown", "sdk_loop", "serve_on_loopback"}),
    ],
)
def test_each_dangerous_thing_has_its_importers(dangerous: str, importers: set[str]) -> None:
    top = dangerous.split(".", maxsplit=1)[0]
    if "." in dangerous:
        users = {path.stem for path in MODULES if re.search(rf"\b{re.escape(dangerous)}\b", path.read_text())}
    else:
        users = {path.stem for path in MODULES if any(name.split(".")[0] == top for name in imports(path))}
    assert users <= importers
    assert users, f"nothing uses {dangerous} any more: delete this row"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_public_name_is_listed_and_every_listed_name_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.stem in PROGRAMS:
        return
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    defined = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        getattr(node, "name", "")
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.alias))
    }
    used_elsewhere = {
        alias.name
        for other in MODULES
        if other != path
        for node in ast.walk(ast.parse(other.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == ".".join(["handler", *path.relative_to(HANDLER).with_suffix("").parts])
        for alias in node.names
    }
    assert used_elsewhere <= set(listed)
    assert set(listed) <= defined
    assert len(set(listed)) == len(listed)


def test_importing_any_module_starts_nothing() -> None:
    names = [".".join(["handler", *path.relative_to(HANDLER).with_suffix("").parts]) for path in MODULES if path.stem not in PROGRAMS]
    code = f"""
import importlib, os, signal, threading, psutil
before = signal.getsignal(signal.SIGTERM), dict(os.environ)
for name in {names!r}:
    importlib.import_module(name)
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert (signal.getsignal(signal.SIGTERM), dict(os.environ)) == before
assert not psutil.Process().children()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HANDLER.parent, timeout=30)


def test_every_place_of_a_kind_of_proof_is_there() -> None:
    tests = ROOT / "tests"
    assert [place for places in KINDS.values() for place in places if not list(tests.glob(place))] == []


def test_nothing_waits_in_the_way_that_loses_a_cancellation() -> None:
    """Rule: see `handler/timeouts.py`."""
    assert [path.name for path in MODULES if path.stem != "timeouts" and "wait_for(" in path.read_text()] == []
