"""A plan as a person reads it."""

from __future__ import annotations

from checkpoint.progress import size_text
from tools.plan.advise import change_text
from tools.plan.fit import Fit, container_disk, unserved
from tools.plan.listing import ModelSummary

__all__ = ["report"]

_SLOW, _FAST = 200e6, 400e6
"""Bytes a second of RunPod's network volumes, as documented; a hub or a local disk may be slower or faster."""

_START = (22, 38)
"""Seconds that FastDeploy 2.3 to 2.6 took from its start to its first answer beside the weights, measured on two cores without a GPU."""


def report(model: ModelSummary, fit: Fit, change: Fit | None) -> str:
    """Return the lines of a plan; `change` is the smallest change that fits where the plan itself does not."""
    asked, needed = fit.asked, fit.estimate
    sharing = f" / {fit.parallel} GPUs" if fit.parallel > 1 else ""
    bits = "as stored" if model.quantized else asked.quantization or "16 bits"
    rows = {
        "model": model.name,
        "GPUs": f"{asked.count} x {asked.pool.asked or asked.pool.name}: {asked.pool.gib} GiB, {'/'.join(asked.pool.architectures)}",
        "image": fit.target.arguments,
        "tensor parallel": str(fit.parallel) + _idle(fit),
        "weights": f"{size_text(model.stored)} in files, {size_text(needed.weights)} on each GPU ({bits}{sharing})",
        "cache": f"{size_text(needed.per_token)} a token, {size_text(needed.sequence)} for a request of {fit.length} tokens, "
        f"{size_text(needed.sequence * asked.requests)} for {asked.requests} of them",
        "beside": f"about {size_text(needed.margin)}: activations and runtime, a guess",
        "usable": f"{size_text(fit.usable)} of each GPU's memory",
        "left": _left(fit),
        "container disk": f"{container_disk(model.download)} GB where the weights are downloaded to it",
        "download": f"{_minutes(model.download / _FAST, model.download / _SLOW)}, unless the weights are baked or cached",
        "load": _minutes(_START[0] + model.stored / _FAST, _START[1] + model.stored / _SLOW),
        "verdict": _verdict(model, fit, change),
    } | ({"note": "; ".join(fit.notes)} if fit.notes else {})
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _idle(fit: Fit) -> str:
    idle = fit.asked.count - fit.parallel
    return f", {idle} of {fit.asked.count} GPUs idle: the model's heads cannot be dealt to more" if idle else ""


def _left(fit: Fit) -> str:
    if fit.left < 0:
        return f"nothing: {size_text(-fit.left)} are missing before any cache"
    at_once = fit.tokens // fit.length
    return f"{size_text(fit.left)}: cache for {fit.tokens} tokens, {at_once} request{'s' * (at_once != 1)} of full length at the same time"


def _verdict(model: ModelSummary, fit: Fit, change: Fit | None) -> str:
    if problems := unserved(model, fit.target):
        return f"cannot be served: {problems}"
    if fit.fits:
        waiting = fit.asked.requests - fit.tokens // fit.length
        return "fits" + (f"; of {fit.asked.requests} requests of full length {waiting} wait for cache" if waiting > 0 else "")
    missing = f"does not fit: {size_text(fit.estimate.total - fit.usable)} are missing on each GPU"
    if change is None:
        return f"{missing}, and no pool of RunPod's holds it: choose a smaller model"
    return f"{missing}; the smallest change that fits: {change_text(fit.asked, change.asked)}"


def _minutes(least: float, most: float) -> str:
    low, high = round(least), round(most)
    if high < 120:
        return f"{low} to {high} s" if low < high else f"{high} s"
    return f"{max(1, round(low / 60))} to {max(2, round(high / 60))} min"
