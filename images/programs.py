"""The programs that a command needs, checked before its work begins: skopeo, and a Docker that answers."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from images.build_errors import Unreachable

__all__ = ["require_docker", "require_skopeo"]

_SOCKET = "/var/run/docker.sock"
_TIMEOUT = 10
"""Seconds for Docker's answer."""


def require_skopeo() -> None:
    """Check that skopeo is installed.

    Raises:
        Unreachable: when it is not.
    """
    if shutil.which("skopeo") is None:
        raise Unreachable("skopeo: not found on this machine; install it (Debian: apt-get install skopeo)")


def require_docker(environment: Mapping[str, str] = os.environ) -> None:
    """Check that the Docker that DOCKER_HOST names, or else the usual one, answers.

    Raises:
        Unreachable: when it does not.
    """
    host = environment.get("DOCKER_HOST") or f"unix://{_SOCKET}"
    parts = urlsplit(host)
    try:
        if parts.scheme == "unix":
            reason = _ping(parts.path)
        else:
            # Beyond a connection, TLS and ssh are skopeo's work.
            socket.create_connection((parts.hostname or "", parts.port or 2375), _TIMEOUT).close()
            reason = ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise Unreachable(f"Docker does not answer at {host} ({reason}); start it, or set DOCKER_HOST to another one")


def _ping(path: str) -> str:
    """Return what is wrong with the answer of the Docker at a Unix socket, empty for a good one."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT)
        connection.connect(path)
        connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
        answer = connection.recv(100).partition(b"\r\n")[0]
    return "" if b" 200 " in answer else f"it answers {answer.decode(errors='replace')!r}"
