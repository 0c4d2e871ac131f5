"""One safetensors file, mapped and checked against itself, whose tensors widen to float32.

The format: eight bytes of header length, a JSON header naming dtype, shape and byte range of each tensor,
then the bytes, without holes. A truncated or overwritten file therefore never agrees with its own header.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cpu_engine.refusals import Refusal

FloatArray: TypeAlias = npt.NDArray[np.float32]

_DTYPES: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_PREFIX_BYTES = 8
# The reference implementation refuses longer headers; a random length field would otherwise be believed.
_HEADER_LIMIT = 100_000_000
# Widened piece by piece: one piece stays in the cache while it is converted, checked and transposed.
_BLOCK_ELEMENTS = 1 << 18
_DAMAGED = "the file is damaged or cut short: download it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor as it lies in its file. `values` is a view of the mapping: bf16 shows as its 16 bits."""

    name: str
    file: Path
    dtype: str
    values: npt.NDArray[Any]
    mapping: mmap.mmap
    start: int
    """Offset in the file, in bytes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape on disk."""
        return self.values.shape

    def widen_into(self, target: FloatArray, *, transposed: bool = False) -> None:
        """Fill `target` with the values as float32 and give the file's pages back to the kernel.

        `target` has the shape on disk, or its transpose when `transposed`. Raises Refusal when a value is
        NaN or infinite: one such weight silences every answer.
        """
        source = self.values.reshape(1, -1) if self.values.ndim == 1 else self.values
        target = target.reshape(1, -1) if target.ndim == 1 else target
        rows = max(1, _BLOCK_ELEMENTS // source.shape[1])
        for first in range(0, source.shape[0], rows):
            block = self._widened(source[first : first + rows])
            # A sum is the cheapest pass that cannot miss one: NaN and infinity both survive it.
            with np.errstate(invalid="ignore", over="ignore"):
                total = float(block.sum())
            if not math.isfinite(total):
                raise self._not_finite()
            if transposed:
                target[:, first : first + rows] = block.T
            else:
                target[first : first + rows] = block
        self._give_back()

    def _widened(self, block: npt.NDArray[Any]) -> FloatArray:
        if self.dtype != "BF16":
            return block.astype(np.float32)
        bits = block.astype(np.uint32)
        np.left_shift(bits, 16, out=bits)
        return bits.view(np.float32)

    def _give_back(self) -> None:
        """Drop the mapped pages from this process; they stay in the page cache for the next one."""
        first = self.start - self.start % mmap.PAGESIZE
        self.mapping.madvise(mmap.MADV_DONTNEED, first, self.start + self.values.nbytes - first)

    def _not_finite(self) -> Refusal:
        return Refusal(f"{self.file}: tensor {self.name}", got="a NaN or infinite weight", expected="finite weights", remedy=_DAMAGED)


def read_tensors(path: Path) -> Iterator[Tensor]:
    """Map `path` and yield its tensors; raise Refusal naming file and tensor when it contradicts itself."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(_PREFIX_BYTES)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == _PREFIX_BYTES else 0
            if not 2 <= length <= min(_HEADER_LIMIT, size - _PREFIX_BYTES):
                raise _damaged(path, f"{size} bytes and a header of {length}", "a whole safetensors file")
            header = file.read(length)
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise Refusal(
            str(path),
            got=error.strerror or "an unreadable file",
            expected="a safetensors file",
            remedy="download the checkpoint again",
        ) from error
    base = _PREFIX_BYTES + length
    end = base
    for name, entry in _entries(path, header):
        tensor, stop = _tensor(path, mapping, base, name, entry)
        end = max(end, stop)
        yield tensor
    if end != size:
        raise _damaged(path, f"{size} bytes", f"{end} bytes, as its header says")


def _entries(path: Path, header: bytes) -> list[tuple[str, object]]:
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "a header that is no JSON", "a safetensors header") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "a header that is no object", "a safetensors header")
    return [(name, entry) for name, entry in entries.items() if name != "__metadata__"]


def _tensor(path: Path, mapping: mmap.mmap, base: int, name: str, entry: object) -> tuple[Tensor, int]:
    """Return the tensor that `entry` describes, and the offset of its end in the file."""
    thing = f"{path}: tensor {name}"
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])  # type: ignore[index]
        start, stop = (int(n) for n in entry["data_offsets"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(thing, got="no dtype, shape or data_offsets", expected="all three", remedy=_DAMAGED) from error
    if dtype not in _DTYPES:
        raise Refusal(
            thing,
            got=f"dtype {dtype}",
            expected="BF16, F16 or F32",
            remedy="quantised weights are not supported on CPU: choose an unquantised checkpoint",
        )
    needed = math.prod(shape) * _DTYPES[dtype].itemsize
    if min(shape, default=1) < 1 or not 0 <= start <= stop or stop - start != needed:
        raise Refusal(thing, got=f"shape {list(shape)} in bytes {start} to {stop}", expected=f"{needed} bytes", remedy=_DAMAGED)
    if base + stop > len(mapping):
        raise _damaged(path, f"{len(mapping)} bytes", f"at least {base + stop} for tensor {name}")
    values = np.frombuffer(mapping, _DTYPES[dtype], math.prod(shape), base + start).reshape(shape)
    tensor = Tensor(name=name, file=path, dtype=dtype, values=values, mapping=mapping, start=base + start)
    return tensor, base + stop


def _damaged(path: Path, got: str, expected: str) -> Refusal:
    return Refusal(str(path), got=got, expected=expected, remedy=_DAMAGED)
