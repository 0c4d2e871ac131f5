"""push with watch=yes: what the tag has follows what the tree has."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ci.hosts.shared import Hosts
from images.registry import ImageReference, RegistryRepository
from images.worker_layers import PACKAGES
from tests.images.made import ROOT, Made

pytestmark = pytest.mark.timeout(300)

EDITED = Path("handler") / "job.py"


class Watched:
    """A tree of its own in `folder`, and what its watching process says."""

    def __init__(self, folder: Path, made: Made, image: str) -> None:
        self.tree, self.image, self._folder = folder / "tree", image, folder
        for name in (*PACKAGES["cpu"], "images"):
            shutil.copytree(ROOT / name, self.tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.tree)
        self._log = folder / "log"
        self._words = [f"releases={made.releases}", f"lock={made.lock}", f"cache={ROOT / 'dist' / 'cache'}"]
        self.process: subprocess.Popen[bytes]

    @contextmanager
    def running(self, *words: str) -> Iterator[None]:
        """Watch meanwhile; `words` come last."""
        command = self._command("fetch,build,push", "out", f"to={self.image}", "watch=yes", *words)
        with self._log.open("wb") as log, subprocess.Popen(command, cwd=self.tree, stdout=log, stderr=log) as self.process:
            try:
                yield
            finally:
                self.process.kill()

    def built(self) -> str:
        """The digest of what the tree has, built by one command and in another folder."""
        done = subprocess.run(self._command("fetch,build", "apart"), cwd=self.tree, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.splitlines()[-1]

    def pushed(self) -> str:
        """The digest that the tag has."""
        place = ImageReference.parse(self.image)
        return str(RegistryRepository(place).manifest(place.tag).digest)

    def wait_said(self, text: str, times: int) -> None:
        """Return when it has said something so many times."""
        deadline = time.monotonic() + 60
        while self.log.count(text) < times:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.02)

    def wait_pushed(self, digest: str) -> None:
        """Return when the tag has a digest."""
        deadline = time.monotonic() + 60
        while self.pushed() != digest:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text()

    def _command(self, name: str, out: str, *words: str) -> list[str]:
        return [sys.executable, "-m", "images", name, "arch=cpu", f"out={self._folder / out}", *self._words, *words]


@pytest.fixture
def watched(made: Made, hosts: Hosts, tmp_path: Path) -> Watched:
    return Watched(tmp_path, made, f"{hosts.registry}/test/{uuid.uuid4().hex[:12]}:watched")


def test_when_edits_end_the_tag_has_what_the_tree_has(watched: Watched) -> None:
    """However they come: also in the middle of a push, and some in a row."""
    pauses = random.Random(0)
    with watched.running():
        watched.wait_said("waiting for the next edit", 1)
        first = watched.pushed()
        assert first == watched.built()
        for _ in range(5):
            for line in range(pauses.randint(1, 6)):
                with (watched.tree / EDITED).open("a") as file:
                    file.write(f"# {line}\n")
                time.sleep(pauses.uniform(0, 0.06))
            wanted = watched.built()
            assert wanted != first
            watched.wait_pushed(wanted)


def test_a_worker_that_cannot_be_built_is_said_and_the_next_edit_mends_it(watched: Watched) -> None:
    main = watched.tree / "handler" / "__main__.py"
    with watched.running():
        watched.wait_said("waiting for the next edit", 1)
        before = watched.pushed()
        code = main.read_bytes()
        main.unlink()
        watched.wait_said("got no __main__.py", 1)
        assert watched.pushed() == before
        main.write_bytes(code + b"\n")
        watched.wait_pushed(watched.built())
        assert watched.pushed() != before


def test_a_file_that_is_refused_is_one_sentence(watched: Watched) -> None:
    (watched.tree / "handler" / "odd.py").symlink_to("/proc/self/mem")
    with watched.running():
        assert watched.process.wait(60) == 1
    assert watched.log.splitlines()[-1].startswith("error: ")
    assert "odd.py: a symbolic link, expected files and folders" in watched.log


def test_ctrl_c_ends_the_watch_in_good_order(watched: Watched) -> None:
    watched.tree = ROOT
    with watched.running():
        watched.wait_said("waiting for the next edit", 1)
        watched.process.send_signal(signal.SIGINT)
        assert watched.process.wait(20) == 0
    assert "Traceback" not in watched.log


def test_a_first_push_that_fails_is_the_end(watched: Watched) -> None:
    with watched.running("model=no/such"):
        assert watched.process.wait(60) == 1
    assert "no/such" in watched.log
    assert "waiting" not in watched.log


def test_watch_takes_yes_or_no(watched: Watched) -> None:
    done = subprocess.run(
        watched._command("push", "out", "to=127.0.0.1:1/a:b", "watch=maybe"),
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: watch: got 'maybe', expected yes or no\n"
