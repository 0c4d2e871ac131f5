"""Whether a model fits the GPUs that an endpoint is to have, and how much disk its download takes: the arithmetic of `tools.plan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from checkpoint.hub import Hub
from checkpoint.progress import size_text
from checkpoint.unavailable import ModelUnavailable
from handler.errors import InvalidSettings
from handler.settings import Settings
from images.build_errors import UnknownChoice
from images.gpu_types import GpuType
from images.releases import Releases, read_releases
from tools.deploy.masking import is_reference
from tools.plan.advise import Advice, advise
from tools.plan.fit import PlanRequest, container_disk, image_for, pool_of
from tools.plan.listing import ModelSummary, read_hosted

__all__ = ["MemoryCheck", "check_memory"]

_NAMES = ("MODEL", "MODEL_NAME", "MODEL_REPO")
_PLANNED = frozenset({*_NAMES, "QUANTIZATION", "MAX_MODEL_LEN", "MAX_NUM_SEQS"})
"""Variables that a plan has as values of its own, which it changes."""


@dataclass(frozen=True, slots=True)
class MemoryCheck:
    """What was found: pools that do not hold the model, why nothing could be checked, and the disk in GB that the download takes."""

    problems: tuple[str, ...] = ()
    note: str = ""
    disk: int | None = None


def check_memory(
    settings: Settings, variables: Mapping[str, str], gpus: Mapping[str, Sequence[GpuType]], count: int, hub: Hub
) -> MemoryCheck:
    """Plan the model of a worker's variables for the GPUs of each pool, of which one worker has `count`.

    A model in the image or on a volume cannot be looked at from here, and a hub that does not answer stops no deployment.
    """
    name = next((text for key in _NAMES if (text := variables.get(key, ""))), "")
    if "BAKED_MODELS" in variables or name.startswith("/") or is_reference(name):
        return MemoryCheck(note="whether the model fits was not checked: it is not on the hub")
    try:
        model = read_hosted(name, hub, variables.get("MODEL_REVISION", ""))
    except ModelUnavailable as error:
        return MemoryCheck(note=f"whether the model fits was not checked: {error}")
    releases = read_releases()
    problems = [
        problem
        for pool, types in gpus.items()
        for problem in _problems(
            model, _request(settings, variables, pool, types, count), releases, variables.get("FASTDEPLOY_RELEASE", "")
        )
    ]
    return MemoryCheck(problems=tuple(dict.fromkeys(problems)), disk=container_disk(model.download))


def _request(settings: Settings, variables: Mapping[str, str], pool: str, types: Sequence[GpuType], count: int) -> PlanRequest:
    return PlanRequest(
        pool=pool_of(pool, types),
        count=count,
        quantization=variables.get("QUANTIZATION", ""),
        length=settings.engine.max_model_len,
        requests=settings.engine.max_num_seqs,
        variables={name: text for name, text in variables.items() if name not in _PLANNED},
    )


def _problems(model: ModelSummary, asked: PlanRequest, releases: Releases, release: str) -> Iterable[str]:
    known = [one.name for one in releases.releases if one.name.startswith(f"{release}.")]
    try:
        target = image_for(asked.pool, releases, known[0] if known and release else "")
        advice = advise(model, asked, target, {}, releases)
    except UnknownChoice:
        return  # GPUs that no image covers were refused before
    except InvalidSettings as error:
        yield from error.problems
        return
    if advice.works is not advice.fit:
        yield f"gpu: {model.name} does not run on {asked.pool.name}: {_reason(advice)}"


def _reason(advice: Advice) -> str:
    fit, change = advice.fit, advice.change
    reasons = [advice.problem] if advice.problem else []
    reasons += [] if fit.fits else [f"{size_text(fit.estimate.total - fit.usable)} are missing on each GPU"]
    if change is None:
        return f"{', and '.join(reasons)}; ci/just plan compares all pools"
    before, after = fit.asked, change.asked
    ways = {
        f"an image of release={change.target.release}": change.target.release != fit.target.release,
        f"env.QUANTIZATION={after.quantization}": after.quantization != before.quantization,
        f"env.MAX_MODEL_LEN={after.length}": after.length != before.length,
        f"count={after.count}": after.count != before.count,
    }
    return f"{', and '.join(reasons)}; give {' and '.join(way for way, needed in ways.items() if needed)}, or another gpu="
