"""`ci/just plan model=org/name gpu=ADA_24 [count=1] [quantization=wint4] [max-model-len=N] [concurrency=8] [release=2.3.0]`.

Prints what the model needs and what is left, and exits with 0 if it fits, 1 if it does not, 2 if the question makes no sense.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from checkpoint.hub import Hub
from checkpoint.unavailable import ModelUnavailable
from handler.errors import InvalidSettings
from images.arguments import Command, Key, call, file_named, whole
from images.build_errors import UnknownChoice
from images.gpu_types import read_gpu_types
from images.releases import read_releases
from tools.plan.advise import smallest_change
from tools.plan.fit import PlanRequest, evaluate, find_pool, image_for, read_pools, unserved
from tools.plan.listing import read_model
from tools.plan.report import report

__all__ = ["COMMAND"]


def run(values: Mapping[str, str]) -> int:
    """Print the plan and return the exit code."""
    try:
        return _plan(values)
    except (InvalidSettings, ModelUnavailable) as error:
        raise UnknownChoice(str(error)) from None


def _plan(values: Mapping[str, str]) -> int:
    gpus, releases = read_gpu_types(), read_releases()
    pool = find_pool(values["gpu"], gpus)
    target = image_for(pool, releases, values["release"])
    asked = PlanRequest(
        pool=pool,
        count=int(values["count"]),
        quantization=values["quantization"],
        length=int(values["max-model-len"] or 0),
        requests=int(values["concurrency"]),
    )
    hub = Hub(endpoint=os.environ.get("HF_ENDPOINT", ""), token=os.environ.get("HF_TOKEN", ""))
    model = read_model(values["model"], file_named(values["model"]), hub)
    fit = evaluate(model, asked, target)
    change = None if fit.fits else smallest_change(model, fit, read_pools(gpus), releases)
    print(report(model, fit, change))
    return 0 if fit.fits and not unserved(model, target) else 1


COMMAND = Command(
    name="plan",
    help="Tell whether a model fits a GPU, and what to change if it does not.",
    keys=(
        Key("model", "The model: org/name on the hub, or a directory.", required=True),
        Key("gpu", "RunPod's pool of GPUs, such as ADA_24, or a GPU, such as RTX4090.", required=True),
        Key("count", "GPUs of one worker.", default="1", check=whole(1, 8)),
        Key("quantization", "wint8, wint4 or another of FastDeploy's quantizations; empty means none."),
        Key("max-model-len", "Longest prompt plus answer in tokens; empty leaves it to the engine.", check=whole(1, 10_000_000)),
        Key("concurrency", "Requests decoded at the same time.", default="8", check=whole(1, 256)),
        Key("release", "FastDeploy's release; empty means the default one."),
    ),
    run=run,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
