"""The smallest change that makes a model fit: what costs answers least first, what costs money last.

In this order, the first that fits: requests of at least half the length; 8 bits, 4 bits; shorter requests; more GPUs; larger ones; then
whatever rents the least memory. A change is only named once the whole plan was made again with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from handler.errors import InvalidSettings
from images.build_errors import UnknownChoice
from images.releases import Releases
from tools.plan.fit import Fit, PlanRequest, Pool, evaluate, image_for, with_length
from tools.plan.listing import ModelSummary

__all__ = ["change_text", "smallest_change"]

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
