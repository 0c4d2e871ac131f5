"""Which GPUs this container sees, asked of nvidia-smi: no GPU library is imported, so the answer is there before the engine starts."""

from __future__ import annotations

import re
import subprocess  # noqa: TID251
from dataclasses import dataclass

from handler.errors import EngineFailedToStart

__all__ = ["QUERY", "Gpu", "explain", "read_gpus", "select", "visible_gpus"]

QUERY = (
    "--query-gpu=index,name,compute_cap,memory.total,memory.free,driver_version,uuid",
    "--format=csv,noheader,nounits",
)
_FIELDS = 7
_MIB = 1 << 20
_PATIENCE = 20.0
"""Seconds: a driver that is not kept loaded takes several to answer for eight GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; memory in bytes. None is what the driver does not tell, as for parts of a GPU in MIG mode."""

    index: int
    name: str
    capability: int | None
    """Compute capability as kernels are named by it: 89 for 8.9."""
    memory_total: int | None
    memory_free: int | None
    uuid: str
    driver: str


_TROUBLES = (
    ("Driver/library version mismatch", "the host's driver was replaced while it ran: the host must be restarted; start on another worker"),
    ("couldn't communicate with the NVIDIA driver", "the host's driver is not loaded: start on another worker"),
    ("GPU is lost", "the GPU has fallen off the bus: start on another worker"),
    ("Unable to determine the device handle", "the GPU does not answer: start on another worker"),
    ("requires reset", "the GPU is broken until it is reset: start on another worker"),
    ("No devices were found", "this container was given no GPU: choose a GPU endpoint, or set ENGINE=cpu"),
    ("Insufficient Permissions", "this container may not use the GPU: start on another worker"),
    ("not a valid field", "the driver is older than any that CUDA 12 runs on (525): choose hosts with CUDA 12 or newer"),
    ("803", "the image's CUDA compatibility library does not fit the host's driver: remove it from LD_LIBRARY_PATH"),
    ("Failed to initialize NVML", "this container lost its access to the GPU: start on another worker"),
)
"""Words of nvidia-smi, or of the CUDA libraries, and what they mean; the first that fits counts."""


def explain(said: str) -> str:
    """Return what a complaint of nvidia-smi or of CUDA means, and what to do, or nothing if it is an unknown one."""
    return next((meaning for words, meaning in _TROUBLES if words in said), "")


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs that the answer to QUERY lists.

    Raises:
        EngineFailedToStart: when it is no such list.
    """
    return tuple(_read_line(line) for line in text.splitlines() if line.strip())


def _read_line(line: str) -> Gpu:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != _FIELDS or not fields[0].isdecimal():
        raise EngineFailedToStart(f"nvidia-smi: got {line.strip()!r}, expected a line of a GPU's {_FIELDS} properties{_todo(line)}")
    index, name, capability, total, free, driver, uuid = fields
    found = re.fullmatch(r"(\d+)\.(\d)", capability)
    return Gpu(
        index=int(index),
        name=name,
        capability=int(found.group(1)) * 10 + int(found.group(2)) if found else None,
        memory_total=int(total) * _MIB if total.isdecimal() else None,
        memory_free=int(free) * _MIB if free.isdecimal() else None,
        uuid=uuid,
        driver=driver,
    )


def select(gpus: tuple[Gpu, ...], visible: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that a value of CUDA_VISIBLE_DEVICES leaves, in its order; None means that it is not set.

    By CUDA's rules: entries are numbers or beginnings of UUIDs, and the first that names no GPU hides all that follow. A MIG entry names a
    part of a GPU, which nvidia-smi does not list, so it counts as none.
    """
    if visible is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        found = [gpu for gpu in gpus if entry == str(gpu.index) or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    return tuple(chosen)


def visible_gpus(visible: str | None = None, *, program: str = "nvidia-smi") -> tuple[Gpu, ...]:
    """Ask `program` and return the GPUs that are left by `visible`, the value of CUDA_VISIBLE_DEVICES, None where it is not set.

    Raises:
        EngineFailedToStart: saying why there is none, and what to do.
    """
    try:
        answer = subprocess.run(  # noqa: S603
            [program, *QUERY], check=False, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        missing = f"{program} is not there, so this container has no GPU driver: choose a GPU endpoint, or set ENGINE=cpu"
        raise EngineFailedToStart(missing) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineFailedToStart(f"{program} does not answer ({error}): start on another worker") from None
    said = (answer.stdout + answer.stderr).strip()
    if answer.returncode:
        raise EngineFailedToStart(f"{program} failed with exit code {answer.returncode}: {said or 'it said nothing'}{_todo(said)}")
    listed = read_gpus(answer.stdout)
    gpus = select(listed, visible)
    if not listed:
        raise EngineFailedToStart(f"{program} lists no GPU: this container was given none: choose a GPU endpoint, or set ENGINE=cpu")
    if not gpus:
        numbers = ", ".join(str(gpu.index) for gpu in listed)
        raise EngineFailedToStart(
            f"CUDA_VISIBLE_DEVICES: got {visible!r}, which leaves no GPU of {numbers}: unset it, or name some of these"
        )
    return gpus


def _todo(said: str) -> str:
    meaning = explain(said)
    return f"; {meaning}" if meaning else ""
