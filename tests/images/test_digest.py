"""One image has one digest, whoever builds it, wherever, whenever, and with whatever around it (rules R1 to R8 of images/__init__.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import installer
import pytest

from images.digest import Digest
from images.lock import write_lock
from images.verify import verify
from images.worker_layers import PACKAGES
from tests import ROOT
from tests.images.small_world import make_world

ARGUMENTS = ("arch=sm89", "model=org/name", "quantization=wint4", "commit=c0ffee")
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Setup:
    """A folder that everybody may read, with a copy of the builder, its library, and all that is pinned."""

    folder: Path
    digest: str

    @property
    def lock(self) -> Path:
        return self.folder / "lock.json"


def copy_tree(source: Path, target: Path, *, backwards: bool = False) -> None:
    """Copy a folder's files, made in the order of their names or in the opposite one, which is what a listing of the folder shows."""
    files = sorted((path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts), reverse=backwards)
    for path in files:
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)


def make_tree(folder: Path, *, backwards: bool = False) -> Path:
    names = [*PACKAGES["cpu"], "images"]
    for name in reversed(names) if backwards else names:
        copy_tree(ROOT / name, folder / name, backwards=backwards)
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    copy_tree(Path(installer.__file__).parent, folder / "library" / "installer")
    return folder


@pytest.fixture(scope="module")
def setup() -> Iterator[Setup]:
    with tempfile.TemporaryDirectory(prefix="digest-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        world = make_world(folder)
        write_lock(folder / "lock.json", world.lock)
        tree = make_tree(folder / "checkout")
        made = Setup(folder, "")
        yield Setup(folder, build(made, tree))


_COUNT = iter(range(1000))


def build(
    setup: Setup, tree: Path, *before: str, python: str = sys.executable, cwd: Path | None = None, changes: Mapping[str, str] | None = None
) -> str:
    """Build with an empty environment but for `changes`, into a new folder, without anything kept from an earlier build."""
    work = Path(tempfile.mkdtemp(prefix=f"{next(_COUNT)}-", dir=setup.folder))
    work.chmod(0o777)
    shutil.copytree(setup.folder / "cache" / "sha256", work / "cache" / "sha256")
    for path in (work / "cache").rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o644)
    (work / "cache").chmod(0o777)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{tree}:{tree / 'library'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(changes or {}),
    }
    command = [*before, python, "-m", "images", "build", *ARGUMENTS, f"lock={setup.lock}", f"cache={work / 'cache'}", f"out={work / 'out'}"]
    done = subprocess.run(command, cwd=cwd or tree, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    digest = done.stdout.splitlines()[-1]
    assert str(verify(work / "out", setup.lock)) == digest
    return digest


def test_built_twice(setup: Setup) -> None:
    assert build(setup, setup.folder / "checkout") == setup.digest
    assert str(Digest.parse(setup.digest)) == setup.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"TZ": "Pacific/Kiritimati"},
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "C.UTF-8", "LANGUAGE": "tr"},
        {"HOSTNAME": "somewhere-else", "USER": "nobody", "LOGNAME": "nobody", "HOME": "/nonexistent"},
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "4294967295"},
        {"SOURCE_DATE_EPOCH": "1700000000"},
        {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
        {"PYTHONOPTIMIZE": "2"},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()),
)
def test_under_another_environment(setup: Setup, changes: dict[str, str]) -> None:
    assert build(setup, setup.folder / "checkout", changes=changes) == setup.digest


@pytest.mark.parametrize("mask", ["0000", "0022", "0077"])
def test_under_another_umask(setup: Setup, mask: str) -> None:
    assert build(setup, setup.folder / "checkout", "sh", "-c", f'umask {mask}; exec "$@"', "sh") == setup.digest


def test_from_another_directory_whose_files_were_made_in_the_opposite_order(setup: Setup) -> None:
    with tempfile.TemporaryDirectory(prefix="elsewhere-") as name:
        tree = make_tree(Path(name) / "a folder with blanks", backwards=True)
        for number, path in enumerate(tree.rglob("*")):
            os.utime(path, (number, number))
            if path.is_file():
                path.chmod(0o600)
        (tree / "handler" / "__pycache__").mkdir()
        (tree / "handler" / "__pycache__" / "job.cpython-311.pyc").write_bytes(b"compiled")
        (tree / "handler" / "job.py~").write_text("an editor's")
        assert build(setup, tree, cwd=Path("/")) == setup.digest


@pytest.mark.parametrize("day", ["1999-12-31 23:59:59", "2038-01-19 03:14:08", "+400d"])
def test_with_the_clock_moved(setup: Setup, day: str) -> None:
    assert build(setup, setup.folder / "checkout", "faketime", "-f", day if day.startswith("+") else f"@{day}") == setup.digest


def test_as_a_plain_user(setup: Setup) -> None:
    # A user who is not root is one already; python of this machine's distribution is one that everybody may run.
    as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups") if os.getuid() == 0 else ()
    python = "/usr/bin/python3" if as_nobody else sys.executable
    assert build(setup, setup.folder / "checkout", *as_nobody, python=python, cwd=Path("/")) == setup.digest


def test_an_edit_of_the_worker_or_another_model_gives_another_digest(setup: Setup) -> None:
    with tempfile.TemporaryDirectory(prefix="edited-") as name:
        tree = make_tree(Path(name) / "tree")
        job = tree / "handler" / "job.py"
        job.write_text(job.read_text() + "# edited\n")
        assert build(setup, tree) != setup.digest
