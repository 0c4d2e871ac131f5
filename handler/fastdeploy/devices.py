"""Choose the GPUs that FastDeploy gets, and how a model is dealt to them, from the machine's, the model's heads and what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "devices", "fit_gpus", "visible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of the machine, as nvidia-smi numbers it; CUDA_VISIBLE_DEVICES may name it by uuid (GPU-...)."""

    index: int
    uuid: str = ""


def visible(text: str, gpus: tuple[Gpu, ...]) -> tuple[list[int] | None, list[str]]:
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


def _one_gpu(word: str, gpus: tuple[Gpu, ...]) -> tuple[int, str]:
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


def devices(gpus: Sequence[int] | None, values: Mapping[str, Any]) -> dict[str, str]:
    """Name exactly as many GPUs as there are ranks: FastDeploy starts one for each name."""
    ranks = values["tensor_parallel_size"] * values.get("data_parallel_size", 1)
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus[:ranks]))} if gpus else {}
