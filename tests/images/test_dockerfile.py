"""The image that docker build makes of .runpod/Dockerfile holds the same files as the one that is built without Docker."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ci.hosts.dockerd import Docker
from ci.hosts.servers import HostFailed
from ci.hosts.shared import Hosts
from images.cache import Cache
from images.worker_layers import PACKAGES
from tests.images.made import ROOT, Made, succeed
from tests.twins.vendor.index import index_of_everything
from tests.twins.vendor.vendor import MODEL, Vendor

pytestmark = pytest.mark.timeout(600)

_DOCKERS_OWN = (".dockerenv", "dev/", "proc/", "sys/", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab")
_BAKED = ("BAKED_MODELS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def tree(docker: Docker, image: str, path: Path) -> dict[str, tuple[object, ...]]:
    """Return kind, mode, owner and content of everything in an image, by path."""
    container = docker("create", image).strip().rpartition("\n")[2]
    docker("export", "--output", str(path), container)
    docker("rm", container)
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            digest = hashlib.sha256(content.read()).hexdigest() if content else ""
            if not member.name.startswith(_DOCKERS_OWN):
                found[member.name.strip("/")] = (member.type, oct(member.mode), member.uid, member.gid, member.linkname, digest)
    path.unlink()
    return found


@pytest.fixture
def context(vendor: Vendor, tmp_path: Path) -> Path:
    """What `docker build` reads, with the miniature vendor's releases."""
    folder = tmp_path / "context"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES["cpu"], "images", ".runpod"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", ".dockerignore"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "images" / "releases.toml").write_bytes(vendor.releases.read_bytes())
    return folder


def build(docker: Docker, context: Path, vendor: Vendor, index: str, **arguments: str) -> None:
    """Run `docker build` for sm86."""
    given = {"BASE": vendor.base, "ARCH": "sm86", "ARCHITECTURES": "86,89", "PYTHON": "/usr/bin/python3.11", "PIP_INDEX_URL": index}
    words = [f"--build-arg={name}={value}" for name, value in (given | arguments).items()]
    # Index and hub are on this machine's loopback.
    docker("build", "--network=host", "--tag=by-docker", "--file", str(context / ".runpod" / "Dockerfile"), *words, str(context))


@pytest.mark.parametrize("baked", [False, True], ids=["bare", "baked"])
def test_both_ways_of_building_give_the_same_files(
    baked: bool, context: Path, made: Made, vendor: Vendor, hosts: Hosts, tmp_path: Path
) -> None:
    """For sm86, where the engine is replaced too; the image for sm80 has the same layers but that one."""
    docker = hosts.docker
    model = {"MODEL": MODEL, "QUANTIZATION": "wint4", "HF_ENDPOINT": vendor.hub.url} if baked else {}
    with index_of_everything(made.lock, tmp_path) as index:
        build(docker, context, vendor, index, **model)
    lock = tmp_path / "lock.json"
    lock.write_bytes(made.lock.read_bytes())
    words = ["arch=sm86", f"lock={lock}", f"out={tmp_path / 'out'}", f"cache={Cache().root}"]
    words += [f"model={MODEL}", "quantization=wint4"] if baked else []
    command = [sys.executable, "-m", "images", "build", *words]
    subprocess.run(command, cwd=context, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, check=True, capture_output=True)
    succeed("load", *words, "as=by-us", DOCKER_HOST=hosts.docker_host)
    by_docker, by_us = tree(docker, "by-docker", tmp_path / "1.tar"), tree(docker, "by-us", tmp_path / "2.tar")
    assert sorted(set(by_docker) - set(by_us)) == []
    assert sorted(set(by_us) - set(by_docker)) == []
    assert {path: (by_docker[path], by_us[path]) for path in by_us if by_docker[path] != by_us[path]} == {}
    configs = [json.loads(docker("inspect", "--format", "{{json .Config}}", name)) for name in ("by-docker", "by-us")]
    # Docker sets what an argument leaves out to nothing.
    environments = [sorted(text for text in config["Env"] if not text.startswith(_BAKED) or not text.endswith("=")) for config in configs]
    assert environments[0] == environments[1]
    assert [config["WorkingDir"] for config in configs] == ["/worker", "/worker"]
    assert [config.get("User", "") for config in configs] == ["root", ""]
    assert [config["Entrypoint"][1:] + (config.get("Cmd") or []) for config in configs] == [["-I", "-S", "-B", "/worker/lib"]] * 2


def test_arguments_that_do_not_fit_together_stop_the_build(context: Path, made: Made, vendor: Vendor, hosts: Hosts, tmp_path: Path) -> None:
    said = r"IMAGE_ARCHITECTURES: got '80,90', expected '86,89' in an image for arch=sm86(.|\n)*give --build-arg ARCH, ARCHITECTURES"
    with index_of_everything(made.lock, tmp_path) as index, pytest.raises(HostFailed, match=said):
        build(hosts.docker, context, vendor, index, ARCHITECTURES="80,90")
