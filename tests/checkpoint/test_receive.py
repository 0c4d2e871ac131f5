"""One large file against a server that this file scripts: in parts, and beside another worker whose locks do not reach here."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE

from checkpoint.http_client import StatusError
from checkpoint.progress import Progress
from checkpoint.receive import Receiver

CONTENT = random.Random(7).randbytes(100_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)


class Server(ThreadingHTTPServer):
    """Serves CONTENT, `most` bytes of it at once, as content networks have a limit too; `before` is called with the number of a request.

    What `before` returns is sent as the whole file instead, with no regard to the range.
    """

    most = SIZE

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str] = []
        self.before: Callable[[int], bytes | None] = lambda _: None
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        instead = self.server.before(len(self.server.ranges))
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        first, last = (int(found[1]), int(found[2] or SIZE - 1)) if found and instead is None else (0, SIZE - 1)
        body = (instead or CONTENT)[first : last + 1]
        if len(body) > self.server.most:
            self.send_error(400)
            return
        self.send_response(206 if found and instead is None else 200)
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{SIZE}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def receiver(cache: Path, *, part: int | None = None) -> Receiver:
    parts = {} if part is None else {"part": part}
    return Receiver(cache / "models--org--name", {"Accept-Encoding": "identity"}, Progress(SIZE), **parts)


def test_a_file_larger_than_a_server_sends_at_once_comes_in_parts(server: Server, tmp_path: Path) -> None:
    server.most = 40_000
    receiver(tmp_path, part=40_000).receive(server.url, "a", DIGEST, SIZE)
    assert server.ranges == ["bytes=0-39999", "bytes=40000-79999", "bytes=80000-"]
    assert (tmp_path / "models--org--name" / "blobs" / DIGEST).read_bytes() == CONTENT


def test_a_part_goes_on_where_the_last_process_was(server: Server, tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{DIGEST}.partial").write_bytes(CONTENT[:50_000])
    receiver(tmp_path, part=40_000).receive(server.url, "a", DIGEST, SIZE)
    assert server.ranges == ["bytes=50000-89999", "bytes=90000-"]
    assert (blobs / DIGEST).read_bytes() == CONTENT


@pytest.mark.parametrize("number", [1, 2])
def test_a_server_that_sends_all_where_a_part_was_asked_for_is_taken_at_its_word(server: Server, tmp_path: Path, number: int) -> None:
    server.before = lambda now: CONTENT if now == number else None
    receiver(tmp_path, part=40_000).receive(server.url, "a", DIGEST, SIZE)
    assert len(server.ranges) == number
    assert (tmp_path / "models--org--name" / "blobs" / DIGEST).read_bytes() == CONTENT


def test_no_file_is_too_large_to_be_asked_for(server: Server, tmp_path: Path) -> None:
    """A content network refuses a request for more than its limit, and huggingface_hub sends none for more than its own."""
    server.most = 0
    with pytest.raises(StatusError):
        receiver(tmp_path).receive(server.url, "a", DIGEST, MAX_HTTP_DOWNLOAD_SIZE + 1)
    (asked,) = server.ranges
    assert 0 < int(asked.removeprefix("bytes=0-")) < MAX_HTTP_DOWNLOAD_SIZE


class Volume:
    """Two workers on one volume, each with locks of its own; `held` requests wait, by their number, until they are let go."""

    def __init__(self, server: Server, root: Path, *held: int, instead: bytes | None) -> None:
        self.server, self.blobs = server, root / "volume" / "blobs"
        self.blobs.mkdir(parents=True)
        self.partial = self.blobs / f"{DIGEST}.partial"
        self.workers = []
        for name in ("first", "second"):
            (root / name).mkdir()
            (root / name / "models--org--name").symlink_to(root / "volume")
            self.workers.append(receiver(root / name, part=40_000))
        self.reached, self.let_go = ({number: threading.Event() for number in held} for _ in range(2))
        self.instead = instead
        """What the first request is answered with."""
        server.before = self._before

    def _before(self, number: int) -> bytes | None:
        if number in self.reached:
            self.reached[number].set()
            assert self.let_go[number].wait(30)
        return self.instead if number == 1 else None

    def receive(self, worker: int) -> None:
        self.workers[worker].receive(self.server.url, "a", DIGEST, SIZE)

    def all_is_well(self) -> bool:
        return [(path.name, path.read_bytes()) for path in self.blobs.iterdir()] == [(DIGEST, CONTENT)]


ANSWERS = pytest.mark.parametrize("instead", [None, CONTENT, bytes(SIZE)], ids=["the part", "all of it", "wrong bytes"])


@ANSWERS
@pytest.mark.parametrize("kept", [b"", CONTENT[:1000]], ids=["from the start", "after a break"])
def test_a_worker_whose_file_another_has_named_takes_it_and_never_touches_it(
    server: Server, tmp_path: Path, kept: bytes, instead: bytes | None
) -> None:
    """Rule 1: a file has its final name only when all its bytes are there."""
    volume = Volume(server, tmp_path, 1, instead=instead)
    volume.partial.write_bytes(kept)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(volume.receive, 0)
        assert volume.reached[1].wait(30)
        volume.receive(1)
        named = (volume.blobs / DIGEST).stat()
        volume.let_go[1].set()
        first.result(30)
    assert volume.all_is_well()
    assert (volume.blobs / DIGEST).stat().st_mtime_ns == named.st_mtime_ns


@ANSWERS
def test_a_worker_that_finds_another_ahead_of_it_in_the_same_file_leaves_it_alone(
    server: Server, tmp_path: Path, instead: bytes | None
) -> None:
    """Rule 3: where a network file system ignores locks, rule 1 still holds."""
    volume = Volume(server, tmp_path, 1, 3, instead=instead)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(volume.receive, 0)
        assert volume.reached[1].wait(30)
        second = pool.submit(volume.receive, 1)
        assert volume.reached[3].wait(30)
        volume.let_go[1].set()
        first.result(30)
        assert volume.partial.read_bytes() == CONTENT[:40_000]
        volume.let_go[3].set()
        second.result(30)
    assert volume.all_is_well()


def test_a_folder_that_goes_away_in_between_is_told_as_what_it_is(server: Server, tmp_path: Path) -> None:
    worker = receiver(tmp_path)
    server.before = lambda _: shutil.rmtree(tmp_path / "models--org--name")
    with pytest.raises(FileNotFoundError, match=DIGEST):
        worker.receive(server.url, "a", DIGEST, SIZE)
