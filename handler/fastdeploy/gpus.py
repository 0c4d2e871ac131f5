"""The GPUs of this container: listed by nvidia-smi, held against the image, and dealt out to FastDeploy's ranks.

No GPU library is imported, so the answers are there before the engine starts.
"""

from __future__ import annotations

import logging
import re
import subprocess  # noqa: TID251
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler.errors import EngineFailedToStart

__all__ = [
    "QUERY",
    "Gpu",
    "explain",
    "fit_gpus",
    "image_findings",
    "list_gpus",
    "parse_architectures",
    "read_gpus",
    "visible",
    "with_article",
]

log = logging.getLogger(__name__)

ARCHITECTURES = (80, 86, 89, 90)
"""Compute capabilities for which FastDeploy is published; there is an image of each name."""

_MINIMUM_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest driver for each major release of CUDA (docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html)."""

_DOCUMENTED_DRIVER = 535
"""The oldest driver that FastDeploy's documentation names."""

QUERY = (
    "--query-gpu=index,name,compute_cap,memory.total,memory.free,driver_version,uuid",
    "--format=csv,noheader,nounits",
)
_FIELDS = 7
_MIB = 1 << 20
_WORN = 14
"""nvidia-smi's exit code for a corrupted infoROM, which comes with a whole answer: the GPU works."""

_PATIENCE = 20.0
"""Seconds: a driver that is not kept loaded takes several to answer for eight GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; memory in bytes. None is what the driver does not tell, as for parts of a GPU in MIG mode."""

    index: int
    """As nvidia-smi numbers it; CUDA_VISIBLE_DEVICES may name it by uuid (GPU-...)."""
    name: str = ""
    capability: int | None = None
    """Compute capability as kernels are named by it: 89 for 8.9."""
    memory_total: int | None = None
    memory_free: int | None = None
    uuid: str = ""
    driver: str = ""


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


def list_gpus(program: str = "nvidia-smi") -> tuple[Gpu, ...]:
    """Ask `program` and return the GPUs that it lists, whatever CUDA_VISIBLE_DEVICES says.

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
    if answer.returncode == _WORN:
        gpus = _read_worn(answer.stdout, answer.stderr)
    elif answer.returncode:
        raise EngineFailedToStart(f"{program} failed with exit code {answer.returncode}: {said or 'it said nothing'}{_todo(said)}")
    else:
        gpus = read_gpus(answer.stdout)
    if not gpus:
        raise EngineFailedToStart(f"{program} lists no GPU: this container was given none: choose a GPU endpoint, or set ENGINE=cpu")
    return gpus


def _read_worn(output: str, complaints: str) -> tuple[Gpu, ...]:
    """Return the GPUs among the lines of an answer that has warnings between them, and log the warnings."""
    gpus: list[Gpu] = []
    for line in f"{output}\n{complaints}".splitlines():
        try:
            gpus += read_gpus(line)
        except EngineFailedToStart:
            log.warning("nvidia-smi: %s", line.strip())
    return tuple(gpus)


def _todo(said: str) -> str:
    meaning = explain(said)
    return f"; {meaning}" if meaning else ""


# --- whether an image runs on them


def parse_architectures(text: str) -> tuple[int, ...]:
    """Return the compute capabilities that a text such as "80,90", "sm80, sm90" or "8.0 9.0" lists.

    Raises:
        ValueError: saying what was expected.
    """
    names = text.replace(",", " ").split()
    numbers = [name.lower().removeprefix("sm").lstrip("_").replace(".", "") for name in names]
    if not all(number.isdecimal() and 10 < int(number) < 1000 for number in numbers):
        raise ValueError('compute capabilities such as "80,90"')
    return tuple(sorted({int(number) for number in numbers}))


def image_findings(gpus: Sequence[Gpu], architectures: Sequence[int], cuda: str) -> tuple[list[str], list[str]]:
    """Return the problems, which make a start hopeless, and the notes of an image on these GPUs.

    `architectures` are those that it holds kernels for, and `cuda` is its CUDA, such as "12.6"; empty where it does not say.
    """
    problems: list[str] = []
    notes: list[str] = []
    held = "/".join(f"SM{number}" for number in architectures)
    for name, capability in sorted({(gpu.name, gpu.capability) for gpu in gpus if architectures}, key=str):
        if capability is None:
            notes.append(f"this image holds kernels for {held}; the driver does not tell the architecture of the {name}")
        elif capability not in architectures:
            problems.append(
                f"this image holds kernels for {held}; the GPU is {with_article(name)} (SM{capability}): {_way_out(capability)}"
            )
    for driver in sorted({gpu.driver for gpu in gpus}):
        _judge_driver(driver, cuda, problems, notes)
    return problems, notes


def with_article(name: str) -> str:
    """Return a GPU's name with its article."""
    return ("an " if name[:1].upper() in "AEIOUN" else "a ") + name


def _way_out(capability: int) -> str:
    if capability in ARCHITECTURES:
        return f"use the sm{capability} image"
    return "FastDeploy is not published for it: choose a GPU such as A100 (SM80), A40 (SM86), RTX 4090 or L40S (SM89), H100 (SM90)"


def _judge_driver(driver: str, cuda: str, problems: list[str], notes: list[str]) -> None:
    major, needs = driver.partition(".")[0], cuda.partition(".")[0]
    oldest = _MINIMUM_DRIVERS.get(int(needs)) if needs.isdecimal() else None
    if not major.isdecimal():
        notes.append(f"the driver's version could not be checked: got {driver!r}")
    elif oldest and int(major) < oldest:
        problems.append(
            f"the host's driver is {driver}, and this image's CUDA {cuda} needs {oldest} or newer: "
            f"choose hosts with CUDA {needs} or newer (allowed CUDA versions of the endpoint)"
        )
    elif int(major) < _DOCUMENTED_DRIVER:
        notes.append(f"the host's driver is {driver}; FastDeploy's documentation asks for {_DOCUMENTED_DRIVER} or newer")


# --- which of them the engine gets, and how a model is dealt to them


def visible(text: str, gpus: Sequence[Gpu]) -> tuple[list[int] | None, list[str]]:
    """Return the indices of the GPUs that the engine may use, None when not known, and what is wrong with CUDA_VISIBLE_DEVICES.

    FastDeploy hands its words to int() and to NVML, which counts the container's GPUs and knows neither uuids nor MIG slices.
    """
    if not text:
        return [gpu.index for gpu in gpus] or None, []
    found, problems = [], []
    for word in (word.strip() for word in text.split(",")):
        index, expected = _one_gpu(word, gpus)
        if expected:
            problems.append(f"CUDA_VISIBLE_DEVICES: got {word!r}, expected {expected}")
        elif index in found:
            problems.append(f"CUDA_VISIBLE_DEVICES: got {text!r}, which names GPU {index} twice, expected each once")
        else:
            found.append(index)
    return None if problems else found, problems


def _one_gpu(word: str, gpus: Sequence[Gpu]) -> tuple[int, str]:
    if word.startswith("MIG-"):
        return -1, "whole numbers: FastDeploy cannot run on a slice of a GPU (MIG), take a whole one"
    known = ", ".join(str(gpu.index) for gpu in gpus)
    if word.startswith("GPU-"):
        named = [gpu.index for gpu in gpus if gpu.uuid.startswith(word)]
        return (named[0], "") if len(named) == 1 else (-1, f"whole numbers{f' ({known})' if known else ''}: no one GPU here has this uuid")
    if not (word.isascii() and word.isdecimal()):
        return -1, "whole numbers separated by commas"
    if gpus and int(word) not in {gpu.index for gpu in gpus}:
        return -1, f"a GPU of this machine: {known}"
    return int(word), ""


def fit_gpus(values: dict[str, Any], heads: Mapping[str, int], gpus: Sequence[int] | None) -> list[str]:
    """Spread the model over all GPUs that its heads can be dealt to, unless the operator said over how many."""
    copies = values.get("data_parallel_size", 1)
    if "tensor_parallel_size" not in values:
        most = max(1, min(8, len(gpus or ())) // copies)
        values["tensor_parallel_size"] = max(size for size in range(1, most + 1) if not _misdealt(size, heads))
    size = values["tensor_parallel_size"]
    problems = _misdealt(size, heads)
    product = f"TENSOR_PARALLEL_SIZE x DATA_PARALLEL_SIZE: got {size} x {copies} = {size * copies}"
    if gpus is not None and size * copies > len(gpus):
        problems.append(f"{product}, expected at most {len(gpus)}, the number of visible GPUs")
    elif size * copies > 8:
        problems.append(f"{product}, expected at most 8, the GPUs of one machine")
    return problems


def _misdealt(size: int, heads: Mapping[str, int]) -> list[str]:
    """Return one sentence for each kind of heads that cannot be dealt to `size` GPUs.

    Where there are fewer key/value heads than GPUs, FastDeploy (QKVParallelLinear) keeps each on several.
    """
    problems = []
    for name, count in heads.items():
        copied = name == "num_key_value_heads"
        if size > 0 and count % size and not (copied and size % count == 0):
            expected = "a divisor or a multiple" if copied else "a divisor"
            problems.append(f"TENSOR_PARALLEL_SIZE: got {size}, expected {expected} of the model's {name}, which is {count}")
    return problems
