"""A Docker Engine of its own: data, socket and bridge belong to it alone, and the machine's firewall is left as it is.

Containers are reached through ports published on the host; they reach nothing beyond the host, which is what proofs want.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ci.hosts.servers import HostFailed, running

__all__ = ["Docker", "docker_engine"]

_BRIDGES = 32
_PATIENCE = 300
"""Seconds for one command: a build of an image takes the longest."""

_SOCKET_ROOT = Path("/run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Docker:
    """A running engine; `host` is the value of DOCKER_HOST."""

    host: str

    def environment(self) -> dict[str, str]:
        """Return the environment that sends docker's client and its libraries here, with the classic builder."""
        return os.environ | {"DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0"}

    def __call__(self, *arguments: str) -> str:
        """Run one docker command and return what it printed, both outputs; they are in the exception otherwise."""
        done = subprocess.run(
            ["docker", *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PATIENCE,
            check=False,
            errors="replace",
        )
        if done.returncode:
            raise HostFailed(f"docker {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout[-6000:]}")
        return done.stdout


@contextlib.contextmanager
def docker_engine(folder: Path) -> Iterator[Docker]:
    """Run an engine with everything it writes in `folder`, which need not exist and is removed with all images afterwards."""
    if os.geteuid() != 0:
        raise HostFailed("dockerd: needs root, because it mounts file systems and makes network devices")
    folder.mkdir(parents=True, exist_ok=True)
    # A socket's path may have 107 bytes at most, and folders of tests are longer.
    run = Path(tempfile.mkdtemp(prefix="dockerd-", dir=_SOCKET_ROOT))
    docker = Docker(host=f"unix://{run / 'docker.sock'}")
    try:
        with _bridge() as bridge:
            command = [
                *("dockerd", "--host", docker.host, "--bridge", bridge),
                # The kernel refuses to raise limits in a container without CAP_SYS_RESOURCE.
                *("--default-ulimit", "nofile=1024:1024"),
                *("--data-root", str(folder / "data"), "--exec-root", str(run / "exec"), "--pidfile", str(run / "pid")),
                *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
            ]
            with running(command, folder / "dockerd.log", lambda: _answers(docker)):
                try:
                    yield docker
                finally:
                    _remove_containers(docker)
    finally:
        _unmount(run)
        shutil.rmtree(run)
        shutil.rmtree(folder)


def _answers(docker: Docker) -> bool:
    return subprocess.run(["docker", "version"], env=docker.environment(), capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    """Let go of what the engine leaves mounted: the network of the host, once a container had it."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", mount], check=True)


def _remove_containers(docker: Docker) -> None:
    """End what still runs: a container outlives its engine otherwise."""
    containers = docker("ps", "--all", "--quiet").split()
    if containers:
        docker("rm", "--force", "--volumes", *containers)


@contextlib.contextmanager
def _bridge() -> Iterator[str]:
    """Make a network bridge with a subnet of its own.

    A lock per bridge tells a bridge in use from one that a killed process left; the latter is taken over.
    """
    for number in range(_BRIDGES):
        name = f"wfd{number}"
        with (_SOCKET_ROOT / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
            subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
            try:
                subprocess.run(["ip", "address", "add", f"10.213.{number}.1/24", "dev", name], check=True)
                subprocess.run(["ip", "link", "set", name, "up"], check=True)
                yield name
            finally:
                subprocess.run(["ip", "link", "delete", name], check=True)
            return
    raise HostFailed(f"dockerd: all {_BRIDGES} network bridges (wfd0 to wfd{_BRIDGES - 1}) are in use; end other test runs")
