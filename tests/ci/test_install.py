"""`ci/install` as a process, in a tree of its own whose locks hold no package, or one that an index on loopback has."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import ROOT

LOCKS = ("cpu_engine/requirements.lock", "ci/just.lock", "ci/requirements.lock")
MINOR = "{}.{}".format(*sys.version_info)
INSTALLING = "ci/install: installing the locked packages for 'run' into .venv, once: about 50 packages, 45 MB\n"

pytestmark = pytest.mark.timeout(180)


class Tree:
    """A folder with `ci/install`, its locks and what it has made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / ".venv"
        for lock in LOCKS:
            (folder / lock).parent.mkdir(parents=True, exist_ok=True)
            (folder / lock).write_text("# no package\n")
        shutil.copy(ROOT / "ci" / "install", folder / "ci" / "install")

    def start(self, what: str = "run", python: str = sys.executable, **variables: str) -> subprocess.Popen[str]:
        """Start it, in a process group of its own as a shell does."""
        return subprocess.Popen(
            [self.folder / "ci" / "install", what],
            env=os.environ | {"PYTHON": python} | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def fail(self, what: str = "run", **variables: str) -> str:
        """Run it to its end, which is not good, and return what it said."""
        process = self.start(what, **variables)
        out, said = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, ""), said
        return said

    def install(self, what: str = "run", python: str = sys.executable, **variables: str) -> str:
        """Run it to a good end and return what it said."""
        process = self.start(what, python, **variables)
        out, said = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, ""), said
        return said

    def answer(self) -> str:
        """What its Python says it is, once pip was found beside it."""
        code = "import sys, pip; print('{}.{}'.format(*sys.version_info))"
        return subprocess.run([self.venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose environment is there already: making one takes seconds."""
    folder = tmp_path_factory.mktemp("made")
    said = Tree(folder).install()
    assert said == INSTALLING
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
    assert tree.install() == INSTALLING
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
    assert tree.install() == INSTALLING


# --- an installation that is cut short


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "unfinished"), (signal.SIGINT, "bin/python"), (signal.SIGKILL, "lib/*/site-packages/pip/*")],
    ids=["INT at once", "INT in venv", "KILL in ensurepip"],
)
def test_an_installation_that_is_cut_short_is_started_over_by_the_next(number: signal.Signals, moment: str, tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    process = tree.start()
    while not list(tree.venv.glob(moment)):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said == f"{INSTALLING}ci/install: interrupted; the next ci/just starts over\n"
    again = tree.install()
    assert again == f"ci/install: making .venv again: its installation was not finished\n{INSTALLING}"
    assert tree.answer() == MINOR
    assert tree.install() == ""


def test_packages_that_were_being_changed_when_it_was_cut_short_are_not_trusted(tree: Tree) -> None:
    (tree.venv / "unfinished").touch()
    assert tree.install().startswith("ci/install: making .venv again: its installation was not finished\n")
    assert tree.install() == ""


# --- the index


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name that it has
        pass


@contextlib.contextmanager
def index(folder: Path) -> Iterator[dict[str, str]]:
    """A package index on loopback that has one package, `tiny` 1.0; give what makes pip ask it and nothing else."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield asking(server.server_address[1])
        finally:
            server.shutdown()


def asking(port: int) -> dict[str, str]:
    return {"PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}


def write_tiny(folder: Path) -> str:
    """Write the index's files and return the lock's line."""
    name, wheel = "tiny-1.0-py3-none-any.whl", io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny.py", "")
        file.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny-1.0.dist-info/RECORD", "")
    page = folder / "simple" / "tiny" / "index.html"
    page.parent.mkdir(parents=True)
    (page.parent / name).write_bytes(wheel.getvalue())
    page.write_text(f'<a href="{name}">{name}</a>')
    return f"tiny==1.0 --hash=sha256:{hashlib.sha256(wheel.getvalue()).hexdigest()}\n"


def test_an_index_that_cannot_be_reached_is_named_and_what_was_installed_stays(tree: Tree, tmp_path: Path) -> None:
    line = write_tiny(tmp_path / "index")
    lock = tree.folder / "ci" / "just.lock"
    before = lock.read_text()
    with socket.socket() as closed:  # bound and not listening: nobody else can take the port meanwhile
        closed.bind(("127.0.0.1", 0))
        lock.write_text(line)
        said = tree.fail(**asking(closed.getsockname()[1]))
    assert said.startswith(f"{INSTALLING}ci/install: the package index cannot be reached (")
    assert said.endswith("look at the network and at a proxy (HTTPS_PROXY); PIP_INDEX_URL names another index\n")
    assert "Connection refused" in said
    assert "tiny" not in said
    lock.write_text(before)
    assert tree.install() == ""


def test_a_first_installation_without_an_index_is_started_over(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "tree")
    (tree.folder / "ci" / "just.lock").write_text(write_tiny(tmp_path / "index"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "the package index cannot be reached" in tree.fail(**asking(closed.getsockname()[1]))
    with index(tmp_path / "index") as variables:
        assert "making .venv again" in tree.install(**variables)
    assert list(tree.venv.rglob("tiny.py"))


def test_what_pip_says_of_anything_else_is_shown(tree: Tree, tmp_path: Path) -> None:
    line = write_tiny(tmp_path / "index")
    (tree.folder / "ci" / "just.lock").write_text(line.replace("1.0", "2.0"))
    with index(tmp_path / "index") as variables:
        said = tree.fail(**variables)
    assert "No matching distribution found for tiny==2.0" in said
    assert said.endswith("ci/install: pip could not install the locked packages for 'run'; what it printed is above\n")


def test_a_terminal_shows_what_is_brought(tree: Tree, tmp_path: Path) -> None:
    (tree.folder / "ci" / "just.lock").write_text(write_tiny(tmp_path / "index"))
    ours, theirs = os.openpty()
    with index(tmp_path / "index") as variables:
        subprocess.run([tree.folder / "ci" / "install", "run"], env=os.environ | variables, stderr=theirs, timeout=120, check=True)
    os.close(theirs)
    with contextlib.suppress(OSError), os.fdopen(ours, "rb") as terminal:
        shown = b""
        while piece := terminal.read1():
            shown += piece
    assert b"Downloading" in shown, shown
    assert b"tiny-1.0" in shown


@pytest.mark.parametrize(
    ("what", "told"), re.findall(r'^ +(\w+)\) locks=.*size="about (\d+)', (ROOT / "ci" / "install").read_text(), re.MULTILINE)
)
def test_the_number_of_packages_that_is_told_is_about_right(what: str, told: str) -> None:
    [locks] = re.findall(rf'^ +{what}\) locks="([^"]*)"', (ROOT / "ci" / "install").read_text(), re.MULTILINE)
    lines = [line for lock in locks.split() for line in (ROOT / lock).read_text().splitlines() if re.match(r"[A-Za-z0-9]", line)]
    wanted = [Requirement(line.split(" \\")[0]) for line in lines]
    found = sum(one.marker is None or one.marker.evaluate() for one in wanted)
    assert found == pytest.approx(int(told), rel=0.25)
