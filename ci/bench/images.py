"""How fast images are made and pushed, against Docker in the same run: `ci/just bench images`.

Baking: shards of 1 GiB each, `gib` of them, become layers of an image whose other layers are there already. Beside it, in changing order:
`sha256sum` of the same files; `dd` that copies them and waits for the disk, which is what this disk can do; Python's hashlib; and
`docker build` with COPY. The files are in the page cache, as after a fetch. Our build has flushed every byte to the disk when it ends;
sha256sum writes nothing, and Docker flushes nothing. Ratios are medians of the rounds' own ratios.

Edit: one line is added to a file of the worker, then the image is built and pushed: by what `ci/just push-image` runs; by the same with
`watch=yes`, where the clock runs from the edit until the tag has moved; and by `docker build` (the classic builder, which is all that the
engine has of its own) and `docker push`. That is done with two Dockerfiles. One is .runpod/Dockerfile, which gives the same image file for
file, as a test says; its wheels come from an index on this machine, and it is left out where a model is baked in, for which it would ask a
hub. The other is made for this race: it finds its packages unpacked, so that all it ever does is COPY, and the worker's files come last.
All caches are warm. Sent is what the registry holds more than before, manifest and config included. Watching is held against every
Dockerfile, one command against the last row of its table: the Dockerfile that gives the same image.

Needs root for a Docker Engine of its own, and about eight times `gib` on the disk under dist/. The exit code is 1 when a target was missed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ci.hosts.base import PYTHON
from ci.hosts.shared import Hosts, hosts
from images.arguments import Command, Key, whole
from images.digest import Digest, file_digest
from images.lock import Lock, read_lock, write_lock
from images.lock_entries import LockedModel, ModelFile
from images.registry import ImageReference, RegistryRepository
from images.worker_layers import PACKAGES
from tests.images.made import ROOT, seed_lock, succeed
from tests.twins.vendor.index import index_of_everything
from tests.twins.vendor.vendor import Vendor, miniature

GIB = 1 << 30
EDITED = Path("handler") / "job.py"
OURS, WATCHING = "ours, one command", "ours, watching"
SHIPPED, COPYING = "docker, .runpod/Dockerfile", "docker, COPY alone"
TARGETS = {"seconds": 1.0, "sent": 100e3, "faster": 20.0, "sha256sum": 0.7, "memory": 1.1}
"""At most so many seconds and bytes for an edit; at least so much faster than Docker; at least so much of sha256sum's speed; at most so
much more memory for all shards than for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """Where the images are made: a copy of the builder and the worker, whose files may be edited, and tables of its own."""

    hosts: Hosts
    vendor: Vendor
    folder: Path

    @property
    def tree(self) -> Path:
        """The copy."""
        return self.folder / "tree"

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.folder / "lock.json"

    @property
    def shards(self) -> Path:
        """The cache's files by their digests."""
        return self.folder / "cache" / "sha256"

    def images(self, command: str, out: str, *words: str) -> list[str]:
        """Return a command of the image builder."""
        tables = [f"releases={self.vendor.releases}", f"lock={self.lock}", f"cache={self.folder / 'cache'}"]
        return [sys.executable, "-m", "images", command, "arch=sm80", f"out={self.folder / out}", *tables, *words]

    def environment(self) -> dict[str, str]:
        """Return what commands run with."""
        return {name: value for name, value in self.hosts.docker.environment().items() if name != "PYTHONDONTWRITEBYTECODE"}

    def spend(self, *command: str) -> float:
        """Run a command from the copy and return its seconds; it must succeed."""
        started = time.monotonic()
        done = subprocess.run(command, cwd=self.tree, env=self.environment(), capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        if done.returncode:
            sys.exit(f"bench images: {' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return seconds

    def stored(self) -> int:
        """Return how many bytes of blobs the registry holds, manifests included."""
        return sum(path.stat().st_size for path in Path(self.hosts.folder, "registry/blobs/docker/registry/v2/blobs").rglob("data"))


def prepare(hosts: Hosts, vendor: Vendor, folder: Path, gib: int) -> Shop:
    """Copy the tree, lock the image for SM80 on the miniature vendor's base, make the shards, and build all of it once without them."""
    shop = Shop(hosts=hosts, vendor=vendor, folder=folder)
    for name in (*PACKAGES["cpu"], "images"):
        shutil.copytree(ROOT / name, shop.tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", shop.tree)
    seed_lock(shop.lock)
    for command in ("lock", "fetch"):
        succeed(command, "arch=sm80", f"releases={vendor.releases}", f"lock={shop.lock}")
    shop.shards.mkdir(parents=True)
    lock = read_lock(shop.lock)
    for wheel in (wheel for packages in lock.packages if packages.engine == "fastdeploy" for wheel in packages.wheels):
        (shop.shards / wheel.digest.hex).hardlink_to(ROOT / "dist" / "cache" / "sha256" / wheel.digest.hex)
    write_lock(shop.lock, lock.having(*make_models(shop.shards, gib)))
    shop.spend(*shop.images("build", "bare"))
    return shop


def make_models(cache: Path, gib: int) -> list[LockedModel]:
    """Put random shards into the cache; bench/N is a model of the first N of them."""
    config = b"{}\n"
    (cache / Digest.of(config).hex).write_bytes(config)
    files = [ModelFile(path="config.json", size=len(config), digest=Digest.of(config))]
    models = []
    for number in range(1, gib + 1):
        half = cache / "half"
        with half.open("wb") as file:
            for _ in range(GIB >> 20):
                file.write(os.urandom(1 << 20))
        digest, size = file_digest(half)
        half.rename(cache / digest.hex)
        files.append(ModelFile(path=f"model-{number:05}.safetensors", size=size, digest=digest))
        models.append(LockedModel(repository=f"bench/{number}", revision="main", commit="0" * 40, files=tuple(files)))
    return models


def dockerfile(shop: Shop, model: LockedModel | None) -> Path:
    """Make the folder of a Dockerfile that puts the same files into the same places, and return it."""
    context = shop.folder / f"context-{len(model.files) if model else 0}"
    context.mkdir()
    blobs = shop.folder / "bare" / "blobs" / "sha256"
    [entry] = json.loads((shop.folder / "bare" / "index.json").read_bytes())["manifests"]
    layers = json.loads((blobs / Digest.parse(entry["digest"]).hex).read_bytes())["layers"]
    for path in (blobs / Digest.parse(layer["digest"]).hex for layer in layers):
        if path.exists():  # the base's are in the registry
            with tarfile.open(path) as tar:
                tar.extractall(context / "packages", filter="data")
    (context / "packages" / "worker" / "lib" / "handler").rename(context / "handler")
    (context / "models").mkdir()
    for file in model.files if model else ():
        (context / "models" / file.path).hardlink_to(shop.shards / file.digest.hex)
    text = [
        f"FROM {shop.vendor.base}",
        "COPY packages/ /",
        "LABEL round=0",
        "COPY models/ /models/",
        "COPY handler/ /worker/lib/handler/",
        "WORKDIR /worker",
        f'ENTRYPOINT ["/usr/bin/python{PYTHON}", "-I", "-S", "-B", "/worker/lib"]',
    ]
    (context / "Dockerfile").write_text("\n".join(text) + "\n", encoding="utf-8")
    return context


class Watcher:
    """`push-image` with watch=yes, on a copy of the tree of its own; leaving it is Ctrl-C."""

    def __init__(self, shop: Shop, out: str, words: Sequence[str], image: str) -> None:
        self.tree, self._image = shop.folder / f"{out}-tree", image
        shutil.copytree(shop.tree, self.tree, ignore=shutil.ignore_patterns("__pycache__"))
        command = shop.images("fetch,build,push", out, *words, f"to={image}", "watch=yes")
        self._process = subprocess.Popen(
            command, cwd=self.tree, env=shop.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def __enter__(self) -> Watcher:
        self.wait_pushed()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=60)

    def wait_pushed(self) -> str:
        """Return the digest that it says to have pushed next."""
        assert self._process.stdout is not None
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith("waiting for the next edit"):
                return next(line.strip() for line in reversed(lines) if line.startswith("sha256:"))
            lines.append(line)
        sys.exit(f"bench images: watching ended:\n{''.join(lines)[-4000:]}")

    def bring(self, edit: Callable[[], None]) -> float:
        """Edit and return the seconds until it was pushed."""
        os.sync()
        started = time.monotonic()
        edit()
        pushed = self.wait_pushed()
        seconds = time.monotonic() - started
        there = ImageReference.parse(self._image)
        if str(RegistryRepository(there).manifest(there.tag).digest) != pushed:
            sys.exit(f"bench images: {there} is not {pushed}")
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to bring an edit into a registry: the tree whose worker is edited, and a call that edits and returns the seconds of it."""

    tree: Path
    bring: Callable[[Callable[[], None]], float]

    def seconds_and_bytes(self, shop: Shop, line: str) -> tuple[float, float]:
        """Edit the worker, bring the image there, and return what it took and what it sent."""

        def edit() -> None:
            with (self.tree / EDITED).open("a", encoding="utf-8") as file:
                file.write(line)

        before = shop.stored()
        return self.bring(edit), float(shop.stored() - before)


@contextmanager
def ways(shop: Shop, model: LockedModel | None, index: str) -> Iterator[dict[str, Way]]:
    """Give them by name, ours first; each has a tag of its own, which it moves."""
    tuned = dockerfile(shop, model)
    name, words = ("baked", [f"model={model.repository}"]) if model else ("bare", [])

    def by_commands(tree: Path, *commands: Sequence[str]) -> Way:
        def bring(edit: Callable[[], None]) -> float:
            edit()
            os.sync()  # each way waits for its own writes only, not for those of the way before it
            return sum(shop.spend(*command) for command in commands)

        return Way(tree=tree, bring=bring)

    def by_docker(context: Path, image: str, *options: str) -> Way:
        return by_commands(
            context, ["docker", "build", "--quiet", "--tag", image, *options, str(context)], ["docker", "push", "--quiet", image]
        )

    image = f"{shop.hosts.registry}/bench/{name}"
    with Watcher(shop, f"{name}-watched", words, f"{image}:watched") as watcher:
        found = {
            OURS: by_commands(shop.tree, shop.images("fetch,build,push", f"{name}-out", *words, f"to={image}:ours")),
            WATCHING: Way(tree=watcher.tree, bring=watcher.bring),
            COPYING: by_docker(tuned, f"{image}:copying"),
        }
        if model is None:
            context = shipped(shop)
            arguments = {"BASE": shop.vendor.base, "PYTHON": f"/usr/bin/python{PYTHON}", "PIP_INDEX_URL": index}
            given = [f"--build-arg={argument}={value}" for argument, value in arguments.items()]
            file = f"--file={context / '.runpod' / 'Dockerfile'}"
            found[SHIPPED] = by_docker(context, f"{image}:shipped", "--network=host", file, *given)
        yield found


def shipped(shop: Shop) -> Path:
    """Make the folder that .runpod/Dockerfile is built in, with the miniature vendor's table, and return it."""
    context = shop.folder / "shipped"
    for name in (*PACKAGES["cpu"], "images", ".runpod"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".dockerignore"):
        shutil.copyfile(ROOT / name, context / name)
    (context / "images" / "releases.toml").write_bytes(shop.vendor.releases.read_bytes())
    return context


def edit(shop: Shop, model: LockedModel | None, edits: int, index: str) -> dict[str, tuple[float, float]]:
    """Return each way's medians of seconds and of bytes sent; the ways take turns, and their first round is not counted."""
    rows: dict[str, list[tuple[float, float]]] = {}
    with ways(shop, model, index) as known:
        for number in range(edits + 1):
            for name, way in known.items():
                rows.setdefault(name, []).append(way.seconds_and_bytes(shop, f"# edit {number} of {name}\n"))
    return {
        name: (statistics.median(row[0] for row in found[1:]), statistics.median(row[1] for row in found[1:]))
        for name, found in rows.items()
    }


def bake(shop: Shop, model: LockedModel, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every way in every round."""
    paths = [str(shop.shards / file.digest.hex) for file in model.files]
    context, number = dockerfile(shop, model), 0
    hashing = "import hashlib, sys\nfor name in sys.argv[1:]: hashlib.file_digest(open(name, 'rb'), 'sha256')"

    def ours() -> float:
        return _built(shop, model, lambda command: shop.spend(*command))

    def docker() -> float:
        nonlocal number
        number += 1
        text = (context / "Dockerfile").read_text(encoding="utf-8")
        (context / "Dockerfile").write_text(text.replace("round=0", f"round={number}"), encoding="utf-8")
        try:
            return shop.spend("docker", "build", "--quiet", "--tag", "bench:baked", str(context))
        finally:
            (context / "Dockerfile").write_text(text, encoding="utf-8")
            shop.hosts.docker("rmi", "--force", "bench:baked")

    def copied() -> float:
        return sum(shop.spend("dd", f"if={path}", f"of={shop.folder / 'copy'}", "bs=1M", "conv=fsync") for path in paths)

    ways: dict[str, Callable[[], float]] = {
        "ours": ours,
        "sha256sum": lambda: shop.spend("sha256sum", *paths),
        "hashlib": lambda: shop.spend(sys.executable, "-c", hashing, *paths),
        "dd, flushed": copied,
        "docker build": docker,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in list(ways.items())[:: -1 if turn % 2 else 1]:
            os.sync()
            found[name].append(way())
    (shop.folder / "copy").unlink()
    shutil.rmtree(context)
    return found


def memory(shop: Shop, model: LockedModel) -> int:
    """Return the most bytes that were resident while the model was baked."""

    def watched(command: Sequence[str]) -> float:
        most = 0
        with subprocess.Popen(command, cwd=shop.tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                words = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").partition("VmHWM:")[2].split()
                most = max(most, int(words[0]) * 1024 if words else 0)  # a process that has ended says nothing of it
                time.sleep(0.01)
        return most

    return int(_built(shop, model, watched))


def _built(shop: Shop, model: LockedModel, measure: Callable[[Sequence[str]], float]) -> float:
    """Measure the command that bakes the model into an image whose other layers are there."""
    out = shop.folder / "baked"
    shutil.copytree(shop.folder / "bare", out, copy_function=os.link)
    try:
        return measure(shop.images("build", out.name, f"model={model.repository}"))
    finally:
        shutil.rmtree(out)


def show_bake(model: LockedModel, found: dict[str, list[float]], resident: Sequence[int]) -> Iterable[tuple[str, float, float]]:
    """Print the table, and yield what has a target: its name, what was found, and the target."""
    size = sum(file.size for file in model.files)
    print(f"\n{size / GIB:.0f} GiB baked     seconds   GB/s  of sha256sum's")
    for name, seconds in found.items():
        share = statistics.median(theirs / own for own, theirs in zip(seconds, found["sha256sum"], strict=True))
        print(f"{name:14} {statistics.median(seconds):9.2f} {size / statistics.median(seconds) / 1e9:6.2f} {share:14.2f}x")
        if name == "ours":
            yield "share of sha256sum's speed", -share, -TARGETS["sha256sum"]
    print(f"resident at most: {resident[0] / 1e6:.1f} MB for 1 GiB, {resident[1] / 1e6:.1f} MB for {size / GIB:.0f} GiB")
    yield "memory for all shards by that for one", resident[1] / resident[0], TARGETS["memory"]


def show_edit(what: str, found: Mapping[str, tuple[float, float]]) -> Iterable[tuple[str, float, float]]:
    """Print the table, and yield what has a target: its name, what was found, and the target."""
    ours = {name: found[name][0] for name in (OURS, WATCHING)}
    print(f"\n{what:28} seconds   KB sent  times {OURS}  times {WATCHING}")
    for name, (seconds, size) in found.items():
        print(f"{name:28} {seconds:7.2f} {size / 1000:9.1f} {seconds / ours[OURS]:22.1f}x {seconds / ours[WATCHING]:19.1f}x")
    for own, seconds in ours.items():
        yield f"{what}: {own}: seconds", seconds, TARGETS["seconds"]
        yield f"{what}: {own}: bytes sent", found[own][1], TARGETS["sent"]
        theirs = [name for name in found if name not in ours]
        for name in theirs if own == WATCHING else theirs[-1:]:
            yield f"{what}: {own}: times faster than {name}", -found[name][0] / seconds, -TARGETS["faster"]


def measure(gib: int, rounds: int, edits: int) -> bool:
    """Measure, print the tables, and return whether every target was met."""
    (ROOT / "dist").mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-images-", dir=ROOT / "dist")))
        running = stack.enter_context(hosts(folder / "hosts"))
        vendor = stack.enter_context(miniature(running, folder / "vendor"))
        shop = prepare(running, vendor, folder, gib)
        index = stack.enter_context(index_of_everything(shop.lock, folder / "index"))
        lock: Lock = read_lock(shop.lock)
        one, every = lock.model("bench/1"), lock.model(f"bench/{gib}")
        bounds = list(show_bake(every, bake(shop, every, rounds), [memory(shop, one), memory(shop, every)]))
        bounds += show_edit("edit, worker alone", edit(shop, None, edits, index))
        bounds += show_edit(f"edit, {gib} GiB model baked in", edit(shop, every, edits, index))
    missed = [(name, value, bound) for name, value, bound in bounds if value > bound]
    for name, value, bound in missed:
        print(f"MISSED: {name}: {abs(value):,.2f}, target {abs(bound):,g}")
    return not missed


def run(values: Mapping[str, str]) -> int:
    """Measure."""
    return 0 if measure(int(values["gib"]), int(values["rounds"]), int(values["edits"])) else 1


COMMAND = Command(
    name="bench images",
    help="Measure the baking of a model, and an edit's way to a registry, beside Docker in the same run; needs root.",
    keys=(
        Key("gib", "Shards of 1 GiB that are baked.", default="2", check=whole(1, 1000)),
        Key("rounds", "How often a model is baked.", default="3", check=whole(1, 1000)),
        Key("edits", "How often the worker is edited.", default="5", check=whole(1, 1000)),
    ),
    run=run,
)
