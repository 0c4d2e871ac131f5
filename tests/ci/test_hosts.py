"""The hosts of these proofs come alone and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import ROOT

pytestmark = pytest.mark.timeout(300)

_USE = """
import sys
from pathlib import Path
from ci.hosts.shared import shared_hosts
with shared_hosts(Path(sys.argv[1])) as hosts:
    print(hosts.docker_host, hosts.registry, hosts.folder, flush=True)
    hosts.docker("run", "--detach", hosts.base, "sleep", "600")
    hosts.docker("run", "--rm", "--network=host", hosts.base, "true")
    print("used", flush=True)
    sys.stdin.read()
"""


def test_hosts_are_shared_and_end_with_their_last_user_even_if_it_was_killed(tmp_path: Path) -> None:
    folder = str(tmp_path / "hosts")
    command = [sys.executable, "-c", _USE, folder]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:  # type: ignore[call-overload]  # one table
        told = [user.stdout.readline() for user in (first, second)]
        assert [user.stdout.readline() for user in (first, second)] == ["used\n", "used\n"]
        assert told[0] == told[1]
        started = processes_of(folder)
        bridges = {word for process in started for word in process.cmdline() if word.startswith("wfd")}
        assert len(bridges) == 1
        assert {"dockerd", "docker-registry"} <= {process.name() for process in started}
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert all(process.is_running() for process in started)
        second.send_signal(signal.SIGKILL)
        second.wait()
        assert psutil.wait_procs(started, timeout=90)[1] == []
    docker_host, _, data = told[0].split()
    assert not Path(docker_host.removeprefix("unix://")).parent.exists()
    assert not Path(data).exists()
    assert {link["ifname"] for link in json.loads(subprocess.check_output(["ip", "-json", "link"]))} & bridges == set()
    mounts = Path("/proc/mounts").read_text()
    assert data not in mounts
    assert docker_host.rpartition("/")[0].removeprefix("unix://") not in mounts


def processes_of(folder: str) -> list[psutil.Process]:
    """Return the keeper of the hosts in a folder, and all that it started."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] and process.info["cmdline"][-2:] == ["keep", folder] and process.pid != os.getpid():
                return [process, *process.children(recursive=True)]
    raise AssertionError(f"nobody keeps hosts in {folder}")
