"""SHA-256 digests as a type: the one way in which this package names bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["CHUNK", "Digest", "canonical_json", "file_digest", "read_chunks"]

CHUNK = 1 << 20
"""Bytes read at a time: larger ones are not faster, and leave the processor's cache."""

_FORM = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256, written sha256:HEX as registries do.

    >>> str(Digest.of(b""))
    'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """

    hex: str
    """64 lower-case hexadecimal digits."""

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Return the digest that `text` writes.

        Raises:
            ValueError: when it is anything but sha256: and 64 lower-case hexadecimal digits.
        """
        if not _FORM.fullmatch(text):
            raise ValueError(f"got {text!r}, expected sha256: and 64 lower-case hexadecimal digits")
        return cls(text.partition(":")[2])

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the digest of `data`."""
        return cls(hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def read_chunks(stream: BinaryIO) -> Iterator[memoryview]:
    """Yield what is left of `stream` in pieces of at most CHUNK bytes; each piece is only good until the next is asked for."""
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    readinto = getattr(stream, "readinto", None)
    while True:
        if readinto is not None:
            count = readinto(buffer) or 0
        else:
            data = stream.read(CHUNK)
            count = len(data)
            view[:count] = data
        if not count:
            return
        yield view[:count]


def file_digest(path: Path) -> tuple[Digest, int]:
    """Return the digest and the size in bytes of a file, read in pieces.

    Raises:
        OSError: when it cannot be read.
    """
    sha, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        for piece in read_chunks(file):
            sha.update(piece)
            size += len(piece)
    return Digest(sha.hexdigest()), size


def canonical_json(value: Any) -> bytes:
    """Return the one way in which this package writes JSON into an image: ASCII, keys sorted, no blanks (rule R8)."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
