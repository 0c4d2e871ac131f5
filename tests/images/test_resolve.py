"""What `lock` writes is what registry, index and hub have, and nothing that was not seen."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from pathlib import Path

import pytest

from checkpoint import http_client
from ci.hosts.base import BaseLayer, debian_layer, push_layout, write_layout
from ci.hosts.shared import Hosts
from images.build_errors import BadSource, ImageError, UnknownChoice
from images.cache import Cache
from images.index import locked_requirements
from images.lock import Lock, read_lock, requirements
from images.registry import ImageReference, RegistryRepository
from images.releases import Target, read_releases
from images.resolve import resolve_base, resolve_model
from tests import DEMO
from tests.images.made import Made, command, seed_lock, succeed
from tests.twins.model_hub import ModelHub
from tests.twins.vendor.builds import SITE, tar_of
from tests.twins.vendor.vendor import MODEL, RELEASE, Vendor, vendor_tree

pytestmark = pytest.mark.timeout(600)


def test_the_lock_holds_what_the_vendor_has(made: Made, vendor: Vendor) -> None:
    lock = read_lock(made.lock)
    [model], [wheel] = lock.models, lock.wheels
    files = {file.path: file.digest.hex for file in model.files}
    on_hub = vendor.hub.repositories[MODEL].commits[model.commit]
    assert files == {path: hashlib.sha256(stored.path.read_bytes()).hexdigest() for path, stored in on_hub.items()}
    assert (wheel.release, wheel.architectures, wheel.file.name) == (
        RELEASE,
        ("sm86", "sm89"),
        f"fastdeploy_gpu-{RELEASE}-py3-none-any.whl",
    )
    base = next(base for base in lock.bases if base.reference == vendor.base)
    [replaced] = base.replaced
    assert {f"/{SITE}/fastdeploy", f"/{SITE}/fastdeploy_gpu-{RELEASE}.dist-info", "/usr/local/bin/fastdeploy"} == set(replaced.paths)


def test_a_second_lock_reads_no_base_again_and_changes_nothing(made: Made, vendor: Vendor, tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    lock.write_bytes(made.lock.read_bytes())
    words = ("arch=sm86", f"lock={lock}", f"releases={vendor.releases}")
    # The index of this process has an address of its own, which is all that may differ.
    done = command("lock", *words)
    assert done.returncode == 0, done.stderr
    assert f"{vendor.base}: unchanged" in done.stderr
    assert "reading layer" not in done.stderr
    assert read_lock(lock).bases == read_lock(made.lock).bases
    first = lock.read_bytes()
    succeed("lock", *words)
    assert lock.read_bytes() == first


def test_an_unlocked_input_stops_the_build_with_the_command_that_pins_it(vendor: Vendor, tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    lock.write_text(Lock().text())
    done = command("build", "arch=sm89", f"lock={lock}", f"releases={vendor.releases}", f"out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert f"pin with `ci/just lock arch=sm89 releases={vendor.releases} lock={lock}`" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_release_that_the_index_lacks_is_an_error_with_pips_own_words(vendor: Vendor, tmp_path: Path) -> None:
    releases = tmp_path / "releases.toml"
    # The base is still that of 2.3.0, which is found out first.
    releases.write_text(vendor.releases.read_text().replace('"2.3.0"', '"2.9.0"'))
    seed_lock(tmp_path / "lock.json")
    done = command("lock", "arch=sm86", f"lock={tmp_path / 'lock.json'}", f"releases={releases}")
    assert done.returncode == 1
    assert "holds fastdeploy-gpu 2.3.0, expected 2.9.0" in done.stderr


def test_a_model_that_the_hub_lacks_is_an_error(vendor: Vendor, tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    seed_lock(lock)
    before = lock.read_bytes() if lock.exists() else b""
    done = command("lock", "arch=sm80", "model=no/such", f"lock={lock}", f"releases={vendor.releases}", **vendor.hub.environment())
    assert done.returncode == 1
    assert "no/such" in done.stderr
    assert (lock.read_bytes() if lock.exists() else b"") == before


def test_a_model_that_the_lock_cannot_name_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    """A hub's tags may hold more signs than the lock's."""
    with ModelHub() as hub:
        commit = hub.add("org/name", DEMO)
        hub.repositories["org/name"].revisions["v1.0+cu"] = commit
        with pytest.raises(UnknownChoice, match=r"model=org/name revision=v1\.0\+cu: revision: got 'v1\.0\+cu', expected a branch"):
            resolve_model("org/name", "v1.0+cu", Cache(tmp_path), hub.environment(), lambda _: None)


def target_for(vendor: Vendor, reference: str, tmp_path: Path) -> Target:
    """Return the target of sm86 with another base."""
    path = tmp_path / "releases.toml"
    path.write_text(vendor.releases.read_text().replace(vendor.base, reference))
    return read_releases(path).target("sm86")


def push_base(reference: str, folder: Path, *trees: dict[str, bytes]) -> None:
    """Push a base with a layer for each tree above Debian's."""
    folder.mkdir()
    layers = [BaseLayer.compress(tar_of(folder / f"{n}.tar", tree), folder / f"{n}.gz") for n, tree in enumerate(trees)]
    write_layout(folder / "layout", [debian_layer(), *layers], {"Env": []})
    push_layout(folder / "layout", reference)


@pytest.mark.parametrize(
    "above",
    [
        {f"{SITE}/.wh.fastdeploy_gpu-{RELEASE}.dist-info": b""},
        {f"{SITE}/.wh..wh..opq": b""},
        {"usr/local/lib/.wh.python3.11": b""},
        {f"{SITE}/fastdeploy_gpu-{RELEASE}.dist-info/.wh.RECORD": b""},
    ],
    ids=["its folder", "all beside it", "a folder above", "the record itself"],
)
def test_an_engine_that_a_layer_above_removed_is_not_there(above: dict[str, bytes], vendor: Vendor, hosts: Hosts, tmp_path: Path) -> None:
    reference = f"{hosts.registry}/test/removed:{hashlib.sha256(repr(above).encode()).hexdigest()[:8]}"
    push_base(reference, tmp_path / "base", vendor_tree(), above)
    with pytest.raises(BadSource, match=f"no FastDeploy in /{SITE}"):
        resolve_base(target_for(vendor, reference, tmp_path), Lock())


def test_an_engine_that_a_layer_above_put_back_is_there(vendor: Vendor, hosts: Hosts, tmp_path: Path) -> None:
    reference = f"{hosts.registry}/test/back:latest"
    push_base(reference, tmp_path / "base", vendor_tree(), {f"{SITE}/.wh..wh..opq": b"", **vendor_tree()})
    assert resolve_base(target_for(vendor, reference, tmp_path), Lock()).replaced


def test_a_base_for_several_platforms_is_pinned_for_linux_amd64(hosts: Hosts) -> None:
    repository = RegistryRepository(ImageReference.parse(hosts.base))
    one = repository.manifest(repository.reference.tag)
    entries = [
        {"mediaType": one.media_type, "digest": str(one.digest), "size": len(one.data), "platform": {"os": "linux", "architecture": name}}
        for name in ("arm64", "amd64")
    ]
    kind = "application/vnd.oci.image.index.v1+json"
    for name, chosen in (("many", entries), ("none", entries[:1])):
        body = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": chosen}).encode()
        request = urllib.request.Request(f"http://{hosts.registry}/v2/ci/base/manifests/{name}", body, {"Content-Type": kind}, method="PUT")
        urllib.request.urlopen(request).close()  # noqa: S310  # loopback
    assert repository.manifest("many") == one
    with pytest.raises(BadSource, match="linux/arm64, expected one for linux/amd64"):
        repository.manifest("none")


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("python:3.11", "docker.io/library/python:3.11"),
        ("me/image", "docker.io/me/image"),
        ("localhost/a:b", "localhost/a:b"),
        ("127.0.0.1:5000/a/b/c:tag", "127.0.0.1:5000/a/b/c:tag"),
        (f"ghcr.io/a/b@sha256:{'0' * 64}", f"ghcr.io/a/b@sha256:{'0' * 64}"),
    ],
)
def test_names_of_images_are_read_as_docker_reads_them(text: str, whole: str) -> None:
    assert str(ImageReference.parse(text)) == whole
    assert ImageReference.parse(whole) == ImageReference.parse(text)


@pytest.mark.parametrize("text", ["", "UPPER/case", "a/b:", "a b", "a/b@sha256:12", "https://ghcr.io/a/b"])
def test_what_is_no_name_of_an_image_is_refused(text: str) -> None:
    with pytest.raises(UnknownChoice, match="expected"):
        ImageReference.parse(text)


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("architecture", ["sm80", "cpu"])
def test_each_python_gets_one_version_of_each_package(architecture: str, python: str) -> None:
    text = requirements(read_releases().target(architecture)).read_text()
    chosen = list(locked_requirements(text, python))
    names = [line.partition("==")[0] for line in chosen]
    assert len(set(names)) == len(names)
    assert {"runpod", "aiohttp", "huggingface-hub"} <= set(names)
    assert ("numpy" in names) == (architecture == "cpu")
    assert ("exceptiongroup" in names) == (python == "3.10")
    assert all("--hash=sha256:" in line and ";" not in line for line in chosen)


def test_a_registry_that_nobody_runs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "PAUSES", (0.0, 0.0, 0.0))
    with pytest.raises(ImageError, match=r"127\.0\.0\.1:9"):
        RegistryRepository(ImageReference.parse("127.0.0.1:9/a/b:c")).manifest("c")
