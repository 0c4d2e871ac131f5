"""Receive one large file of the hub onto a disk: resumed where it broke off, checked against its SHA-256, then named.

Rules 1 to 3 of `hub` are kept here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from checkpoint.progress import Progress
from checkpoint.unavailable import ModelUnavailable

__all__ = ["Receiver", "is_whole", "received"]

log = logging.getLogger(__name__)

_BLOCK = 16 << 20
_PART = 32_000_000_000
"""Bytes asked for at once: content networks have refused more than 50 GB (huggingface/xet-core issue 238), and so does the library."""

_TRIES = 3
"""Broken connections in a row, none with a new byte, after which a file is given up; the library asks six times in each."""


def is_whole(blobs: Path, sha256: str, size: int) -> bool:
    """Say whether the file has its final name, which it gets only when whole, and its size."""
    blob = blobs / sha256
    return blob.is_file() and blob.stat().st_size == size


def received(blobs: Path, sha256: str, size: int) -> int:
    """Return how many bytes of a file are on the disk, whole or not."""
    found = 0
    for path in (blobs / sha256, _partial(blobs, sha256)):
        with contextlib.suppress(FileNotFoundError):  # also one that another worker names just now
            found = max(found, path.stat().st_size)
    return min(found, size)


def _partial(blobs: Path, sha256: str) -> Path:
    return blobs / f"{sha256}.partial"


class Receiver:
    """Receives files into the `blobs` of one repository's folder, from any thread; `stopped` ends them all within a block.

    `headers` carry the credentials; the library sends them to the hub's own hosts only.
    """

    def __init__(self, folder: Path, headers: dict[str, str], progress: Progress, *, part: int = _PART) -> None:
        self._part = part
        self._blobs, self._headers, self._progress = folder / "blobs", headers, progress
        self._locks = folder.parent / ".locks" / folder.name
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._locks.mkdir(parents=True, exist_ok=True)
        self.stopped = threading.Event()

    def receive(self, url: str, path: str, sha256: str, size: int) -> None:
        """Receive the file at `url`, which logs call `path`.

        Raises:
            httpx2.HTTPError, OSError: when the hub or the disk fails; what has come by then stays on the disk.
            ModelUnavailable: when the bytes are wrong twice.
            InterruptedError: once `stopped` is set.
        """
        with self._lock(sha256):
            own = self._blobs / f"{sha256}.{uuid.uuid4().hex[:8]}.partial"
            for partial in (_partial(self._blobs, sha256), own):
                if is_whole(self._blobs, sha256, size):
                    self._progress.add(size, received=False)
                    return
                try:
                    if self._fill(partial, url, path, sha256, size):
                        return
                    log.warning("%s: the bytes received are not those that the hub names", path)
                except FileNotFoundError:
                    if partial == own:
                        raise
                    log.warning("%s: another worker, whose locks do not reach here, has the same file in hand", path)
        raise ModelUnavailable(f"{path} arrives damaged: its SHA-256 is not the one that the hub names; try again, or unset HF_ENDPOINT")

    @contextlib.contextmanager
    def _lock(self, sha256: str) -> Iterator[None]:
        """Hold the library's lock for a blob; another worker may hold it for as long as it downloads."""
        from filelock import Timeout
        from huggingface_hub.utils._fixes import WeakFileLock

        with contextlib.ExitStack() as stack:
            while True:
                self._go_on()
                with contextlib.suppress(Timeout):
                    stack.enter_context(WeakFileLock(self._locks / f"{sha256}.lock", timeout=1))
                    break
            yield

    def _fill(self, partial: Path, url: str, path: str, sha256: str, size: int) -> bool:
        """Bring `partial` to its full length; give it its final name if its bytes are right, remove it if not, and say which.

        Raises:
            FileNotFoundError: when another worker has `partial` in hand, or has named it.
        """
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as opened:
            hashed = _Hashed(opened, self, shared=partial if partial == _partial(self._blobs, sha256) else None)
            right = False
            try:
                self._complete(hashed, url, path, size)
                if hashed.digest.hexdigest() == sha256:
                    partial.replace(self._blobs / sha256)
                    right = True
                else:
                    partial.unlink()
            finally:
                if not right:
                    self._progress.add(-hashed.length, received=False)
            return right

    def _complete(self, hashed: _Hashed, url: str, path: str, size: int) -> None:
        failures = 0
        while hashed.length < size:
            before = hashed.length
            broken = self._ask(url, hashed, size)
            if broken is not None:
                failures = failures + 1 if hashed.length == before else 0
                if failures == _TRIES:
                    raise broken
                log.warning("%s: %s; asking for the rest from byte %d", path, str(broken) or type(broken).__name__, hashed.length)

    def _ask(self, url: str, hashed: _Hashed, size: int) -> Exception | None:
        """Ask for the next part of a file, mostly all there is, and return what broke the connection off, if anything did."""
        import httpx2
        from huggingface_hub.file_download import http_get

        end = min(hashed.length + self._part, size)
        headers = self._headers if end == size else self._headers | {"Range": f"bytes=0-{end - 1}"}  # the library moves the 0
        try:
            http_get(url, cast(BinaryIO, hashed), resume_size=hashed.length, headers=headers, expected_size=end)
        except httpx2.TransportError as error:
            return error
        except OSError:
            # The library misses its part where a server that knows no ranges has sent the whole file.
            if hashed.length != size:
                raise
        return None

    def count(self, size: int, *, received: bool = True) -> None:
        """Pass bytes on to the progress, or end the download if it was stopped."""
        self._go_on()
        self._progress.add(size, received=received)

    def _go_on(self) -> None:
        if self.stopped.is_set():
            raise InterruptedError(errno.EINTR, "the download was stopped")


class _Hashed:
    """A file that is written at its end, of which http_get sees what it uses, and which knows the digest of all it holds.

    It is written by one: where others know its path, `shared`, and it no longer leads to this file, or there are more bytes than were
    read and written here, another worker is at it whose locks do not reach here, and FileNotFoundError says so.
    """

    def __init__(self, file: BinaryIO, receiver: Receiver, *, shared: Path | None) -> None:
        self._file, self._receiver, self._shared = file, receiver, shared
        self.digest = hashlib.sha256()
        self.length = 0
        while block := file.read(_BLOCK):
            self._count(block, received=False)

    def _count(self, block: bytes, *, received: bool) -> None:
        self.digest.update(block)
        self.length += len(block)
        self._receiver.count(len(block), received=received)

    def _check_alone(self) -> None:
        if self._shared:
            there = self._shared.stat()
            # Fewer bytes may be what a network file system remembers of an earlier look.
            if there.st_size > self.length or not os.path.samestat(there, os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, "another worker writes this file", str(self._shared))

    def write(self, block: bytes) -> int:
        """Append, and hand it to the system at once: what is received must survive the end of this process."""
        self._check_alone()
        self._file.write(block)
        self._file.flush()
        self._count(block, received=True)
        return len(block)

    def tell(self) -> int:
        """Return the length."""
        return self.length

    def seek(self, offset: int) -> int:
        """Accept only the start: the library goes back there when a server ignores the range asked for."""
        if offset:
            raise ValueError(f"seek: got {offset}, expected 0")
        return offset

    def truncate(self) -> int:
        """Forget everything."""
        self._check_alone()
        self._file.seek(0)
        self._file.truncate()
        self._receiver.count(-self.length, received=False)
        self.digest, self.length = hashlib.sha256(), 0
        return 0
