"""The errors of the image builder, by what is wrong.

ImageError
|-- UnknownChoice    a release, architecture, key or value that does not exist; names those that do
|-- InvalidFile      releases.toml, gpus.toml or images.lock.json has errors; lists each with its place
|-- Unlocked         an input is not pinned; names the command that pins it
|-- Missing          a pinned input is not on this disk; names the command that fetches it
|-- BadSource        a wheel, a model's file or a base cannot be used for the image
|   |-- DigestMismatch   its bytes are not the pinned ones
|   `-- UnsafePath       a path leaves its root, comes twice, or is not a plain file
|-- TooLarge         more layers or bytes than Docker or RunPod takes
|-- BrokenLayout     a layout on disk is not whole; lists every mismatch
`-- Unreachable      a registry, an index, a hub or Docker does not answer, or answers with an error
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
    "Silent",
    "TooLarge",
    "UnknownChoice",
    "Unlocked",
    "Unreachable",
    "UnsafePath",
    "nearest",
]

FETCH_AGAIN = "remove the damaged file from the cache (dist/cache/sha256) and run the command again"


class ImageError(Exception):
    """Anything that stops a command of the image builder. Raised itself only for a disk that cannot be written."""


class UnknownChoice(ImageError):
    """A release, architecture, key or value that does not exist, or a combination that is not possible."""


class InvalidFile(ImageError):
    """A file of tables does not fit its schema: `problems` has one sentence for each error, which begins with its place."""

    def __init__(self, name: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{name}: {problem}" for problem in self.problems))


class Unlocked(ImageError):
    """An input is not pinned in the lock."""


class Missing(ImageError):
    """A pinned input is not on this disk."""


class BadSource(ImageError):
    """An input cannot be used for the image."""


class DigestMismatch(BadSource):
    """An input's bytes are not those that were pinned."""


class UnsafePath(BadSource):
    """An input holds a path that must not be in a layer."""


class TooLarge(ImageError):
    """The image has more layers or bytes than Docker or RunPod takes."""


class BrokenLayout(ImageError):
    """A layout does not hold what it declares: `problems` has one sentence for each mismatch."""

    def __init__(self, name: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{name}: {problem}" for problem in self.problems))


class Unreachable(ImageError):
    """A registry, an index, a hub or Docker does not answer, or answers with an error: then `status` is its HTTP status, else 0."""

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status
        super().__init__(message)


class Silent(Unreachable):
    """A server that does not answer at all."""


def nearest(name: str, known: Iterable[str], closeness: float = 0.6) -> str:
    """Return "; did you mean X?" for the known name that is most like `name`, or nothing if none has that closeness (difflib's ratio)."""
    import difflib  # slow to import, and only a typing error needs it

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=closeness)
    return f"; did you mean {near[0]}?" if near else ""
