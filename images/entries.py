"""The entries of a layer: files, folders, and the whiteouts that hide files of the layers below.

A path is relative, with / between its parts, such as worker/lib/handler/job.py. `check_path` refuses paths that leave the root; every path
from outside (a wheel, a model's repository) goes through it. `ordered` gives the one order in which a layer holds its entries.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from images.build_errors import UnsafePath
from images.digest import Digest

__all__ = ["LayerEntry", "check_path", "data_entry", "file_entry", "folder", "opaque_whiteout", "ordered", "whiteout", "with_parents"]

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
"""Names of the OCI image specification (layer.md): .wh.NAME hides NAME of the layers below, .wh..wh..opq all that its folder holds."""

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Linux's limits, in bytes."""

_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that change how a path looks: controls, marks of writing direction, surrogates, line breaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEntry:
    """A file, or a folder where `open` is None."""

    path: str
    size: int = 0
    executable: bool = False
    digest: Digest | None = None
    """Of its content, checked while it is read; None where it is not pinned."""
    open: Callable[[], AbstractContextManager[BinaryIO]] | None = None
    source: str = ""
    """Its origin, for errors."""


def check_path(path: str, source: str) -> str:
    """Return `path` if it may be in a layer; errors name its origin as `source`.

    Raises:
        UnsafePath: for a path that is absolute, leaves its root, has invisible characters, is too long, or would hide other files.
    """
    parts = path.split("/")
    reason = ""
    if path.startswith("/"):
        reason = "absolute"
    elif {"", ".", ".."} & set(parts):
        reason = "with an empty part, . or .."
    elif "\\" in path or any(unicodedata.category(character) in _INVISIBLE for character in path):
        reason = "with a backslash or an invisible character"
    elif any(part.startswith(_WHITEOUT) for part in parts):
        reason = f"with a part that begins with {_WHITEOUT}, which hides files"
    elif max(len(part.encode()) for part in parts) > _LONGEST_NAME or len(path.encode()) > _LONGEST_PATH:
        reason = "too long"
    if reason:
        raise UnsafePath(f"{source}: got the path {path!r}, {reason}; expected a plain relative path")
    return path


def data_entry(path: str, data: bytes) -> LayerEntry:
    """Return a small file with this content."""
    return LayerEntry(path=path, size=len(data), digest=Digest.of(data), open=lambda: io.BytesIO(data))


def file_entry(path: str, file: Path, size: int, digest: Digest, source: str) -> LayerEntry:
    """Return a file with the content of a file on this disk."""
    return LayerEntry(path=path, size=size, digest=digest, open=lambda: file.open("rb", buffering=0), source=source)


def folder(path: str) -> LayerEntry:
    """Return a folder."""
    return LayerEntry(path=path)


def whiteout(path: str) -> LayerEntry:
    """Return the whiteout that hides `path` of the layers below."""
    pure = PurePosixPath(path)
    return data_entry(str(pure.with_name(_WHITEOUT + pure.name)), b"")


def opaque_whiteout(path: str) -> LayerEntry:
    """Return the whiteout that hides all that the folder `path` holds in the layers below."""
    return data_entry(f"{path}/{_OPAQUE}", b"")


def with_parents(entries: Iterable[LayerEntry], above: str = "") -> list[LayerEntry]:
    """Return the entries and the folders above them, without the folder `above` and its parents, which are the base's."""
    entries = list(entries)
    kept = {*_parents(above), above}
    parents = {parent for entry in entries if _is_below(entry.path, above) for parent in _parents(entry.path)}
    missing = parents - kept - {entry.path for entry in entries if entry.open is None}
    return [*entries, *(folder(path) for path in missing)]


def ordered(entries: Iterable[LayerEntry], source: str) -> list[LayerEntry]:
    """Return the entries by the bytes of their paths, a folder before what it holds.

    Raises:
        UnsafePath: when two have the same path, or paths that differ only in case or in Unicode's composition (they are one file where
            a file system ignores that), or when a file is the folder of another one.
    """
    found = sorted(entries, key=lambda entry: entry.path.encode())
    files = {entry.path for entry in found if entry.open is not None}
    spelt: dict[str, str] = {}
    before = None
    for entry in found:
        if entry.path == before:
            raise UnsafePath(f"{_origin(entry, source)}: the path {entry.path!r} comes twice")
        before = entry.path
        for path in (entry.path, *_parents(entry.path)):
            if path != entry.path and path in files:
                raise UnsafePath(f"{_origin(entry, source)}: got {entry.path!r}, but {path!r} is a file")
            other = spelt.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if other != path:
                raise UnsafePath(f"{_origin(entry, source)}: got {path!r} beside {other!r}, which differs only in case or composition")
    return found


def _origin(entry: LayerEntry, source: str) -> str:
    return entry.source or source


def _parents(path: str) -> list[str]:
    """Return the folders above a path that `check_path` accepts; pathlib takes ten times as long."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _is_below(path: str, above: str) -> bool:
    return not above or path.startswith(above + "/")
