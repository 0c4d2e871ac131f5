"""Hold image, GPU pools and variables against each other: what cannot work is refused before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from handler.errors import InvalidSettings
from handler.fastdeploy.flags import RELEASES, collect_flags, collect_variables, variable_names
from handler.fastdeploy.gpus import parse_architectures
from handler.settings import Settings, read_settings
from handler.variables import TABLE
from images.releases import GpuType
from tools.deploy.api import Json
from tools.deploy.order import hint
from tools.deploy.outcomes import Refused
from tools.deploy.pushed_image import Image

__all__ = ["check_gpus", "check_variables", "fitting_pools", "is_secret", "rented"]

_SECRETS = frozenset(name for variable in TABLE if variable.kind == "secret" for name in (variable.name, *variable.aliases))
_LOOKS_SECRET = re.compile(r"(TOKEN|_KEY|SECRET|PASSWORD|CREDENTIALS?)$")
_REFERENCE = re.compile(r"\{\{ RUNPOD_SECRET_\w+ \}\}")
_NO_FILE = Path(__file__).with_name("no-settings-are-baked-here.json")


def is_secret(name: str) -> bool:
    """Tell whether a variable's value is nobody's business: by the worker's table, or by its name."""
    return name in _SECRETS or bool(_LOOKS_SECRET.search(name))


def rented(catalog: Iterable[Json], table: Iterable[GpuType]) -> tuple[list[GpuType], dict[str, str]]:
    """Return the GPUs in the pools that RunPod's catalog puts them in today, and the pools of those whose architecture is not known here.

    The catalog knows pools and no architectures, the table (images/gpus.toml) knows architectures and an older state of the pools.
    """
    known = {gpu.name: gpu for gpu in table}
    pooled = {str(one["id"]): str(one["pool"]) for one in catalog if one.get("pool")}
    return [replace(known[name], pool=pool) for name, pool in pooled.items() if name in known], {
        name: pool for name, pool in sorted(pooled.items()) if name not in known
    }


def check_gpus(image: Image, pools: Sequence[str], excluded: Iterable[str], gpus: Sequence[GpuType]) -> None:
    """Refuse pools that hold a GPU which the image has no kernels for, and names that do not exist.

    Raises:
        Refused: naming the GPUs, and what would fit.
    """
    known = sorted({gpu.pool for gpu in gpus if gpu.pool})
    problems = [
        f"gpu: {pool}: no pool whose GPUs are known{hint(pool, known)}; expected of {', '.join(known)}"
        for pool in pools
        if pool not in known
    ]
    chosen = [gpu for gpu in gpus if gpu.pool in pools]
    types = [gpu.name for gpu in chosen]
    gone = set(excluded)
    problems += [
        f"exclude: {name}: not in these pools{hint(name, types)}; expected of {', '.join(types)}" for name in gone - set(types) if types
    ]
    if problems:
        raise Refused(*problems)
    left = [gpu for gpu in chosen if gpu.name not in gone]
    if not left:
        raise Refused("exclude: got every type of these pools, expected at least one to be left")
    wrong = [gpu for gpu in left if _number(gpu) not in _held(image)]
    if wrong:
        names = ", ".join(f"{gpu.name} ({gpu.architecture.upper()})" for gpu in wrong)
        raise Refused(f"gpu: {','.join(pools)} holds {names}, and {image.reference} {_holds(image)}: {_way_out(image, left, wrong, gpus)}")


def fitting_pools(image: Image, gpus: Sequence[GpuType]) -> list[str]:
    """Return the pools whose every GPU the image has kernels for."""
    pools = sorted({gpu.pool for gpu in gpus if gpu.pool})
    return [pool for pool in pools if all(_number(gpu) in _held(image) for gpu in gpus if gpu.pool == pool)]


def check_variables(image: Image, env: Mapping[str, str], given: Mapping[str, str], gpus: int = 1) -> Settings:
    """Read the variables as the worker will, the endpoint's over the image's, and return what they mean.

    `given` are those of the command line; `gpus` is how many one worker has.

    Raises:
        Refused: naming every variable that the worker would not start with, and every secret among those `given` that is written out.
    """
    problems = [
        f"env.{name}: a secret does not belong on a command line: store it with RunPod and give its name, secret.{name}=NAME"
        for name, text in given.items()
        if is_secret(name) and text and not _REFERENCE.fullmatch(text)
    ]
    # What a secret will hold is not known here: a word stands for it.
    texts = {
        name: "secret" if is_secret(name) and _REFERENCE.fullmatch(text) else text for name, text in {**image.variables, **env}.items()
    }
    settings = None
    try:
        settings = read_settings(texts, baked=_NO_FILE, engine_names=variable_names())
    except InvalidSettings as error:
        found = error.problems
        if "BAKED_MODELS" in image.variables:  # what the image has baked in cannot be seen from here
            found = [one for one in found if not one.startswith("MODEL: not set")]
        problems += found
    release = texts.get("FASTDEPLOY_RELEASE", "")
    if texts.get("ENGINE") != "cpu":
        problems += _engine_problems(texts, release, gpus)
    if problems:
        raise Refused(*dict.fromkeys(problems))
    return settings or read_settings({**texts, "MODEL": "baked"}, baked=_NO_FILE, engine_names=variable_names())


def _engine_problems(texts: Mapping[str, str], release: str, gpus: int) -> list[str]:
    problems = collect_variables(texts)[1]
    if release not in RELEASES:
        return problems  # what an unknown release makes of them is the worker's to say; `read_settings` has looked at the name
    values, wrong = collect_flags(texts, release)
    parallel = values.get("tensor_parallel_size", 1)
    if parallel > gpus:
        wrong = [*wrong, f"TENSOR_PARALLEL_SIZE: got {parallel}, expected at most {gpus}, the GPUs of one worker; give count={parallel}"]
    return problems + wrong


def _number(gpu: GpuType) -> int:
    return int(gpu.architecture.removeprefix("sm"))


def _held(image: Image) -> tuple[int, ...]:
    try:
        return parse_architectures(image.variables.get("IMAGE_ARCHITECTURES", ""))
    except ValueError as error:
        raise Refused(f"image: {image.reference}: its IMAGE_ARCHITECTURES is not a list of {error}") from None


def _holds(image: Image) -> str:
    held = _held(image)
    return f"holds kernels for {', '.join(f'SM{number}' for number in held)}" if held else "holds kernels for no GPU"


def _way_out(image: Image, left: Sequence[GpuType], wrong: Sequence[GpuType], gpus: Sequence[GpuType]) -> str:
    ways = []
    if len(wrong) < len(left):
        ways.append(f'leave them out by exclude="{",".join(gpu.name for gpu in wrong)}"')
    ways += [f"choose the {name} image" for name in sorted({gpu.architecture for gpu in wrong})] if len(wrong) == len(left) else []
    if pools := fitting_pools(image, gpus):
        ways.append(f"choose of {', '.join(pools)}")
    return ", or ".join(ways) or "choose another image"
