"""Which files make a checkpoint, and whether those on a disk are all there and whole.

A checkpoint is `config.json`, a tokenizer, and weights in one of three formats; hubs keep several formats of the same weights side by
side. The weights are one file, or shards that an index names; a safetensors file says in its header how long it is, so a download that
broke off is always found. Nothing here opens a socket or reads a weight.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["Tensor", "damage", "holds_checkpoint", "read_header", "read_json", "snapshot_folder", "tensors", "wanted", "weight_files"]

_FORMATS = ("safetensors", "pdparams", "bin")
"""File endings of weights, the best first: FastDeploy maps the first, unpickles the others."""

_TEXT = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".vocab", ".spm", ".yaml")
"""Endings of configurations, tokenizers and templates."""

_ASIDE = {"original", "consolidated", "metal", "onnx", "openvino", "coreml", "gguf"}
"""Folders in which hubs keep the same weights for other programs."""

_NUMBERED = re.compile(r"^(.*-)(\d{5})(-of-)(\d{5})(\..*)$")
_LONGEST_HEADER = 100_000_000
"""The limit of the safetensors reference implementation; a longer header is no header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor as a safetensors header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    size: int
    """Bytes in the file."""

    @property
    def elements(self) -> int:
        """Return the number of values that the shape holds."""
        return math.prod(self.shape)


def wanted(paths: Iterable[str]) -> list[str]:
    """Return those files of a repository that an engine needs, in the order given: one format of the weights, and every small file.

    A folder counts only where it is a model of its own (ERNIE's `mtp`), that is, where it has a config.json.
    """
    paths = list(paths)
    names: dict[str, list[str]] = {}
    for path in paths:
        names.setdefault(str(PurePosixPath(path).parent), []).append(PurePosixPath(path).name)
    kept = {folder: set(_wanted_names(inside)) for folder, inside in names.items() if _is_model(folder, inside)}
    return [path for path in paths if PurePosixPath(path).name in kept.get(str(PurePosixPath(path).parent), ())]


def holds_checkpoint(paths: Iterable[str]) -> bool:
    """Say whether files that are `wanted` can be a checkpoint: a config.json and weights, both at the top."""
    names = [path for path in paths if "/" not in path]
    return "config.json" in names and any(_weights(names, kind) for kind in _FORMATS)


def _is_model(folder: str, names: list[str]) -> bool:
    return folder == "." or ("config.json" in names and not _ASIDE & set(PurePosixPath(folder.lower()).parts))


def _wanted_names(names: list[str]) -> Iterator[str]:
    chosen = next((kind for kind in _FORMATS if _weights(names, kind)), None)
    if chosen:
        yield from _weights(names, chosen)
    for name in names:
        index_of_another = name.endswith(".index.json") and f".{chosen}." not in name
        if name.endswith(_TEXT) and not index_of_another and not name.startswith("consolidated"):
            yield name


def _weights(names: Iterable[str], kind: str) -> list[str]:
    found = [name for name in names if name.endswith("." + kind) and (kind != "bin" or name.startswith("pytorch_model"))]
    # Mistral's repositories hold everything twice, the second time as "consolidated".
    return [name for name in found if not name.startswith("consolidated")] or found


def weight_files(directory: Path) -> list[str]:
    """Return the names of the files that hold the weights, whether they are there or not: as the index, or their numbering, tells.

    Raises:
        ValueError: when the index cannot be read.
    """
    names = sorted(path.name for path in directory.iterdir())
    for kind in _FORMATS:
        index = _index(names, kind)
        if index:
            return _named_by(directory / index)
        found = _weights(names, kind)
        if found:
            return sorted({sibling for name in found for sibling in _siblings(name)})
    return []


def _index(names: list[str], kind: str) -> str | None:
    indexes = [name for name in names if name.endswith(f".{kind}.index.json")]
    return next((name for name in indexes if not name.startswith("consolidated")), None)


def _named_by(index: Path) -> list[str]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index.name}: holds no weight_map of tensors to files")
    return sorted(set(shards.values()))


def _siblings(name: str) -> list[str]:
    """Return all the names of the series to which a name such as model-00002-of-00007.safetensors belongs."""
    found = _NUMBERED.match(name)
    if not found:
        return [name]
    before, _, of, last, after = found.groups()
    return [f"{before}{number:05}{of}{last}{after}" for number in range(1, int(last) + 1)]


def damage(directory: Path) -> list[str]:
    """Return one sentence for each file that is missing, cut short or unreadable; an empty list means a whole checkpoint."""
    try:
        names = weight_files(directory)
        problems = [] if names else ["no weights: expected *.safetensors, *.pdparams or pytorch_model*.bin"]
    except (OSError, ValueError) as error:
        names, problems = [], [str(error)]
    try:
        read_json(directory / "config.json")
    except FileNotFoundError:
        problems.append("config.json: missing")
    except (OSError, ValueError) as error:
        problems.append(str(error))
    return problems + [problem for name in names if (problem := _damage_of(directory / name))]


def _damage_of(path: Path) -> str:
    try:
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            expected = read_header(path)[1]
            return "" if size == expected else f"{path.name}: {size} bytes, expected {expected} by its header"
    except FileNotFoundError:
        return f"{path.name}: missing"
    except (OSError, ValueError) as error:
        return str(error)
    return "" if size else f"{path.name}: empty"


def tensors(path: Path) -> list[Tensor]:
    """Return what the header of a safetensors file lists.

    Raises:
        OSError: when the file cannot be read.
        ValueError: naming the file, when it is none.
    """
    return read_header(path)[0]


def read_header(path: Path) -> tuple[list[Tensor], int]:
    """Return the tensors that the header of a safetensors file lists, and the size in bytes that it gives the file.

    The format: eight bytes of header length, a JSON header with the byte range of each tensor, then the bytes without holes.
    A range that contradicts the shape is the caller's to find: only who reads the weights knows the width of their type.

    Raises:
        OSError: when the file cannot be read.
        ValueError: naming the file, when it is none.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ValueError(f"{path.name}: a Git LFS pointer in the file's place: run `git lfs pull`, or name the repository instead")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _LONGEST_HEADER:
            raise ValueError(f"{path.name}: not a safetensors file, or cut short within its first bytes")
        text = file.read(length)
    try:
        entries = json.loads(text).items()
    except (AttributeError, RecursionError, ValueError):
        raise ValueError(f"{path.name}: its safetensors header is damaged or cut short: no JSON object") from None
    found, end = [], 0
    for name, about in entries:
        if name == "__metadata__":
            continue
        try:
            first, last = (int(offset) for offset in about["data_offsets"])
            shape = tuple(int(extent) for extent in about["shape"])
            dtype = str(about["dtype"])
        except (KeyError, OverflowError, TypeError, ValueError):
            what = f"tensor {name} has no dtype, shape or data_offsets"
            raise ValueError(f"{path.name}: its safetensors header is damaged: {what}") from None
        found.append(Tensor(name=name, dtype=dtype, shape=shape, start=8 + length + first, size=last - first))
        end = max(end, last)
    return found, 8 + length + end


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        OSError: when the file cannot be read.
        ValueError: naming the file, when it holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: {type(value).__name__}, expected a JSON object")  # noqa: TRY004  # a problem of the file
    return value


def snapshot_folder(cache: Path, repository: str) -> Path:
    """Return the folder of a cache that holds everything about a repository."""
    return cache / ("models--" + repository.replace("/", "--"))
