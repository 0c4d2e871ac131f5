"""Receive one large file onto a disk: continued where an earlier try stopped, checked by its SHA-256, named only when it is whole.

`fill` completes a partial file and returns the digest of all it holds; the image builder uses it for every input. `Receiver` does the rest
for a cache of the Hugging Face hub, which several workers may share: rules 1 to 3 of `hub`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import io
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from checkpoint.http_client import Body, Remote, ask, byte_range
from checkpoint.progress import Progress
from checkpoint.unavailable import ModelUnavailable

__all__ = ["Receiver", "fill", "is_whole", "received"]

log = logging.getLogger(__name__)

_BLOCK = 1 << 20

Count = Callable[[int, bool], object]
"""Takes a number of bytes, negative for bytes that are dropped, and whether they came from the network."""


def fill(path: Path, remote: Remote, count: Count, *, shared: bool = False) -> str:
    """Append to the file at `path` what it lacks of the remote body, and return the SHA-256 of all it holds then, in hexadecimal.

    Where other processes may write to a `shared` path without a lock, this one stops as soon as it finds another.

    Raises:
        HttpError, OSError: when the server or the disk fails; what was received stays in the file.
        FileNotFoundError: when another process writes a shared file, or has renamed it.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
        growing = _Growing(file, count, shared=path if shared else None)
        try:
            growing.read()
            with Body(remote, growing.length) as body:
                for block in _blocks(body):
                    growing.append(block)
        except BaseException:
            count(-growing.length, False)
            raise
    return growing.sha256.hexdigest()


class _Growing:
    """A file that one process appends to, the SHA-256 of what it holds, and its length."""

    def __init__(self, file: io.RawIOBase, count: Count, *, shared: Path | None) -> None:
        self._file, self._count, self._shared = file, count, shared
        self.sha256 = hashlib.sha256()
        self.length = 0

    def read(self) -> None:
        """Read what the file holds already."""
        for block in _blocks(self._file):
            self._add(block, received=False)

    def append(self, block: memoryview) -> None:
        """Write a block."""
        if self._shared:
            there = self._shared.stat()
            # A network file system may still remember a smaller size, but a larger one is another process's work.
            if there.st_size > self.length or not os.path.samestat(there, os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, "another worker writes this file", str(self._shared))
        written = 0
        while written < len(block):  # a disk that is filling up takes a part, and refuses the next write
            written += self._file.write(block[written:]) or 0
        self._add(block, received=True)

    def _add(self, block: memoryview, *, received: bool) -> None:
        self.sha256.update(block)
        self.length += len(block)
        self._count(len(block), received)


def _blocks(file: io.RawIOBase) -> Iterator[memoryview]:
    """Yield the rest of a file; a block is valid until the next one is asked for."""
    view = memoryview(bytearray(_BLOCK))
    while count := file.readinto(view):
        yield view[:count]


def is_whole(blobs: Path, sha256: str, size: int) -> bool:
    """Return whether the file has its final name, which it gets only when whole, and its size."""
    blob = blobs / sha256
    return blob.is_file() and blob.stat().st_size == size


def received(blobs: Path, sha256: str, size: int) -> int:
    """Return how many bytes of a file are on the disk, whole or not."""
    found = 0
    for path in (blobs / sha256, _partial(blobs, sha256)):
        with contextlib.suppress(FileNotFoundError):  # another worker may rename it at this moment
            found = max(found, path.stat().st_size)
    return min(found, size)


def _partial(blobs: Path, sha256: str) -> Path:
    return blobs / f"{sha256}.partial"


class Receiver:
    """Receives files into the `blobs` of one repository's folder, from any thread; `stopped` ends all of them within a block.

    `secret` is sent to the hub, and not to the servers that it redirects to.
    """

    def __init__(self, folder: Path, secret: dict[str, str], progress: Progress, *, part: int | None = None) -> None:
        self._parts = {} if part is None else {"part": part}
        self._blobs, self._secret, self._progress = folder / "blobs", secret, progress
        self._locks = folder.parent / ".locks" / folder.name
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._locks.mkdir(parents=True, exist_ok=True)
        self.stopped = threading.Event()

    def receive(self, url: str, path: str, sha256: str, size: int) -> None:
        """Receive the file at `url`, which logs call `path`.

        Raises:
            HttpError, OSError: when the hub or the disk fails; what was received stays on the disk.
            ModelUnavailable: when the bytes are wrong twice.
            InterruptedError: once `stopped` is set.
        """
        remote = Remote(name=path, size=size, open=partial(self._open, url), wait=self._wait, **self._parts)
        with self._lock(sha256):
            shared, own = _partial(self._blobs, sha256), self._blobs / f"{sha256}.{uuid.uuid4().hex[:8]}.partial"
            for file in (shared, own):
                if is_whole(self._blobs, sha256, size):
                    self._progress.add(size, received=False)
                    return
                try:
                    got = fill(file, remote, self._count, shared=file == shared)
                    if self._name(file, got, sha256, size):
                        return
                    log.warning("%s: the bytes received are not those that the hub names", path)
                except FileNotFoundError:
                    if file == own:
                        raise
                    log.warning("%s: another worker, whose locks do not reach here, writes the same file", path)
        raise ModelUnavailable(f"{path} arrives damaged: its SHA-256 is not the one that the hub names; try again, or unset HF_ENDPOINT")

    def _name(self, file: Path, got: str, sha256: str, size: int) -> bool:
        """Give a full file its final name if its bytes are right, remove it otherwise, and return which of the two."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._progress.add, -size, received=False)
            if got == sha256:
                file.replace(self._blobs / sha256)
                undo.pop_all()
            else:
                file.unlink()
        return got == sha256

    @contextlib.contextmanager
    def _lock(self, sha256: str) -> Iterator[None]:
        """Hold the library's lock for a blob; another worker may hold it for as long as it downloads."""
        from filelock import Timeout
        from huggingface_hub.utils._fixes import WeakFileLock

        with contextlib.ExitStack() as stack:
            while True:
                self._check_stopped()
                with contextlib.suppress(Timeout):
                    stack.enter_context(WeakFileLock(self._locks / f"{sha256}.lock", timeout=1))
                    break
            yield

    def _open(self, url: str, start: int, end: int | None) -> http.client.HTTPResponse:
        return ask(url, headers=byte_range(start, end), secret=self._secret, wait=self._wait)

    def _count(self, size: int, received: bool) -> None:
        if size > 0:
            self._check_stopped()
        self._progress.add(size, received=received)

    def _wait(self, seconds: float) -> None:
        self.stopped.wait(seconds)
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self.stopped.is_set():
            raise InterruptedError(errno.EINTR, "the download was stopped")
