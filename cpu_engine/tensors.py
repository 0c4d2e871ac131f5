"""One safetensors file, mapped and checked against its header, whose tensors widen to float32.

The header gives the byte range of each tensor, and the ranges fill the file: a truncated or overwritten file
does not agree with its own header.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from checkpoint.files import Tensor, read_header
from cpu_engine.refusals import StartupError

FloatArray: TypeAlias = npt.NDArray[np.float32]

_DTYPES: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
# Widened piece by piece: one piece stays in the cache while it is converted, checked and transposed.
_BLOCK_ELEMENTS = 1 << 18
_DAMAGED = "the file is damaged or cut short: download it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedTensor:
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

        `target` has the shape on disk, or its transpose when `transposed`. Raises StartupError when a value is
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

    def _not_finite(self) -> StartupError:
        return StartupError(f"{self.file}: tensor {self.name}", got="a NaN or infinite weight", expected="finite weights", remedy=_DAMAGED)


def read_tensors(path: Path) -> Iterator[MappedTensor]:
    """Map `path` and yield its tensors; raise StartupError naming file and tensor when it contradicts itself."""
    try:
        tensors, expected = read_header(path)
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StartupError(
            str(path),
            got=error.strerror or "an unreadable file",
            expected="a safetensors file",
            remedy="download the checkpoint again",
        ) from error
    except ValueError as error:
        raise StartupError(str(path.parent), problem=str(error), remedy=_DAMAGED) from error
    for tensor in tensors:
        yield _mapped(path, mapping, tensor)
    if len(mapping) != expected:
        raise StartupError(str(path), got=f"{len(mapping)} bytes", expected=f"{expected} bytes, as its header says", remedy=_DAMAGED)


def _mapped(path: Path, mapping: mmap.mmap, tensor: Tensor) -> MappedTensor:
    """Return `tensor` as a view of the mapping."""
    thing = f"{path}: tensor {tensor.name}"
    if tensor.dtype not in _DTYPES:
        raise StartupError(
            thing,
            got=f"dtype {tensor.dtype}",
            expected="BF16, F16 or F32",
            remedy="quantised weights are not supported on CPU: choose an unquantised checkpoint",
        )
    needed = tensor.elements * _DTYPES[tensor.dtype].itemsize
    end = tensor.start + tensor.size
    if min(tensor.shape, default=1) < 1 or tensor.size != needed or tensor.start < 0:
        got = f"shape {list(tensor.shape)} in bytes {tensor.start} to {end}"
        raise StartupError(thing, got=got, expected=f"{needed} bytes", remedy=_DAMAGED)
    if end > len(mapping):
        raise StartupError(thing, got=f"a file of {len(mapping)} bytes", expected=f"at least {end}", remedy=_DAMAGED)
    values = np.frombuffer(mapping, _DTYPES[tensor.dtype], tensor.elements, tensor.start).reshape(tensor.shape)
    return MappedTensor(name=tensor.name, file=path, dtype=tensor.dtype, values=values, mapping=mapping, start=tensor.start)
