"""SHA-256 digests as a type, and the one way in which the builder reads and writes JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CHUNK", "Count", "Digest", "canonical_json", "file_digest", "parse_json"]

CHUNK = 1 << 20
"""Bytes read at a time: larger pieces are not faster, and leave the processor's cache."""

Count = Callable[[int], object]
"""Takes a number of bytes that a step is done with."""

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


def file_digest(path: Path, count: Count | None = None) -> tuple[Digest, int]:
    """Return the digest and the size in bytes of a file, read in pieces whose sizes `count` gets.

    Raises:
        OSError: when it cannot be read.
    """
    sha, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            sha.update(piece)
            size += len(piece)
            if count is not None:
                count(len(piece))
    return Digest(sha.hexdigest()), size


def canonical_json(value: Any) -> bytes:
    """Return JSON as the builder writes it into an image: ASCII, keys sorted, no blanks (rule R8)."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: when it is not JSON, or is nested more deeply than Python can read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
