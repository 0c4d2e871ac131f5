"""`python -m tools.plan model=org/name gpu=ADA_24 [count=1] [quantization=wint4] [max-model-len=N] [concurrency=8] [release=2.3.0]`.

Prints what the model needs and what is left, and exits with 0 if it fits, 1 if it does not, 2 if the question makes no sense.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from checkpoint.hub import Hub
from checkpoint.unavailable import ModelUnavailable
from handler.errors import InvalidSettings
from images.arguments import Command, Key, file_named, parse
from images.build_errors import ImageError, UnknownChoice
from images.releases import read_gpus, read_releases
from tools.plan.advise import smallest_change
from tools.plan.fit import Asked, evaluate, find_pool, image_for, read_pools, unserved
from tools.plan.listing import read_model
from tools.plan.report import report

KEYS = (
    Key("model", "The model: org/name on the hub, or a directory.", required=True),
    Key("gpu", "RunPod's pool of GPUs, such as ADA_24.", required=True),
    Key("count", "GPUs of one worker, 1 to 8.", default="1"),
    Key("quantization", "wint8, wint4 or another of FastDeploy's quantizations; empty means none."),
    Key("max-model-len", "Longest prompt plus answer in tokens; empty leaves it to the engine."),
    Key("concurrency", "Requests decoded at the same time, 1 to 256.", default="8"),
    Key("release", "FastDeploy's release; empty means the default one."),
)


def main(words: list[str], environment: Mapping[str, str]) -> int:
    """Print the plan and return the exit code."""
    try:
        return _plan(parse(Command(name="plan", help="", keys=KEYS, run=lambda _: 0), words), environment)
    except (ImageError, InvalidSettings, ModelUnavailable) as error:
        for line in str(error).splitlines():
            print(f"plan: {line}", file=sys.stderr)
        return 2


def _plan(given: Mapping[str, str], environment: Mapping[str, str]) -> int:
    gpus, releases = read_gpus(), read_releases()
    pool = find_pool(given["gpu"], gpus)
    target = image_for(pool, releases, given["release"])
    asked = Asked(
        pool=pool,
        count=_number(given, "count", 1, 8),
        quantization=given["quantization"],
        length=_number(given, "max-model-len", 0, 10_000_000),
        requests=_number(given, "concurrency", 1, 256),
    )
    hub = Hub(endpoint=environment.get("HF_ENDPOINT", ""), token=environment.get("HF_TOKEN", ""))
    model = read_model(given["model"], file_named(given["model"], environment), hub)
    fit = evaluate(model, asked, target)
    change = None if fit.fits else smallest_change(model, fit, read_pools(gpus), releases)
    print(report(model, fit, change))
    return 0 if fit.fits and not unserved(model, target) else 1


def _number(given: Mapping[str, str], key: str, least: int, most: int) -> int:
    text = given[key] or "0"
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise UnknownChoice(f"{key}: got {given[key]!r}, expected a whole number from {least} to {most}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
