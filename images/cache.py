"""The cache: pinned inputs on this disk, in one folder of files that are named by their SHA-256.

    dist/cache/sha256/HEX       a wheel or a file of a model; it gets this name once its digest is checked
    dist/cache/layers/KEY.json  digest and size of the layer that was built from the inputs of that key, so that it is built once

A file's digest is checked again when it is read for an image, since a disk may damage it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from images.build_errors import ImageError, Missing
from images.digest import Digest

__all__ = ["CACHE", "Cache"]

CACHE = Path(__file__).resolve().parent.parent / "dist" / "cache"


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache in a folder, which need not exist."""

    root: Path = CACHE

    def path(self, digest: Digest) -> Path:
        """Return where the file of that digest is, or would be."""
        return self.root / "sha256" / digest.hex

    def has(self, digest: Digest, size: int) -> bool:
        """Return whether there is a file of that name and size."""
        path = self.path(digest)
        return path.is_file() and path.stat().st_size == size

    def find(self, digest: Digest, size: int, what: str, arguments: str) -> Path:
        """Return the file of that digest; `what` and `arguments` are for the error.

        Raises:
            Missing: when it is absent or cut short, with the command that fetches it.
        """
        path = self.path(digest)
        if self.has(digest, size):
            return path
        found = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
        raise Missing(f"{what}: got {found} at {path}, expected {size} bytes; fetch it with `python -m images fetch {arguments}`")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process at a time write into the cache.

        Raises:
            ImageError: when the disk is full or cannot be written, also by what runs in the context.
        """
        try:
            (self.root / "sha256").mkdir(parents=True, exist_ok=True)
            with (self.root / "fetch.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            reason = error.strerror or error
            raise ImageError(f"cache: {self.root}: cannot be written ({reason}); free space, or name another folder with cache=") from None

    def known_layer(self, key: Digest) -> tuple[Digest, int] | None:
        """Return digest and size of the layer that was built from the inputs of this key, or None."""
        try:
            note = json.loads(self._note(key).read_text(encoding="utf-8"))
            return Digest.parse(note["digest"]), int(note["size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember_layer(self, key: Digest, digest: Digest, size: int) -> None:
        """Note which layer was built from the inputs of this key, where the cache can be written."""
        note = self._note(key)
        temporary = note.with_suffix(".new")
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"digest": str(digest), "size": size}), encoding="utf-8")
            temporary.replace(note)
        except OSError:
            return

    def _note(self, key: Digest) -> Path:
        return self.root / "layers" / f"{key.hex}.json"
