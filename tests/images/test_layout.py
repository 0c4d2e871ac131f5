"""A layout is whole or is none: killed anywhere, on a full disk, twice at once, and run again it is finished."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from images.build_errors import BadSource, DigestMismatch, ImageError
from images.layout import OciLayout
from images.verify import verify
from tests.images.small_world import World, make_world

KILLED_EVERYWHERE = """
import os, signal, sys
from pathlib import Path
from images.build_errors import BrokenLayout
from images.verify import verify
from tests.images.small_world import make_world

world = make_world(Path(sys.argv[1]))
states = set()
out = str(world.root / "out")


def build_until(number):
    seen = 0

    def count(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and out in str(arguments[0]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    world.build("out", model=model)


for model in ("", "org/name"):  # the second build finds the layout of the first
    number, killed = 0, True
    while killed:
        number += 1
        child = os.fork()
        if child == 0:
            build_until(number)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, status
        try:
            state = str(verify(world.root / "out", world.lock_file))
        except BrokenLayout as error:
            assert any("cannot be read" in problem or "no such folder" in problem for problem in error.problems), error
            state = "none"
        states.add(state)
    print(model or "no model", number - 1)
whole = {str(world.build(f"whole{model}", model=model)[1]) for model in ("", "org/name")}
assert states == {"none", *whole}, (states, whole)
"""


def test_a_builder_that_is_killed_anywhere_leaves_the_old_image_or_none_and_is_finished_by_the_next(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_EVERYWHERE, str(tmp_path)], capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith(("no model", "org/name"))]
    assert min(counts) > 10, "it was killed at every step"


FULL = """
import resource, sys
from pathlib import Path
from images.build_errors import ImageError
from tests.images.small_world import make_world

world = make_world(Path(sys.argv[1]))
_, old = world.build("out")
(world.handler / "part0.py").write_text("x" * 9000)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    world.build("out", model="org/name")
except ImageError as error:
    assert "cannot be written" in str(error), error
    assert "the image that it held is still there" in str(error), error
    print(old)
try:
    world.build("new", model="org/name")
except ImageError as error:
    assert "and it holds no image yet; free space, or name another folder with out=" in str(error), error
"""


@pytest.mark.parametrize("limit", [0, 1, 3000])
def test_a_disk_that_is_full_stops_the_build_and_leaves_the_old_image(tmp_path: Path, limit: int) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), str(limit)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(verify(tmp_path / "out", tmp_path / "lock.json"))
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.name.startswith(".part-")]
    assert not left


def test_a_wrong_input_leaves_the_old_image_and_nothing_half_done(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    folder, old = world.build()
    digest = world.lock.model("org/name").files[1].digest
    path = world.cache.path(digest)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    with pytest.raises(DigestMismatch, match=r"model-00001-of-00002.safetensors: got sha256:"):
        world.build(model="org/name")
    assert verify(folder, world.lock_file) == old
    assert not [path.name for path in folder.rglob(".part-*")]


def test_the_same_build_writes_nothing_twice(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    folder, digest = world.build(model="org/name")
    blobs = {path: path.stat().st_ino for path in (folder / "blobs" / "sha256").iterdir()}
    assert world.build(model="org/name") == (folder, digest)
    kept = {path for path, inode in blobs.items() if path.exists() and path.stat().st_ino == inode}
    written = set(blobs) - kept
    assert len(written) == 2, "manifest and config are written anew, layers are kept"


def test_what_the_new_image_does_not_name_is_removed(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    folder, _ = world.build(model="org/name")
    many = len(list((folder / "blobs" / "sha256").iterdir()))
    world.build()
    assert len(list((folder / "blobs" / "sha256").iterdir())) < many
    verify(folder, world.lock_file)


def test_without_a_cache_of_layers_the_image_is_the_same(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    _, digest = world.build(model="org/name")
    for note in (world.cache.root / "layers").iterdir():
        note.write_text("{broken")
    assert world.build("other", model="org/name")[1] == digest


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(BadSource, match="holds 'precious', expected a new folder or an OCI layout"):
        world.build()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match=r"out: .*file.*cannot be written"), OciLayout(tmp_path / "file" / "out").prepared():
        raise AssertionError("prepared")


def test_two_builders_of_one_folder_take_turns(tmp_path: Path, world_script: str) -> None:
    make_world(tmp_path)
    builders = [subprocess.Popen([sys.executable, "-c", world_script, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {builder.communicate(timeout=50)[0].strip().splitlines()[-1] for builder in builders}
    assert said == {str(verify(tmp_path / "out", tmp_path / "lock.json"))}
    assert [builder.returncode for builder in builders] == [0, 0, 0]


@pytest.fixture
def world_script() -> str:
    return """
import sys
from pathlib import Path
from images.cache import Cache
from images.lock import read_lock
from images.releases import read_releases
from tests.images.small_world import World
root = Path(sys.argv[1])
world = World(root, read_releases(), read_lock(root / "lock.json"), Cache(root / "cache"), root / "tree" / "handler")
print(world.build(model="org/name")[1])
"""


def test_the_layout_is_flushed_before_it_has_a_name(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from tests.images.small_world import make_world
world = make_world(Path(sys.argv[1]))
order = []
real = os.fsync
os.fsync = lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
sys.addaudithook(lambda event, arguments: order.append(("rename", str(arguments[0]))) if event == "os.rename" else None)
world.build("out")
for position, entry in enumerate(order):
    if isinstance(entry, tuple) and ".part-" in entry[1]:
        assert order[position - 1] == entry[1], (order[position - 1], entry)
print("flushed", sum(isinstance(entry, tuple) for entry in order))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 5


def test_a_world_builds(tmp_path: Path) -> None:
    world: World = make_world(tmp_path)
    for architecture in ("cpu", "sm89"):
        folder, digest = world.build(architecture, architecture, "org/name")
        assert verify(folder, world.lock_file) == digest
