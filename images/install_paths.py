"""Where wheels go in an image, and what of the base vanishes there."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from images.entries import Entry, hidden, opaque, with_parents

__all__ = ["Place", "owned_paths", "replacing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an image takes wheels: paths relative to the root, without a leading /."""

    packages: str
    """The folder of modules and packages."""
    python: str
    """The version that imports them, such as 3.10."""
    prefix: str = ""
    """The folder of the rest (bin, share); empty means that only modules and packages are taken, since nothing calls the rest."""
    interpreter: str = ""
    """What scripts begin with."""
    reserved: Collection[str] = ()
    """Top-level names that no wheel may have."""

    def folder(self, scheme: str) -> str | None:
        """Return the folder of one of the wheel format's schemes, or None for what is not taken."""
        if scheme in ("purelib", "platlib"):
            return self.packages
        names = {"scripts": "bin", "data": "", "headers": f"include/python{self.python}"}
        return str(PurePosixPath(self.prefix, names[scheme])) if self.prefix else None


def replacing(entries: Iterable[Entry], old: Iterable[str], place: Place) -> list[Entry]:
    """Return the entries of a wheel with the marks that hide the distribution it replaces, and the folders they stand in.

    `old` are the absolute paths of what is to vanish (`lock.Replaced.paths`). A folder that the wheel fills as well becomes opaque, a file
    that it brings as well is simply its own, and anything else is hidden.
    """
    found = with_parents(entries, above=place.packages)
    folders = {entry.path for entry in found if entry.open is None}
    files = {entry.path for entry in found if entry.open is not None}
    gone = sorted({path.strip("/") for path in old} - files)
    return found + [opaque(path) if path in folders else hidden(path) for path in gone]


def owned_paths(record: str, site_packages: str, shared: Collection[str] = ("__pycache__", "bin")) -> tuple[str, ...]:
    """Return what vanishes with an installed distribution: absolute paths of its own folders, and of its single files elsewhere.

    `record` is the text of its RECORD, `site_packages` the absolute folder that RECORD's paths start from, and `shared` the folders there
    that are no distribution's own.
    """
    found = set()
    for row in csv.reader(io.StringIO(record)):
        if not row:
            continue
        absolute = PurePosixPath(site_packages, row[0])
        parts: list[str] = []
        for part in absolute.parts[1:]:
            parts = parts[:-1] if part == ".." else [*parts, part]
        path = "/" + "/".join(parts)
        inside = path.removeprefix(site_packages + "/")
        top = inside.split("/", 1)[0]
        found.add(path if inside == path or top in shared else f"{site_packages}/{top}")
    return tuple(sorted(found))
