"""Docker, a registry and the base for all processes of one run of the tests: the first comer starts them, the last user's end ends them.

A keeper process owns them. Each user holds a shared lock on a file, which the kernel lets go of even when the user is killed;
the keeper waits for the exclusive lock, and once it has that, everyone has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ci.hosts.base import debian_layer, push_layout, write_layout
from ci.hosts.dockerd import Docker, docker_engine
from ci.hosts.registry_host import container_registry
from ci.hosts.servers import HostFailed

__all__ = ["Hosts", "hosts", "shared_hosts"]

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 600
"""Seconds for the first comer: the base may have to be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Where they are: DOCKER_HOST, the registry's address, the base's reference in it, and a folder that ends with them."""

    docker_host: str
    registry: str
    base: str
    folder: str

    @property
    def docker(self) -> Docker:
        """The engine."""
        return Docker(host=self.docker_host)


@contextlib.contextmanager
def hosts(folder: Path) -> Iterator[Hosts]:
    """Run all of them with their data in `folder`."""
    layer = debian_layer()
    with docker_engine(folder / "docker") as docker, container_registry(folder / "registry") as registry:
        base = f"{registry}/ci/base:{layer.digest[:12]}"
        layout = folder / "base"
        write_layout(layout, [layer], {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]})
        push_layout(layout, base)
        shutil.rmtree(layout)
        yield Hosts(docker_host=docker.host, registry=registry, base=base, folder=str(folder))


@contextlib.contextmanager
def shared_hosts(folder: Path) -> Iterator[Hosts]:
    """Use those of this run, whose name is `folder`; the first comer starts them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users.lock").open("w") as users:
        with (folder / "start.lock").open("w") as start:
            fcntl.flock(start, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)
            found = _running(folder) or _start(folder)
        yield found


def _running(folder: Path) -> Hosts | None:
    """Return the hosts that the keeper has announced, and not yet taken back."""
    try:
        return Hosts(**json.loads((folder / "hosts.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _start(folder: Path) -> Hosts:
    with (folder / "keeper.log").open("ab") as log:
        command = [sys.executable, "-m", "ci.hosts", "keep", str(folder)]
        keeper = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + _PATIENCE
    while (found := _running(folder)) is None:
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise HostFailed(f"the keeper of docker and the registry did not start:\n{(folder / 'keeper.log').read_text()[-4000:]}")
        time.sleep(0.05)
    keeper.returncode = 0  # It outlives its starter on purpose, and is reaped by whoever inherits it.
    return found


def keep(folder: Path) -> None:
    """Be the keeper: run the hosts, announce them, and end them when nobody uses them."""
    announcement = folder / "hosts.json"
    with tempfile.TemporaryDirectory(prefix="hosts-", dir=folder) as data, hosts(Path(data)) as running:
        half = Path(data) / "hosts.json"
        half.write_text(json.dumps(asdict(running)), encoding="utf-8")
        half.rename(announcement)
        with (folder / "users.lock").open("w") as users:
            while True:
                fcntl.flock(users, fcntl.LOCK_EX)
                # A new user holds the start lock while it looks, so that it never takes hosts which are about to end.
                with (folder / "start.lock").open("w") as start:
                    fcntl.flock(users, fcntl.LOCK_UN)
                    fcntl.flock(start, fcntl.LOCK_EX)
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        announcement.unlink()
                        break
