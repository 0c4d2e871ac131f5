"""Every long step tells bytes, rate and time left."""

from __future__ import annotations

import random
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoint import progress
from ci.hosts.shared import Hosts
from images import index
from images.build import build_image
from images.cache import Cache
from images.digest import Digest
from images.download import Input, download_input, on_hub
from images.index import download_wheels
from images.layout import OciLayout
from images.lock import Lock
from images.push import copy_base
from images.registry import ImageReference
from images.releases import read_releases
from images.resolve import resolve_base
from tests.images.small import base_of
from tests.images.small_world import make_world
from tests.twins.model_hub import Fault, ModelHub
from tests.twins.vendor.builds import wheel
from tests.twins.vendor.index import WheelIndex
from tests.twins.vendor.vendor import Vendor

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell at once what is told every few seconds."""
    monkeypatch.setattr(progress, "INTERVAL", 0.001)


def shown(lines: list[str], label: str) -> list[str]:
    """The lines about a step, in their form."""
    form = rf"{label}: [\d.]+ [kMG]?B( of [\d.]+ [kMG]?B \(\d+%\))?, [\d.]+ [kMG]?B/s(, (.* left|waiting))?"
    return [line for line in lines if re.fullmatch(form, line)]


def test_a_download(tmp_path: Path) -> None:
    content, lines = random.Random(1).randbytes(1 << 20), list[str]()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "big.safetensors").write_bytes(content)
    with ModelHub() as hub:
        commit = hub.add("org/name", tmp_path / "model")
        hub.faults["big.safetensors"] = Fault(bytes_per_second=4 << 20)
        location = on_hub("org/name", commit, "big.safetensors", hub.environment())
        download_input(Input(name="x", size=len(content), digest=Digest.of(content), locations=(location,)), Cache(tmp_path), lines.append)
    assert shown(lines, r"big\.safetensors")


def test_pips_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "simple" / "thing").mkdir(parents=True)
    path = wheel(tmp_path / "simple" / "thing", "thing", "1.0", {"thing.bin": random.Random(1).randbytes(1 << 20)})
    folder, lines = tmp_path / "wheels", list[str]()
    folder.mkdir()
    with WheelIndex(tmp_path / "simple") as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        requirement = f"thing==1.0 --hash=sha256:{Digest.of(path.read_bytes()).hex}"
        download_wheels([requirement], folder, "3.11", path.stat().st_size, lines.append)
    assert shown(lines, "wheels")
    assert [found.name for found in folder.iterdir()] == [path.name]


def test_reading_a_base_and_copying_it(vendor: Vendor, hosts: Hosts) -> None:
    lines: list[str] = []
    resolve_base(read_releases(vendor.releases).target("sm80"), Lock(), lines.append)
    assert shown(lines, "reading")
    base = base_of(hosts)
    there = ImageReference.parse(f"{hosts.registry}/test/progress")
    copy_base(ImageReference.parse(base.reference).at(base.manifest.digest), there, tell=lines.append)
    assert shown(lines, "copying")


def test_hashing_and_writing(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    big = wheel(tmp_path, "big", "1.0", {"big.bin": random.Random(1).randbytes(20 << 20)})
    packages = next(entry for entry in world.lock.packages if entry.engine == "cpu")
    file = world.file(big.name, big.read_bytes())
    world.having(replace(packages, wheels=(file,)))
    lines: list[str] = []
    build_image(world.plan(), OciLayout(tmp_path / "out"), world.cache, lines.append)
    assert shown(lines, r"checking the inputs of packages of the worker \(1 wheels\)")
    assert shown(lines, r"writing packages of the worker \(1 wheels\)")


def test_wheels_are_measured_while_pip_removes_their_folders(tmp_path: Path) -> None:
    """Rule: a step that goes well is not ended by whoever tells how far it is."""
    (tmp_path / "kept.whl").write_bytes(b"12345")
    over = threading.Event()

    def remove_and_make() -> None:
        while not over.is_set():
            folder = tmp_path / "a" / "b" / "c"
            folder.mkdir(parents=True)
            (folder / "gone.whl").touch()
            shutil.rmtree(tmp_path / "a")

    pip = threading.Thread(target=remove_and_make)
    pip.start()
    try:
        assert {index._size_of_wheels(tmp_path) for _ in range(2000)} == {5}
    finally:
        over.set()
        pip.join()
