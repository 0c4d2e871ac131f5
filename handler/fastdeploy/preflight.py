"""What can be known before weights are loaded: whether this image, this GPU and this checkpoint can work together at all.

A hopeless start ends here, in a second and with the way out, instead of after minutes with a kernel that is not there. Only what is certain
stops a start (`Findings.problems`); what is estimated is printed (`Findings.notes`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from checkpoint.progress import size_text
from checkpoint.size import Estimate, Load, estimate, read_shape, weights_size
from handler.fastdeploy.gpus import Gpu, image_findings, with_article

__all__ = ["Demand", "Disk", "Findings", "Host", "look_at_host", "preflight"]

_SMALL_SHM = 1 << 30
_SMALL_DISK = 1 << 30
_SDK_DISK_SHARE = 0.1
"""The RunPod SDK ends a worker whose root disk has less than this share free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is about to be started."""

    architectures: tuple[int, ...]
    """What the image holds kernels for, such as (80, 90); empty where it does not say."""
    cuda: str = ""
    """The image's CUDA, such as "12.6"; empty where it does not say."""
    parallel: int = 1
    """GPUs that share one copy of the model."""
    quantization: str = ""
    experts: str | None = None
    """The quantization of routed experts, where it is another than that of the rest."""
    length: int
    """Longest request, in tokens."""
    batched: int
    """Tokens of one step."""
    requests: int
    """Requests decoded at the same time."""
    memory_share: float = 0.9
    """The share of a GPU's memory that the engine may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk, in bytes."""

    path: Path
    total: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine beside its GPUs."""

    shm: Disk | None
    root: Disk


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was found: problems make the start hopeless, notes are for the log."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look_at_host(shm: Path = Path("/dev/shm"), root: Path = Path("/")) -> Host:  # noqa: S108  # looked at, not written
    """Return the sizes of shared memory and of the container's disk."""
    return Host(shm=_disk(shm) if shm.is_dir() else None, root=_disk(root))


def _disk(path: Path) -> Disk:
    usage = os.statvfs(path)
    return Disk(path=path, total=usage.f_blocks * usage.f_frsize, free=usage.f_bavail * usage.f_frsize)


def preflight(demand: Demand, gpus: tuple[Gpu, ...], host: Host, checkpoint: Path | None) -> Findings:
    """Return all that speaks against starting `demand` on the GPUs it uses; `checkpoint` is None where the engine downloads it itself."""
    problems, notes = image_findings(gpus, demand.architectures, demand.cuda)
    findings = Findings(problems=problems, notes=notes)
    if checkpoint is not None:
        _check_memory(demand, gpus, checkpoint, findings)
    _check_host(demand, host, findings)
    return findings


def _check_memory(demand: Demand, gpus: tuple[Gpu, ...], checkpoint: Path, findings: Findings) -> None:
    try:
        weights = weights_size(checkpoint, demand.quantization, demand.experts)
    except (OSError, ValueError) as error:
        findings.notes.append(f"the GPU memory that the weights need could not be estimated: {error}")
        return
    share = -(-weights // demand.parallel)
    for gpu in gpus:
        if gpu.memory_total is not None and share > gpu.memory_total:
            findings.problems.append(_too_large(gpu, share, demand, f"it has {size_text(gpu.memory_total)}"))
        elif gpu.memory_total is not None and gpu.memory_free is not None and share > gpu.memory_free:
            free = f"{size_text(gpu.memory_free)} of its {size_text(gpu.memory_total)} are free, another process holds the rest"
            findings.problems.append(_too_large(gpu, share, demand, free))
    shape = read_shape(checkpoint)
    if shape is None:
        findings.notes.append(f"weights {size_text(share)} on each GPU; config.json does not tell the size of the cache")
        return
    load = Load(length=demand.length, batched=demand.batched, requests=demand.requests, parallel=demand.parallel)
    needed = estimate(weights, shape, load)
    findings.notes.append(_story(needed, demand.length))
    findings.notes += [_tight(gpu, needed, demand) for gpu in gpus if _budget(gpu, demand) < needed.total]


def _too_large(gpu: Gpu, share: int, demand: Demand, has: str) -> str:
    todo = "choose a larger GPU, more GPUs (TENSOR_PARALLEL_SIZE) or a smaller model"
    if not demand.quantization:
        todo += ", or set QUANTIZATION (wint8, wint4)"
    return f"the weights alone need {size_text(share)} on GPU {gpu.index}, {with_article(gpu.name)}, and {has}: {todo}"


def _story(needed: Estimate, length: int) -> str:
    return (
        f"GPU memory, estimated: weights {size_text(needed.weights)}, cache {size_text(needed.per_token)} a token "
        f"({size_text(needed.sequence)} for {length} tokens), about {size_text(needed.margin)} beside"
    )


def _budget(gpu: Gpu, demand: Demand) -> float:
    if gpu.memory_total is None:
        return float("inf")
    used = gpu.memory_total - gpu.memory_free if gpu.memory_free is not None else 0
    return gpu.memory_total * demand.memory_share - used


def _tight(gpu: Gpu, needed: Estimate, demand: Demand) -> str:
    usable = _budget(gpu, demand)
    return (
        f"GPU {gpu.index} may be too small: {size_text(usable)} are usable, {size_text(needed.total)} estimated; cache for about "
        f"{needed.tokens(usable)} tokens would fit: lower MAX_MODEL_LEN or MAX_NUM_BATCHED_TOKENS, or choose a larger GPU"
    )


def _check_host(demand: Demand, host: Host, findings: Findings) -> None:
    shm, root = host.shm, host.root
    if shm is None:
        findings.problems.append("no /dev/shm, through which FastDeploy's processes talk: run the container with --shm-size=1g")
    elif not shm.free:
        findings.problems.append(f"{shm.path} is full, and FastDeploy's processes talk through it: run the container with --shm-size=1g")
    elif demand.parallel > 1 and shm.total < _SMALL_SHM:
        findings.notes.append(f"{shm.path} has {size_text(shm.total)}, little for {demand.parallel} GPUs: raise --shm-size to 1g or more")
    if root.free < _SMALL_DISK:
        findings.notes.append(f"{root.path} has {size_text(root.free)} free; logs and compile caches may fill it")
    elif root.free < root.total * _SDK_DISK_SHARE:
        findings.notes.append(f"{root.path} has less than 10 % free: the RunPod SDK ends such a worker when it starts to take jobs")
