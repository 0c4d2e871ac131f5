"""Follow the log files of an engine, which tell what its output does not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Tail"]

MAX_LINE = 65536
"""Characters after which a line is cut: a progress bar may never end its line."""


class Tail:
    """Reads what is added to the files of a folder that match one of some patterns, those included that appear later."""

    def __init__(self, folder: Path, patterns: Iterable[str]) -> None:
        self._folder, self._patterns = folder, tuple(patterns)
        self._read: dict[Path, int] = {}
        self._rest: dict[Path, bytes] = {}

    def skip(self) -> None:
        """Leave out what is there already: the words of an engine that ran before explain nothing of the next."""
        for path in self._paths():
            with contextlib.suppress(OSError):
                self._read[path] = path.stat().st_size

    def lines(self, *, last: bool = False) -> list[tuple[str, str]]:
        """Return (file name, line) for every line completed since the call before; `last` gives unfinished ones too."""
        return [(path.name, line.decode("utf-8", "replace").rstrip()) for path in self._paths() for line in self._added(path, last=last)]

    def _paths(self) -> list[Path]:
        return sorted({path for pattern in self._patterns for path in self._folder.glob(pattern)})

    def _added(self, path: Path, *, last: bool) -> list[bytes]:
        try:
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read.get(path, 0):  # begun anew
                    self._read[path], self._rest[path] = 0, b""
                file.seek(self._read.get(path, 0))
                added = file.read()
        except OSError:  # rotated away between listing and opening
            return []
        self._read[path] = self._read.get(path, 0) + len(added)
        *lines, rest = (self._rest.get(path, b"") + added).split(b"\n")
        if rest and (last or len(rest) > MAX_LINE):
            lines, rest = [*lines, rest], b""
        self._rest[path] = rest
        return lines
