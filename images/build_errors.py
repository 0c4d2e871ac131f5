"""What can be wrong with an image's inputs, or with the image itself.

ImageError
|-- UnknownChoice    a release, architecture, key or value that does not exist; names those that do
|-- InvalidFile      releases.toml, gpus.toml or images.lock.json is not what it should be; lists every problem with its place
|-- Unlocked         an input is not pinned; names the command that pins it
|-- Missing          a pinned input is not on this disk; names the command that brings it
|-- BadSource        a wheel, a model's file or a base is not what the image needs
|   |-- DigestMismatch   its bytes are not the pinned ones
|   `-- UnsafePath       a path that leaves its root, comes twice or is no plain file
|-- TooLarge         more layers or bytes than a registry or RunPod takes
|-- BrokenLayout     a layout on disk is not whole; lists every mismatch
`-- Unreachable      a registry, an index or a hub could not be asked, or said no
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "FETCH_AGAIN",
    "BadSource",
    "BrokenLayout",
    "DigestMismatch",
    "ImageError",
    "InvalidFile",
    "Missing",
    "TooLarge",
    "UnknownChoice",
    "Unlocked",
    "Unreachable",
    "UnsafePath",
    "nearest",
]

FETCH_AGAIN = "bring it again with `python -m images fetch`"


class ImageError(Exception):
    """Anything that stops a command of the image builder. Never raised itself."""


class UnknownChoice(ImageError):
    """A release, architecture, key or value that does not exist, or a combination that is not possible."""


class InvalidFile(ImageError):
    """A file of tables does not fit its schema: `problems` has one sentence for each, each beginning with the place."""

    def __init__(self, name: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{name}: {problem}" for problem in self.problems))


class Unlocked(ImageError):
    """An input is not pinned in the lock."""


class Missing(ImageError):
    """A pinned input is not on this disk."""


class BadSource(ImageError):
    """An input is not what the image needs."""


class DigestMismatch(BadSource):
    """An input's bytes are not those that were pinned."""


class UnsafePath(BadSource):
    """An input holds a path that may not be."""


class TooLarge(ImageError):
    """The image would be larger than a registry or RunPod takes."""


class BrokenLayout(ImageError):
    """A layout does not hold what it says: `problems` has one sentence for each mismatch."""

    def __init__(self, name: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{name}: {problem}" for problem in self.problems))


class Unreachable(ImageError):
    """A registry, an index or a hub could not be asked, or refused."""


def nearest(name: str, known: Iterable[str], closeness: float = 0.6) -> str:
    """Return "; did you mean X?" for the known name that is most like `name`, or nothing if none has that closeness (difflib's ratio)."""
    import difflib  # only for mistakes

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=closeness)
    return f"; did you mean {near[0]}?" if near else ""
