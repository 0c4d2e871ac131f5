"""Hold a model against a pool of GPUs, from values alone: the flags a worker would choose, and the memory they take on each GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from checkpoint.size import Estimate, Load, estimate, loaded_size, shape_of
from handler.errors import InvalidSettings
from handler.fastdeploy.decision import Decision, decide
from handler.fastdeploy.flags import variable_names
from handler.fastdeploy.formats import format_problems
from handler.fastdeploy.gpus import Gpu
from handler.settings import read_settings
from images.build_errors import UnknownChoice, nearest
from images.gpu_types import GpuType, named
from images.releases import Releases, Target
from tools.plan.listing import ModelSummary

__all__ = [
    "Fit",
    "PlanRequest",
    "Pool",
    "container_disk",
    "evaluate",
    "find_pool",
    "image_for",
    "pool_of",
    "read_pools",
    "unserved",
    "with_length",
]

_GIB = 1 << 30
_SHOWN_SHARE = 15 / 16
"""What cards with error correction in ordinary memory (A40, L40, L40S, L4) show of the memory they are sold with: 46068 of 49152 MiB."""

_STACKED = 80
"""From so many GiB on, cards have stacked memory, whose error correction takes nothing away."""

_BESIDE_WEIGHTS = 10
"""Gigabytes of container disk for logs, compiled kernels and caches."""

_BLOCK = 64
"""Tokens of a block of FastDeploy's cache."""

_FREE_SHARE = 0.1
"""The RunPod SDK ends a worker with less than this share of its disk free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One of RunPod's pools, or some types of one: any of its GPUs may be given, so `memory` is what the smallest shows, in bytes."""

    name: str
    architectures: tuple[str, ...]
    gib: int
    memory: int
    asked: str = ""
    """How the types were named, where the whole pool was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What is to be run where; 0 and "" leave a choice to the worker."""

    pool: Pool
    count: int = 1
    quantization: str = ""
    length: int = 0
    requests: int = 8
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables of the worker beside these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What came of it: on each GPU, in bytes; lengths in tokens."""

    asked: PlanRequest
    target: Target
    parallel: int
    length: int
    estimate: Estimate
    usable: int
    """What the engine may use of a GPU."""

    @property
    def fits(self) -> bool:
        """Whether weights, activations and the cache of one request of full length have room."""
        return self.estimate.total <= self.usable

    @property
    def left(self) -> int:
        """What is left for cache; negative where even the weights find no room."""
        return self.usable - self.estimate.weights - self.estimate.margin

    @property
    def tokens(self) -> int:
        """For how many tokens there is cache."""
        return self.estimate.tokens(self.usable)

    def longest(self, positions: int) -> int:
        """Return the longest request that there is cache for, in whole blocks of 64 tokens; `positions` is the model's own longest."""
        tokens = self.tokens // _BLOCK * _BLOCK
        return min(tokens, positions) if positions else tokens


def read_pools(gpus: Sequence[GpuType]) -> dict[str, Pool]:
    """Return RunPod's pools by name, those with less memory first."""
    members: dict[str, list[GpuType]] = {}
    for gpu in gpus:
        if gpu.pool:
            members.setdefault(gpu.pool, []).append(gpu)
    pools = [pool_of(name, inside) for name, inside in members.items()]
    return {pool.name: pool for pool in sorted(pools, key=lambda pool: pool.gib)}


def find_pool(name: str, gpus: Sequence[GpuType]) -> Pool:
    """Return the pool of that name, or the part of a pool that has the GPUs of that name, such as RTX4090.

    Raises:
        UnknownChoice: for a name of neither, with the pools there are, and for GPUs of no pool or of several.
    """
    pools = read_pools(gpus)
    if name.upper() in pools:
        return pools[name.upper()]
    meant = named(name, gpus)
    homes = sorted({gpu.pool for gpu in meant if gpu.pool})
    if len(homes) == 1:
        return pool_of(homes[0], [gpu for gpu in meant if gpu.pool], asked=name)
    expected = f"expected a GPU, or one of RunPod's pools: {', '.join(pools)}"
    if homes:
        raise UnknownChoice(f"gpu: got {name!r}, which is in {' and in '.join(homes)}; {expected}")
    if meant:
        raise UnknownChoice(f"gpu: got {name!r}, and {meant[0].name} is in no pool of serverless endpoints; {expected}")
    raise UnknownChoice(f"gpu: got {name!r}, {expected}{nearest(name.upper(), pools)}")


def pool_of(name: str, gpus: Sequence[GpuType], asked: str = "") -> Pool:
    """Return a pool, or the part of one, that has these GPUs; `asked` is how a part was named."""
    return Pool(
        name=name,
        architectures=tuple(sorted({gpu.architecture for gpu in gpus})),
        gib=min(gpu.gib for gpu in gpus),
        memory=min(_shown(gpu.gib) for gpu in gpus),
        asked=asked,
    )


def image_for(pool: Pool, releases: Releases, release: str = "") -> Target:
    """Return the image that covers every GPU of a pool; an empty release means the default one.

    Raises:
        UnknownChoice: when there is none, with the pools' architectures that have one.
    """
    chosen = releases.release(release or releases.default)
    targets = [target for target in releases.targets() if target.release == chosen.name]
    for target in targets:
        if target.architecture in pool.architectures and set(pool.architectures) <= set(target.covers):
            return target
    covered = sorted({architecture for target in targets for architecture in target.covers})
    raise UnknownChoice(
        f"gpu={pool.name}: its GPUs are {'/'.join(pool.architectures)}, and no image of FastDeploy {chosen.name} covers them; "
        f"expected a pool of {', '.join(covered)}"
    )


def evaluate(model: ModelSummary, asked: PlanRequest, target: Target) -> Fit:
    """Return how a model fits.

    Raises:
        InvalidSettings: naming every value that the model, the release or the machine does not allow.
    """
    shape = shape_of(model.config)
    if shape is None:
        raise InvalidSettings(
            [f"model={model.name}: its config.json does not tell layers, heads and widths, so that no memory can be counted"]
        )
    values = _decision(model, asked, target).values
    parallel = values["tensor_parallel_size"]
    load = Load(
        length=values["max_model_len"],
        batched=values["max_num_batched_tokens"],
        requests=values["max_num_seqs"],
        parallel=parallel,
    )
    weights = model.stored if model.quantized else loaded_size(model.halves, shape, asked.quantization)
    return Fit(
        asked=asked,
        target=target,
        parallel=parallel,
        length=load.length,
        estimate=estimate(weights, shape, load),
        usable=int(asked.pool.memory * values.get("gpu_memory_utilization", 0.9)),
    )


def _decision(model: ModelSummary, asked: PlanRequest, target: Target) -> Decision:
    """Return what the worker would decide on such a machine."""
    texts = {
        "MODEL": model.name,
        "QUANTIZATION": asked.quantization,
        "MAX_MODEL_LEN": str(asked.length or ""),
        "MAX_NUM_SEQS": str(asked.requests),
    } | dict(asked.variables)
    gpus = tuple(Gpu(index=index) for index in range(asked.count))
    decision = decide(read_settings(texts, engine_names=variable_names()), _release(target), gpus, model.config)
    if decision.problems:
        raise InvalidSettings(list(decision.problems))
    return decision


def _release(target: Target) -> str:
    return ".".join(target.release.split(".")[:2])


def unserved(model: ModelSummary, target: Target) -> str:
    """Return why the image's release cannot read the checkpoint; "" where it may."""
    return "; ".join(problem.removeprefix("MODEL: ") for problem in format_problems(model.config, _release(target)))


def container_disk(stored: int) -> int:
    """Return the gigabytes of container disk for a download of so many bytes."""
    return math.ceil((stored / 1e9 + _BESIDE_WEIGHTS) / (1 - _FREE_SHARE))


def with_length(asked: PlanRequest, fit: Fit) -> PlanRequest:
    """Return the same with the longest requests that there is cache for, in whole blocks of 64 tokens."""
    return replace(asked, length=fit.tokens // _BLOCK * _BLOCK)


def _shown(gib: int) -> int:
    return int(gib * _GIB * (1 if gib >= _STACKED else _SHOWN_SHARE))
