"""A running container: what it says, and programs run inside it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from ci.hosts.dockerd import Docker
from ci.hosts.servers import HostFailed

__all__ = ["Container"]

_PATIENCE = 60
"""Seconds for a line of a log: a start takes 7 on a busy machine."""

_ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
try:
    print(urllib.request.urlopen(request, timeout=30).read().decode())
except urllib.error.HTTPError as error:
    sys.exit(f"{error}: {error.read().decode()}")
"""

_WAIT = """
import sys, time, urllib.request
for _ in range(int(sys.argv[2]) * 10):
    try:
        if urllib.request.urlopen(sys.argv[1], timeout=30).status == 200:
            sys.exit()
    except OSError:
        pass
    time.sleep(0.1)
sys.exit("not ready yet")
"""


class Container:
    """A container of an image, removed at the end of the block."""

    def __init__(self, docker: Docker, image: str, *options: str, command: tuple[str, ...] = ()) -> None:
        self._docker, self._arguments = docker, (*options, image, *command)
        self.name = ""

    def __enter__(self) -> Container:
        self.name = self._docker("run", "--detach", *self._arguments).strip().rpartition("\n")[2]
        return self

    def __exit__(self, *_: object) -> None:
        self._docker("rm", "--force", "--volumes", self.name)

    def wait_line(self, words: str) -> str:
        """Return the first line of its log that holds the words, now or later; its end without one is a failure."""
        command = ["timeout", str(_PATIENCE), "docker", "logs", "--follow", self.name]
        said = []
        with subprocess.Popen(
            command, env=self._docker.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout
            try:
                for line in process.stdout:
                    said.append(line)
                    if words in line:
                        return line
            finally:
                process.kill()
        raise AssertionError(f"the container ended, or {_PATIENCE} s went by, without saying {words!r}:\n{''.join(said)}")

    def run(self, *command: str) -> str:
        """Run a program in it and return what it printed."""
        return self._docker("exec", self.name, *command)

    def python(self, code: str, *arguments: str) -> str:
        """Run code as the engine's Python sees the image."""
        return self.run("python3", "-B", "-c", code, *arguments).strip()

    def wait_ready(self, *, port: int = 8000) -> None:
        """Return once its health check says 200; its log is in the error otherwise."""
        try:
            self.python(_WAIT, f"http://127.0.0.1:{port}/ping", str(_PATIENCE))
        except HostFailed as error:
            raise AssertionError(f"{error}\n{self._docker('logs', self.name)}") from None

    def ask(self, path: str, body: dict[str, Any], *, port: int = 8000) -> dict[str, Any]:
        """Send a request to its own port from inside, which needs no network."""
        answer: dict[str, Any] = json.loads(self.python(_ASK, f"http://127.0.0.1:{port}{path}", json.dumps(body)))
        return answer
