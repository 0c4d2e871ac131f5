"""An image on disk: an OCI layout that holds our blobs alone, and always one whole image or none.

   out/oci-layout, out/index.json      the format's version, and the digest of the image
   out/blobs/sha256/HEX                manifest, config and our layers; the base's layers stay in their registry

1. A blob is written under a temporary name, hashed on the way and flushed to the disk; then it gets the name of its digest.
2. index.json names the image and is written last, in the same way. A layout without it holds no image; a layout whose builder was killed
   holds the image that it held before, or none.
3. Blobs that are there already are kept, so an interrupted build continues where it stopped. Blobs that the new image does not name are
   removed at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from images.build_errors import BadSource, ImageError
from images.digest import Digest, canonical_json
from images.image import MANIFEST_TYPE, NewLayer, OciImage

__all__ = ["BlobWriter", "OciLayout"]

_TEMPORARY = ".part-"


class BlobWriter:
    """Takes the bytes of one blob, and knows their digest and size."""

    def __init__(self, file: BinaryIO, path: Path, layout: Path) -> None:
        self._file, self._path, self._layout, self._sha = file, path, layout, hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write a piece.

        Raises:
            ImageError: when the disk is full or broken.
        """
        self._sha.update(data)
        with _disk(self._layout):
            written = self._file.write(data)
            while written < len(data):  # a disk that is filling up takes a part, and refuses the next write
                written += self._file.write(memoryview(data)[written:])
        self.size += len(data)

    @property
    def digest(self) -> Digest:
        """Return the digest of what was written."""
        return Digest(self._sha.hexdigest())

    def finish(self, path: Path) -> None:
        """Flush what was written to the disk, then give it its name."""
        with _disk(self._layout):
            os.fsync(self._file.fileno())
            self._path.replace(path)


@dataclass(frozen=True, slots=True)
class OciLayout:
    """The layout in a folder, which need not exist."""

    root: Path

    def path(self, digest: Digest) -> Path:
        """Return where the blob of that digest is, or would be."""
        return self.root / "blobs" / "sha256" / digest.hex

    def holds(self, digest: Digest, size: int) -> bool:
        """Return whether the blob is there; a blob has its name only when it is whole."""
        path = self.path(digest)
        return path.is_file() and path.stat().st_size == size

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Make the folders, remove what a killed builder left, and keep other builders out until the context ends.

        Raises:
            BadSource: when the folder holds something else than a layout.
            ImageError: when it cannot be written.
        """
        with _disk(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel releases it when a builder is killed
            self._clear()
            yield
        finally:
            os.close(handle)

    def _clear(self) -> None:
        others = [path.name for path in self.root.iterdir() if not path.name.startswith(_TEMPORARY)]
        if others and not {*others} & {"oci-layout", "blobs"}:
            raise BadSource(f"out: {self.root} holds {min(others)!r}, expected a new folder or an OCI layout")
        blobs = self.path(Digest.of(b"")).parent
        with _disk(self.root):
            blobs.mkdir(parents=True, exist_ok=True)
            for path in [*self.root.glob(_TEMPORARY + "*"), *blobs.glob(_TEMPORARY + "*")]:
                path.unlink()
        version, marker = canonical_json({"imageLayoutVersion": "1.0.0"}), self.root / "oci-layout"
        with _disk(self.root):
            marked = marker.is_file() and marker.read_bytes() == version
        if not marked:
            self._put(marker, version)

    @contextmanager
    def blob(self) -> Iterator[BlobWriter]:
        """Yield a writer, whose bytes are a blob of the layout when the context ends without an error.

        Raises:
            ImageError: when the disk is full; the temporary file is removed then, as after any other error.
        """
        folder = self.path(Digest.of(b"")).parent
        with _writing(folder / f"{_TEMPORARY}{os.getpid()}", self.root) as writer:
            yield writer
            writer.finish(self.path(writer.digest))

    def put(self, data: bytes) -> Digest:
        """Write a small blob and return its digest."""
        with self.blob() as writer:
            writer.write(data)
        return writer.digest

    def commit(self, image: OciImage, layers: Collection[NewLayer]) -> Digest:
        """Make `image` the image of the layout, and return its digest."""
        self.put(image.config)
        digest = self.put(image.manifest)
        self._flush_names(self.path(digest).parent)
        descriptor = {"mediaType": MANIFEST_TYPE, "digest": str(digest), "size": len(image.manifest)}
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor]}
        self._put(self.root / "index.json", canonical_json(index))
        kept = {digest.hex, Digest.of(image.config).hex, *(layer.digest.hex for layer in layers)}
        for path in self.path(digest).parent.iterdir():
            if path.name not in kept:
                path.unlink()
        return digest

    def _put(self, path: Path, data: bytes) -> None:
        with _writing(path.with_name(_TEMPORARY + path.name), self.root) as writer:
            writer.write(data)
            writer.finish(path)
        self._flush_names(path.parent)

    def _flush_names(self, folder: Path) -> None:
        """Flush a folder's list of names to the disk."""
        with _disk(self.root):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def _writing(temporary: Path, layout: Path) -> Iterator[BlobWriter]:
    """Yield a writer of a temporary file, which is removed afterwards unless `finish` gave it another name."""
    try:
        with _disk(layout):
            file = temporary.open("wb", buffering=0)
        with file:
            yield BlobWriter(file, temporary, layout)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _disk(layout: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "the image that it held is still there" if (layout / "index.json").is_file() else "it holds no image yet"
        problem = f"out: {layout}: cannot be written ({error.strerror or error}), and {kept}"
        raise ImageError(f"{problem}; free space, or name another folder with out=") from None
