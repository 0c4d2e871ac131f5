"""What a layer holds: files and folders, by paths that cannot leave the root, and the marks that hide what lies below them.

A path is relative, with / between its parts, such as worker/lib/handler/job.py. `check_path` says which paths may be; whatever comes
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

__all__ = ["Entry", "check_path", "file_entry", "folder", "hidden", "opaque", "ordered", "text_entry", "with_parents"]

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
"""The marks of the OCI image specification (layer.md): .wh.NAME hides NAME of the layers below, .wh..wh..opq all that its folder holds."""

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes that Linux allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, or a folder where `open` is None."""

    path: str
    size: int = 0
    executable: bool = False
    digest: Digest | None = None
    """Of its content, checked while it is read; None where nobody has pinned it."""
    open: Callable[[], AbstractContextManager[BinaryIO]] | None = None
    source: str = ""
    """Where it comes from, for errors."""


def check_path(path: str, source: str) -> str:
    """Return `path` if it may stand in a layer; `source` is what an error calls the place it comes from.

    Raises:
        UnsafePath: for what is absolute, leaves its root, is written in an odd way, is too long, or would hide other files.
    """
    parts = path.split("/")
    reason = ""
    if path.startswith("/"):
        reason = "absolute"
    elif {"", ".", ".."} & set(parts):
        reason = "with an empty part, . or .."
    elif "\\" in path or any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        reason = "with a backslash or a control character"
    elif any(part.startswith(_WHITEOUT) for part in parts):
        reason = f"with a part that begins with {_WHITEOUT}, which hides files"
    elif max(len(part.encode()) for part in parts) > _LONGEST_NAME or len(path.encode()) > _LONGEST_PATH:
        reason = "too long"
    if reason:
        raise UnsafePath(f"{source}: got the path {path!r}, {reason}; expected a plain relative path")
    return path


def text_entry(path: str, data: bytes) -> Entry:
    """Return a small file whose content is at hand."""
    return Entry(path=path, size=len(data), digest=Digest.of(data), open=lambda: io.BytesIO(data))


def file_entry(path: str, file: Path, size: int, digest: Digest, source: str) -> Entry:
    """Return a file whose content is in a file of this disk."""
    return Entry(path=path, size=size, digest=digest, open=lambda: file.open("rb", buffering=0), source=source)


def folder(path: str) -> Entry:
    """Return a folder."""
    return Entry(path=path)


def hidden(path: str) -> Entry:
    """Return the mark that hides `path` of the layers below."""
    pure = PurePosixPath(path)
    return text_entry(str(pure.with_name(_WHITEOUT + pure.name)), b"")


def opaque(path: str) -> Entry:
    """Return the mark that hides all that the folder `path` holds in the layers below."""
    return text_entry(f"{path}/{_OPAQUE}", b"")


def with_parents(entries: Iterable[Entry], above: str = "") -> list[Entry]:
    """Return the entries and the folders that hold them, but not those of `above`, which are the base's."""
    entries = list(entries)
    kept = {*_parents(above), above}
    parents = {parent for entry in entries if _is_below(entry.path, above) for parent in _parents(entry.path)}
    missing = parents - kept - {entry.path for entry in entries if entry.open is None}
    return [*entries, *(folder(path) for path in missing)]


def ordered(entries: Iterable[Entry], source: str) -> list[Entry]:
    """Return the entries by the bytes of their paths, a folder before what it holds.

    Raises:
        UnsafePath: when two have the same path, or paths that differ only in case or in Unicode's composition (one file where a file
            system ignores that), or when a file is another's folder.
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


def _origin(entry: Entry, source: str) -> str:
    return entry.source or source


def _parents(path: str) -> list[str]:
    """Return the folders above a path that `check_path` lets pass; pathlib takes ten times as long."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _is_below(path: str, above: str) -> bool:
    return not above or path.startswith(above + "/")
