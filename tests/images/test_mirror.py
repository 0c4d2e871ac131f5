"""What was mirrored builds the same image when everything upstream is gone."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ci.hosts.registry_host import container_registry
from ci.hosts.shared import Hosts
from images.lock import read_lock
from tests.images.made import command, seed_lock, succeed
from tests.twins.vendor.vendor import MODEL, miniature

pytestmark = pytest.mark.timeout(600)

NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}


def test_with_the_vendor_shut_down_the_mirror_gives_the_same_digest(hosts: Hosts, tmp_path: Path) -> None:
    mirror = f"{hosts.registry}/my/mirror"
    lock = tmp_path / "lock.json"
    seed_lock(lock)
    what = ("arch=sm86", f"model={MODEL}", f"lock={lock}")
    with container_registry(tmp_path / "registry") as upstream, miniature(replace(hosts, registry=upstream), tmp_path / "v") as vendor:
        releases = tmp_path / "releases.toml"
        releases.write_bytes(vendor.releases.read_bytes())
        tables = (*what, f"releases={releases}")
        succeed("lock", *tables, **vendor.hub.environment())
        succeed("mirror", *tables, f"to={mirror}", **vendor.hub.environment())
        before = succeed("build", *tables, f"out={tmp_path / 'before'}")[-1]
    written = read_lock(lock)
    assert [wheel.mirrors for wheel in written.wheels] == [model.mirrors for model in written.models] == [(mirror,)]
    # What an older lock names stays tagged when a newer one is mirrored, or a registry would collect it as garbage.
    tags = subprocess.check_output(["skopeo", "list-tags", "--tls-verify=false", f"docker://{mirror}"], text=True)
    [packages] = [entry for entry in written.packages if entry.engine == "fastdeploy"]
    assert f"packages-fastdeploy-{packages.python}-{packages.requirements.hex[:16]}" in json.loads(tags)["Tags"]
    # Now neither registry, index nor hub answer, and the cache is empty.
    cache = f"cache={tmp_path / 'cache'}"
    missing = command("build", *tables, cache, f"out={tmp_path / 'after'}")
    assert missing.returncode == 1
    assert "images fetch arch=sm86" in missing.stderr
    succeed("fetch", *tables, cache, **vendor.hub.environment(), **NO_INDEX)
    after = succeed("build", *tables, cache, f"out={tmp_path / 'after'}")[-1]
    assert after == before
    to = f"{hosts.registry}/mirrored/worker:sm86"
    assert succeed("push", *tables, f"out={tmp_path / 'after'}", f"to={to}")[-1] == before
    assert succeed("load", *tables, f"out={tmp_path / 'after'}", "as=mirrored:sm86", DOCKER_HOST=hosts.docker_host) == ["mirrored:sm86"]
    says = "import fastdeploy; print(fastdeploy.BUILD)"
    assert hosts.docker("run", "--rm", "--network=none", "--entrypoint=python3", "mirrored:sm86", "-c", says) == "86_89\n"


def test_without_a_mirror_what_is_gone_is_named(hosts: Hosts, tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    seed_lock(lock)
    with container_registry(tmp_path / "registry") as upstream, miniature(replace(hosts, registry=upstream), tmp_path / "v") as vendor:
        releases = tmp_path / "releases.toml"
        releases.write_bytes(vendor.releases.read_bytes())
        tables = ("arch=sm86", f"lock={lock}", f"releases={releases}")
        succeed("lock", *tables, **vendor.hub.environment())
    gone = command("fetch", *tables, f"cache={tmp_path / 'cache'}")
    assert gone.returncode == 1
    assert "fastdeploy_gpu-2.3.0-py3-none-any.whl" in gone.stderr
    assert vendor.index.rpartition("/simple")[0] in gone.stderr


def test_a_mirror_with_a_tag_is_refused(made_lock: tuple[str, ...]) -> None:
    done = command("mirror", "arch=cpu", *made_lock, "to=127.0.0.1:5000/my/mirror:latest")
    assert done.returncode == 2
    assert "expected registry/repository" in done.stderr


@pytest.fixture
def made_lock(tmp_path: Path) -> tuple[str, ...]:
    """A lock with nothing but the worker's packages."""
    seed_lock(tmp_path / "lock.json")
    return (f"lock={tmp_path / 'lock.json'}",) if (tmp_path / "lock.json").exists() else ()
