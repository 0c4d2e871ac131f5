"""`ci/install` as a process, in a tree of its own whose locks hold no package: no network is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

LOCKS = ("cpu_engine/requirements.lock", "ci/just.lock", "ci/requirements.lock")
MINOR = "{}.{}".format(*sys.version_info)

pytestmark = pytest.mark.timeout(180)


class Tree:
    """A folder with `ci/install`, its locks and what it has made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / ".venv"
        for lock in LOCKS:
            (folder / lock).parent.mkdir(parents=True, exist_ok=True)
            (folder / lock).write_text("# no package\n")
        shutil.copy(ROOT / "ci" / "install", folder / "ci" / "install")

    def install(self, what: str = "run", python: str = sys.executable) -> str:
        """Run it to a good end and return what it said."""
        done = subprocess.run(
            [self.folder / "ci" / "install", what],
            env=os.environ | {"PYTHON": python},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done
        assert not done.stdout
        return done.stderr

    def answer(self) -> str:
        """What its Python says it is, once pip was found beside it."""
        code = "import sys, pip; print('{}.{}'.format(*sys.version_info))"
        return subprocess.run([self.venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose environment is there already: making one takes seconds."""
    folder = tmp_path_factory.mktemp("made")
    said = Tree(folder).install()
    assert said == "ci/install: installing the locked packages for 'run' (once)\n"
    return folder


@pytest.fixture
def tree(made: Path, tmp_path: Path) -> Tree:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    return Tree(tmp_path)


def test_what_is_installed_is_not_installed_again_and_nothing_is_said(tree: Tree) -> None:
    before = (tree.venv / "installed-run").stat().st_mtime_ns
    assert tree.install(python="/no/such/python") == ""
    assert (tree.venv / "installed-run").stat().st_mtime_ns == before


def test_a_lock_that_has_changed_is_installed_into_the_environment_that_is_there(tree: Tree) -> None:
    (tree.folder / "ci" / "just.lock").write_text("# still none\n")
    (tree.venv / "mark").touch()
    assert tree.install() == "ci/install: installing the locked packages for 'run' (once)\n"
    assert (tree.venv / "mark").exists()
    assert tree.install() == ""


def test_an_environment_whose_python_was_removed_is_made_again_and_said_so(tree: Tree) -> None:
    python = tree.venv / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.1-that-was-removed")
    (tree.venv / "mark").touch()
    said = tree.install()
    assert said.startswith("ci/install: making .venv again: its Python does not run any more\n")
    assert tree.answer() == MINOR
    assert not (tree.venv / "mark").exists()
    assert tree.install() == ""


def test_an_environment_whose_python_is_there_and_cannot_run_is_made_again(tree: Tree) -> None:
    python = tree.venv / "bin" / "python"
    python.unlink()
    python.write_text("#!/no/such/interpreter\n")
    python.chmod(0o755)
    assert "its Python does not run any more" in tree.install("test")
    assert tree.answer() == MINOR


def test_an_environment_whose_packages_are_for_another_python_is_made_again_and_said_so(tree: Tree) -> None:
    """As an upgrade from 3.9 leaves it: the link leads to the new interpreter, packages and stamp are the old one's."""
    (tree.venv / "lib" / f"python{MINOR}").rename(tree.venv / "lib" / "python3.9")
    config = tree.venv / "pyvenv.cfg"
    config.write_text(re.sub(r"(?m)^version = .*", "version = 3.9.2", config.read_text()))
    (tree.venv / "installed-run").write_text("of 3.9\n")
    said = tree.install("test")
    assert said.startswith(f"ci/install: making .venv again: its packages are for Python 3.9, and its Python is {MINOR} now\n")
    assert tree.answer() == MINOR
    assert tree.install("test") == ""


def test_a_stamp_of_another_python_does_not_count(tree: Tree) -> None:
    """As `venv --upgrade` leaves it: the environment is whole, but holds no package for this Python."""
    locks = "".join((tree.folder / lock).read_text() for lock in LOCKS[:2])
    summed = subprocess.run(["cksum"], input=locks, capture_output=True, text=True, check=True).stdout
    (tree.venv / "installed-run").write_text(summed)
    assert tree.install() == "ci/install: installing the locked packages for 'run' (once)\n"
