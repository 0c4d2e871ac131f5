"""What a command needs is asked for before its work: skopeo, and a Docker that answers; and what skopeo's and pip's errors mean."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from images.build_errors import ImageError, Silent, Unreachable
from images.index import _error
from images.programs import require_docker, require_skopeo
from images.skopeo import copy


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A program that listens at a Unix socket and gives one answer."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_a_docker_that_answers_is_there(tmp_path: Path) -> None:
    with answering(tmp_path / "d.sock", b"HTTP/1.0 200 OK\r\n\r\nOK"):
        require_docker({"DOCKER_HOST": f"unix://{tmp_path}/d.sock"})


def test_another_program_at_the_socket_is_no_docker(tmp_path: Path) -> None:
    with answering(tmp_path / "d.sock", b"220 mail.example ESMTP\r\n"), pytest.raises(Unreachable, match=r"it answers '220 mail\.example"):
        require_docker({"DOCKER_HOST": f"unix://{tmp_path}/d.sock"})


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:9", "unix:///nonexistent", "tcp://127.0.0.1:port", "nonsense"])
def test_a_docker_that_is_not_there_is_named_with_the_variable(host: str) -> None:
    with pytest.raises(Unreachable, match=rf"Docker does not answer at {host} \(.+\); start it, or set DOCKER_HOST to another one"):
        require_docker({"DOCKER_HOST": host})


def test_a_docker_on_another_host_is_asked_for_a_connection_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        require_docker({"DOCKER_HOST": f"tcp://127.0.0.1:{listening.getsockname()[1]}"})


def test_without_skopeo_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for act in (require_skopeo, lambda: copy("oci:a", "oci:b")):
        with pytest.raises(Unreachable, match=r"skopeo: not found on this machine; install it \(Debian: apt-get install skopeo\)"):
            act()


BROKEN = "WARNING: Retrying (Retry(total=0)) after connection broken by '{}': /simple/h11/\nERROR: No matching distribution found for h11"


@pytest.mark.parametrize(
    ("output", "kind", "expected"),
    [
        (
            BROKEN.format("NewConnectionError('<...>: Failed to establish a new connection: [Errno -2] Name or service not known')"),
            Silent,
            "pip download: the package index does not answer (Name or service not known); check the network, the proxy and PIP_INDEX_URL",
        ),
        (
            BROKEN.format("ProxyError('Cannot connect to proxy.', NewConnectionError('<...>: [Errno 111] Connection refused'))"),
            Silent,
            "pip download: the package index does not answer (Connection refused); check the network, the proxy and PIP_INDEX_URL",
        ),
        (
            BROKEN.format("ReadTimeoutError('Read timed out.')"),
            Silent,
            "pip download: the package index does not answer (ReadTimeoutError('Read timed out.')); check the network, the proxy and",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            ImageError,
            "pip download: no space left on the disk of the cache; free space, or name another folder with cache=",
        ),
        (
            "noise\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n    Expected sha256 0\n",
            Unreachable,
            "pip download: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n      Expected sha256 0",
        ),
        ("", Unreachable, "pip download: exit code 2"),
    ],
)
def test_what_pip_says_becomes_what_it_means(output: str, kind: type[ImageError], expected: str) -> None:
    """pip says that there is no matching version where the network is gone."""
    error = _error("pip download", output, 2)
    assert type(error) is kind
    assert str(error).startswith(expected)
