"""A plan as a person reads it."""

from __future__ import annotations

from checkpoint.progress import size_text
from checkpoint.size import shape_of
from tools.plan.advise import Advice
from tools.plan.fit import Fit, container_disk
from tools.plan.listing import ModelSummary

__all__ = ["report"]

_SLOW, _FAST = 200e6, 400e6
"""Bytes a second of RunPod's network volumes, as documented; a hub or a local disk may be slower or faster."""

_START = (22, 38)
"""Seconds that FastDeploy 2.3 to 2.6 took from its start to its first answer beside the weights, measured on two cores without a GPU."""


def report(model: ModelSummary, advice: Advice) -> str:
    """Return the lines of a plan for one pool."""
    fit = advice.fit
    asked, needed = fit.asked, fit.estimate
    sharing = f" / {fit.parallel} GPUs" if fit.parallel > 1 else ""
    source = "by config.json" if model.is_counted else "in files"
    bits = "as stored" if model.quantized else asked.quantization or "16 bits"
    rows = {
        "model": model.name,
        "GPUs": f"{asked.count} x {asked.pool.asked or asked.pool.name}: {asked.pool.gib} GiB, {'/'.join(asked.pool.architectures)}",
        "image": fit.target.arguments,
        "tensor parallel": str(fit.parallel) + _idle(fit),
        "context": _context(model, fit),
        "weights": f"{size_text(model.stored)} {source}, {size_text(needed.weights)} on each GPU ({bits}{sharing})",
        "cache": f"{size_text(needed.per_token)} a token, {size_text(needed.sequence)} for a request of {fit.length} tokens, "
        f"{size_text(needed.sequence * asked.requests)} for {asked.requests} of them",
        "beside": f"about {size_text(needed.margin)}: activations and runtime, a guess",
        "usable": f"{size_text(fit.usable)} of each GPU's memory",
        "left": _left(fit),
        "container disk": f"{container_disk(model.download)} GB where the weights are downloaded to it",
        "download": f"{_minutes(model.download / _FAST, model.download / _SLOW)}, unless the weights are baked or cached",
        "load": _minutes(_START[0] + model.stored / _FAST, _START[1] + model.stored / _SLOW),
        "vision": _vision(model),
        "verdict": _verdict(fit, advice),
    }
    rows = {name: text for name, text in rows.items() if text}
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


def _context(model: ModelSummary, fit: Fit) -> str:
    """Say how long requests may be: the engine's own default is short, and a longer prompt is refused."""
    shape = shape_of(model.config)
    own = shape.positions if shape else 0
    longest = fit.longest(own)
    parts = [f"{fit.length} tokens a request" + ("" if fit.asked.length else ", which is the engine's default")]
    parts += [f"the model's own is {own}"] if own else []
    parts += [f"max-model-len={longest} is the longest that fits"] if longest > fit.length else []
    return "; ".join(parts)


def _vision(model: ModelSummary) -> str:
    if not model.config.get("vision_config"):
        return ""
    return "what images and videos take beside their encoder's weights is not counted"


def _verdict(fit: Fit, advice: Advice) -> str:
    if advice.works is fit:
        waiting = fit.asked.requests - fit.tokens // fit.length
        return "fits" + (f"; of {fit.asked.requests} requests of full length {waiting} wait for cache" if waiting > 0 else "")
    reasons = [f"cannot be served: {advice.problem}"] if advice.problem else []
    reasons += [] if fit.fits else [f"does not fit: {size_text(fit.estimate.total - fit.usable)} are missing on each GPU"]
    if advice.change is None:
        return f"{'; '.join(reasons)}, and no change helps: choose another model, or more GPUs than one worker has"
    return f"{'; '.join(reasons)}; the smallest change that fits: {advice.words}"


def _minutes(least: float, most: float) -> str:
    low, high = round(least), round(most)
    if high < 120:
        return f"{low} to {high} s" if low < high else f"{high} s"
    return f"{max(1, round(low / 60))} to {max(2, round(high / 60))} min"
