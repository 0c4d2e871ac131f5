"""`ci/just plan model=org/name [gpu=ADA_24] [count=1] [quantization=wint4] [max-model-len=N] [concurrency=8] [release=2.3.0]`.

Prints what the model needs on a pool of GPUs and what is left, or, without `gpu=`, a row for each pool. Ends with 0 if the model fits, 1 if
it does not, 2 if the question makes no sense.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from checkpoint.hub import Hub
from checkpoint.size import shape_of
from checkpoint.unavailable import ModelUnavailable
from handler.errors import InvalidSettings
from images.arguments import Command, Key, call, file_named, whole
from images.build_errors import UnknownChoice
from images.gpu_types import read_gpu_types
from images.releases import Releases, read_releases
from tools.plan.advise import advise
from tools.plan.fit import PlanRequest, Pool, find_pool, image_for, read_pools
from tools.plan.listing import ModelSummary, read_model
from tools.plan.paste import commands
from tools.plan.pool_table import plan_pools, table
from tools.plan.prices import read_prices
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
    pools = read_pools(gpus)
    pool = find_pool(values["gpu"], gpus) if values["gpu"] else next(iter(pools.values()))
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
    if not values["gpu"]:
        return _plan_all(model, asked, pools, releases, values["release"])
    advice = advise(model, asked, target, pools, releases)
    print(report(model, advice))
    if advice.works:
        print(f"\n{commands(model, advice.works)}")
    return 0 if advice.works is advice.fit else 1


def _plan_all(model: ModelSummary, asked: PlanRequest, pools: Mapping[str, Pool], releases: Releases, release: str) -> int:
    """Print a row for each pool; return 0 if one of them holds the model."""
    prices, note = read_prices(os.environ)
    shape = shape_of(model.config)
    rows = plan_pools(model, asked, pools.values(), releases, release, prices)
    length = next((row.advice.fit.length for row in rows if row.advice), asked.length)
    default = "" if asked.length else " (the engine's default)"
    print(f"{model.name}: {asked.requests} requests at the same time, of {length} tokens{default}\n")
    print(table(rows, shape.positions if shape else 0))
    print(f"\n({note})\n" if note else "")
    works = rows[0].works
    if works is None:
        print("no pool holds it, whatever is changed: choose a smaller model")
        return 1
    print(commands(model, works))
    return 0


COMMAND = Command(
    name="plan",
    help="Tell which GPUs hold a model, and what to change where it does not fit.",
    keys=(
        Key("model", "The model: org/name on the hub, a directory, or a config.json.", required=True, bare=True),
        Key("gpu", "RunPod's pool of GPUs, such as ADA_24, or a GPU, such as RTX4090; empty compares all pools."),
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
