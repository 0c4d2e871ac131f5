"""The smallest change that makes a model fit: what costs answers least first, what costs money last.

A release that does not serve the model is changed first. Then, in this order, the first that fits: requests of at least half the length;
8 bits, 4 bits; shorter requests; more GPUs; larger ones; then what rents the least memory. A change is only named once the whole plan was
made again with it, so that all changes stand in one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from handler.errors import InvalidSettings
from images.build_errors import UnknownChoice
from images.releases import Releases, Target
from tools.plan.fit import Fit, PlanRequest, Pool, evaluate, image_for, unserved, with_length
from tools.plan.listing import ModelSummary

__all__ = ["Advice", "advise", "change_text", "smallest_change"]

_QUANTIZATIONS = {
    "Ernie4_5": ("wint8", "wint4"),
    "Qwen3Moe": ("wint8", "wint4"),
    "Qwen3ForCausalLM": ("wint8",),
    "Qwen2ForCausalLM": ("wint8",),
    "Qwen2_5_VL": ("wint4",),
    "Deepseek": ("wint4",),
}
"""By the beginning of an architecture's name: what FastDeploy's docs/supported_models.md lists for it; nothing is proposed for others."""

_COUNTS = (2, 4, 8)
_SHORTEST = 1024
"""Tokens below which a shorter length is no help to anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """How a model fits as it was asked for, and after the smallest change; `change` is None where none is needed, or none helps."""

    fit: Fit
    problem: str
    """Why the release cannot serve the model; "" where it can."""
    change: Fit | None = None

    @property
    def works(self) -> Fit | None:
        """What can be deployed: as it was asked for, or with the change; None where nothing can."""
        return self.fit if self.fit.fits and not self.problem else self.change

    @property
    def words(self) -> str:
        """The arguments that the change sets, as they are typed."""
        if self.change is None:
            return ""
        text = change_text(self.fit.asked, self.change.asked)
        release = self.change.target.release
        return " ".join(filter(None, [f"release={release}" if release != self.fit.target.release else "", text]))


def advise(model: ModelSummary, asked: PlanRequest, target: Target, pools: dict[str, Pool], releases: Releases) -> Advice:
    """Return how a model fits, and the smallest change within `pools` where it does not.

    Raises:
        InvalidSettings: naming every value that the model, the release or the machine does not allow.
    """
    fit, problem = evaluate(model, asked, target), unserved(model, target)
    if not problem:
        return Advice(fit=fit, problem="", change=None if fit.fits else smallest_change(model, fit, pools, releases))
    later = _serving(model, asked.pool, target, releases)
    if later is None:
        return Advice(fit=fit, problem=problem)
    served = evaluate(model, asked, later)
    return Advice(fit=fit, problem=problem, change=served if served.fits else smallest_change(model, served, pools, releases))


def _serving(model: ModelSummary, pool: Pool, target: Target, releases: Releases) -> Target | None:
    """Return the image for a pool of the first release after that of `target` which serves a model."""
    names = [release.name for release in releases.releases]
    for name in names[names.index(target.release) + 1 :]:
        try:
            found = image_for(pool, releases, name)
        except UnknownChoice:
            continue
        if not unserved(model, found):
            return found
    return None


def smallest_change(model: ModelSummary, fit: Fit, pools: dict[str, Pool], releases: Releases) -> Fit | None:
    """Return the fit after the smallest change that fits; None where nothing that RunPod rents would."""
    for asked in _candidates(model, fit, pools):
        try:
            tried = evaluate(model, asked, image_for(asked.pool, releases, fit.target.release))
        except (InvalidSettings, UnknownChoice):
            continue
        if tried.fits and asked.count in (tried.parallel, fit.asked.count):
            return tried
    return None


def change_text(before: PlanRequest, after: PlanRequest) -> str:
    """Return the arguments that differ, as they are typed."""
    pairs = {
        "gpu": (before.pool.name, after.pool.name),
        "count": (before.count, after.count),
        "quantization": (before.quantization, after.quantization),
        "max-model-len": (before.length, after.length),
    }
    return " ".join(f"{key}={new}" for key, (old, new) in pairs.items() if old != new)


def _candidates(model: ModelSummary, fit: Fit, pools: dict[str, Pool]) -> Iterator[PlanRequest]:
    asked = fit.asked
    shorter = with_length(asked, fit)
    quantizations = [] if model.quantized or asked.quantization else _quantizations(model)
    counts = [count for count in _COUNTS if count > asked.count]
    larger = [pool for pool in pools.values() if pool.memory > asked.pool.memory]
    if shorter.length >= fit.length / 2:
        yield shorter
    yield from (replace(asked, quantization=name) for name in quantizations)
    if shorter.length >= _SHORTEST:
        yield shorter
    yield from (replace(asked, count=count) for count in counts)
    yield from (replace(asked, pool=pool) for pool in larger)
    both = [
        replace(asked, pool=pool, count=count, quantization=name)
        for name in (asked.quantization, *quantizations)
        for pool in (asked.pool, *larger)
        for count in (asked.count, *counts)
    ]
    yield from sorted(both, key=lambda asked: asked.pool.memory * asked.count)


def _quantizations(model: ModelSummary) -> tuple[str, ...]:
    names = [str(name) for name in model.config.get("architectures", ())]
    return next((known for start, known in _QUANTIZATIONS.items() if any(name.startswith(start) for name in names)), ())
