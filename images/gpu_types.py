"""The GPUs that RunPod rents, the pools they are in, and the names that people give them.

types = read_gpu_types()                                  # images/gpus.toml
{gpu.architecture for gpu in types if gpu.pool == "ADA_24"}
named("rtx4090", types)                                   # the types that a person means
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from images.schema import read_table

__all__ = ["GPU_TYPES", "GpuType", "named", "read_gpu_types"]

GPU_TYPES = Path(__file__).with_name("gpus.toml")

_ARCHITECTURE = re.compile(r"sm\d{2,3}|gfx\d{3}")
_MAKER = re.compile(r"^(nvidia|amd|geforce|tesla|instinct)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One type of GPU that RunPod rents."""

    name: str
    """RunPod's id of the type."""
    short: str
    """RunPod's display name."""
    pool: str
    """RunPod's id of the pool it is in; empty where it is in none."""
    architecture: str
    """Such as sm89; an image may or may not cover it."""
    gib: int
    """Its memory as it is sold."""

    def __post_init__(self) -> None:
        if not _ARCHITECTURE.fullmatch(self.architecture):
            raise ValueError(f"architecture: got {self.architecture!r}, expected a name such as sm89")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    gpus: tuple[GpuType, ...]


def read_gpu_types(path: Path = GPU_TYPES) -> tuple[GpuType, ...]:
    """Return the GPUs that `path`, a file like gpus.toml, lists.

    Raises:
        InvalidFile: with every problem of the file.
    """
    return read_table(_Table, path).gpus


def named(text: str, types: Iterable[GpuType]) -> list[GpuType]:
    """Return the types that a person means by `text`: one by its whole name, or all whose name begins so; none for a name of no GPU.

    Case, blanks, hyphens and the maker do not count, nor does RTX: RTX4090, rtx-4090, 4090 and GeForce RTX 4090 are one; A100 means both
    of RunPod's.
    """
    known = list(types)
    wanted = _MAKER.sub("", "".join(_words(text)))
    exact = [gpu for gpu in known if wanted in {"".join(words) for words in _spellings(gpu)}]
    return exact or [gpu for gpu in known if any(wanted in _beginnings(words) for words in _spellings(gpu))]


def _words(name: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9.]+", name.lower()) if not _MAKER.fullmatch(word)]


def _spellings(gpu: GpuType) -> list[Sequence[str]]:
    whole = [_words(gpu.name), _words(gpu.short)]
    return [*whole, *(words[1:] for words in whole if words[0] == "rtx")]


def _beginnings(words: Sequence[str]) -> set[str]:
    return {"".join(words[:end]) for end in range(1, len(words)) if words[:end] != ["rtx"]}
