"""The shape of the image builder: imports point one way, what builds opens no socket, and the reader shares nothing with the writer."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

IMAGES = ROOT / "images"
MODULES = sorted(path for path in IMAGES.glob("*.py") if path.stem != "__init__")
ORDER = re.search(r"a file may import those before it: ([\w\s,]+)\.", (IMAGES / "__init__.py").read_text())
assert ORDER
NAMES = [name.strip() for name in ORDER.group(1).split(",")]


def imports(path: Path) -> set[str]:
    """Every module of the package that a file imports anywhere."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    named = {node.module for node in nodes} | {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
    stems = {other.stem for other in MODULES}
    return {name.split(".")[1] for name in named if name and name.startswith("images.") and name.split(".")[1] in stems}


def test_the_map_names_every_module() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_upwards(path: Path) -> None:
    allowed = set(NAMES[: NAMES.index(path.stem)])
    assert imports(path) <= allowed, f"{path.stem} may import {sorted(allowed)}"


def test_the_reader_shares_nothing_with_the_writer_but_digests() -> None:
    assert imports(IMAGES / "verify.py") == {"arguments", "digest", "build_errors"}


def test_only_the_layers_own_reader_and_writer_know_tars_and_zips() -> None:
    users = {
        name: {path.stem for path in MODULES if re.search(rf"^import {name}$", path.read_text(), re.MULTILINE)}
        for name in ("tarfile", "zipfile")
    }
    assert users["zipfile"] == {"wheels"}
    assert not users["tarfile"] & {"tar", "layout", "image", "build"}


WITHOUT_A_NETWORK = """
import sys
from pathlib import Path
from images.verify import verify
from tests.images.small_world import make_world

def refuse(event, arguments):
    assert not event.startswith("socket."), event

world = make_world(Path(sys.argv[1]))
sys.addaudithook(refuse)
for architecture in ("cpu", "sm89"):
    verify(world.build(architecture, architecture, "org/name")[0], world.lock_file)
"""


def test_what_builds_and_verifies_never_opens_a_socket(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_NETWORK, str(tmp_path)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
