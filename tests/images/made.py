"""The images of the miniature vendor, built and pushed with the commands that people use, once for all processes of a run."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from ci.hosts.shared import Hosts
from tests import ROOT
from tests.twins.vendor.vendor import MODEL, Vendor

__all__ = ["ARCHITECTURES", "ROOT", "BuiltImage", "Made", "command", "make_all", "seed_lock", "succeed"]

ARCHITECTURES = ("sm80", "sm86", "sm89", "sm90", "cpu")
_PACKAGES = ROOT / "dist" / "ci-packages.lock.json"
"""The worker's own packages as an earlier run locked them: they come from outside, and only a change of requirements changes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """One image: the digest that the build printed, where it was pushed to, and the digest that the push printed."""

    digest: str
    reference: str
    pushed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The images, `baked` ones with the model in them, and the table and the lock that they were built from."""

    releases: Path
    lock: Path
    images: dict[str, BuiltImage]

    def image(self, architecture: str, *, baked: bool) -> BuiltImage:
        """Return one."""
        return self.images[_name(architecture, baked=baked)]


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m images`."""
    program = [sys.executable, "-m", "images", *words]
    return subprocess.run(program, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=300)


def succeed(*words: str, **variables: str) -> list[str]:
    """Run a command that must succeed, and return the lines that it printed."""
    done = command(*words, **variables)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.splitlines()


def seed_lock(path: Path) -> None:
    """Begin a lock with the worker's packages of an earlier run, if there was one."""
    if _PACKAGES.exists():
        path.write_bytes(_PACKAGES.read_bytes())


def make_all(hosts: Hosts, vendor: Vendor) -> Made:
    """Lock, build and push every image, or find them made."""
    folder = Path(hosts.folder)
    note = folder / "made.json"
    with (folder / "made.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            images = _make(hosts, vendor, folder)
            note.write_text(json.dumps({name: asdict(image) for name, image in images.items()}), encoding="utf-8")
    images = {name: BuiltImage(**image) for name, image in json.loads(note.read_text(encoding="utf-8")).items()}
    return Made(releases=folder / "releases.toml", lock=folder / "lock.json", images=images)


def _make(hosts: Hosts, vendor: Vendor, folder: Path) -> dict[str, BuiltImage]:
    lock, releases = folder / "lock.json", folder / "releases.toml"
    releases.write_bytes(vendor.releases.read_bytes())
    seed_lock(lock)
    tables = (f"releases={releases}", f"lock={lock}")
    for words in (["arch=sm80"], ["arch=sm86"], ["arch=cpu", f"model={MODEL}"]):  # the others are made of the same inputs
        succeed("lock", *words, *tables, **vendor.hub.environment())
    _keep_packages(lock)
    images = {}
    for architecture in ARCHITECTURES:
        # Images of one kind share a folder, one after the other: layers that the next one has too are kept.
        out = folder / ("cpu" if architecture == "cpu" else "gpu")
        for baked in (False, True):
            name = _name(architecture, baked=baked)
            words = [f"arch={architecture}", f"out={out}", *tables, *([f"model={MODEL}"] if baked else [])]
            reference = f"{hosts.registry}/me/worker:{name}"
            done = succeed("fetch,build,push", *words, f"to={reference}", **vendor.hub.environment())
            images[name] = BuiltImage(digest=done[-2], reference=reference, pushed=done[-1])
    return images


def _keep_packages(lock: Path) -> None:
    told = json.loads(lock.read_text(encoding="utf-8"))
    half = _PACKAGES.with_name(f"{_PACKAGES.name}.half")
    half.write_text(json.dumps(told | {"bases": [], "models": [], "wheels": []}), encoding="utf-8")
    half.replace(_PACKAGES)


def _name(architecture: str, *, baked: bool) -> str:
    return f"{architecture}-baked" if baked else architecture
