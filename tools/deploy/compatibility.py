"""Check image, GPUs and variables against each other: what cannot work is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from handler.errors import InvalidSettings
from handler.fastdeploy.flags import RELEASES, collect_flags, collect_variables, variable_names
from handler.fastdeploy.gpus import parse_architectures
from handler.settings import TABLE, Settings, read_settings
from images.build_errors import nearest
from images.gpu_types import GpuType, named
from tools.deploy.api_answers import GpuOffer
from tools.deploy.deploy_errors import DeployRefused
from tools.deploy.masking import is_reference, is_secret
from tools.deploy.pushed_image import PushedImage

__all__ = ["GpuMarket", "check_gpus", "check_variables", "choose_gpus", "fitting_pools", "gpu_problems", "variable_problems"]

_NO_FILE = Path(__file__).with_name("no-settings-are-baked-here.json")


@dataclass(frozen=True, slots=True)
class GpuMarket:
    """The GPUs that RunPod rents to endpoints: those whose architecture is known here, and the pools of those whose is not."""

    types: Sequence[GpuType]
    unknown: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, offers: Iterable[GpuOffer], table: Iterable[GpuType]) -> GpuMarket:
        """Return what RunPod's catalog has today.

        The catalog knows pools and no architectures; the table (images/gpus.toml) knows architectures, and an older state of the pools.
        """
        known = {gpu.name: gpu for gpu in table}
        pooled = {offer["id"]: offer["pool"] for offer in offers if offer.get("pool")}
        types = [replace(known[name], pool=pool) for name, pool in pooled.items() if name in known]
        return cls(types, {name: pool for name, pool in sorted(pooled.items()) if name not in known})

    @property
    def pools(self) -> list[str]:
        """The pools that hold GPUs whose architecture is known."""
        return sorted({gpu.pool for gpu in self.types if gpu.pool})

    def inside(self, pool: str) -> list[str]:
        """Return the names of all GPUs of a pool."""
        return [*(gpu.name for gpu in self.types if gpu.pool == pool), *(name for name, home in self.unknown.items() if home == pool)]


def gpu_problems(names: Iterable[str], market: GpuMarket) -> Iterator[str]:
    """Yield a sentence for each name that is neither a pool nor a GPU of one."""
    for name in names:
        homes = {gpu.pool for gpu in named(name, market.types) if gpu.pool}
        if name.upper() in market.pools or len(homes) == 1:
            continue
        if homes:
            yield f"gpu: {name}: these GPUs are in {' and in '.join(sorted(homes))}; expected one of these pools"
        else:
            near = nearest(name.upper(), market.pools)
            yield f"gpu: {name}: no GPU and no pool whose GPUs are known{near}; expected of {', '.join(market.pools)}"


def choose_gpus(names: Sequence[str], excluded: Sequence[str], market: GpuMarket) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the pools that `names` mean, and the types of these pools that are not wanted.

    A GPU's name stands for its pool without all its other types, unless the pool is named too.

    Raises:
        DeployRefused: for names that do not exist, and where nothing is left.
    """
    if problems := list(gpu_problems(names, market)):
        raise DeployRefused(*problems)
    whole = [name.upper() for name in names if name.upper() in market.pools]
    wanted = [gpu for name in names if name.upper() not in market.pools for gpu in named(name, market.types) if gpu.pool]
    pools = tuple(dict.fromkeys([*whole, *(gpu.pool for gpu in wanted)]))
    others = [name for pool in pools if pool not in whole for name in market.inside(pool) if name not in {gpu.name for gpu in wanted}]
    types = [name for pool in pools for name in market.inside(pool)]
    found = {name: next((gpu.name for gpu in named(name, market.types) if gpu.name in types), name) for name in excluded}
    problems = [
        f"exclude: {name}: not in these pools{nearest(name, types)}; expected of {', '.join(types)}"
        for name in excluded
        if found[name] not in types
    ]
    unwanted = tuple(dict.fromkeys([*others, *found.values()]))
    if not problems and pools and not set(types) - set(unwanted):
        problems = ["exclude: got every type of these pools, expected at least one to be left"]
    if problems:
        raise DeployRefused(*problems)
    return pools, unwanted


def check_gpus(image: PushedImage, pools: Sequence[str], excluded: Iterable[str], market: GpuMarket) -> None:
    """Refuse GPUs that the image has no kernels for.

    Raises:
        DeployRefused: naming the GPUs, and what would fit.
    """
    gone = set(excluded)
    left = [gpu for gpu in market.types if gpu.pool in pools and gpu.name not in gone]
    wrong = [gpu for gpu in left if _number(gpu) not in _held(image)]
    if wrong:
        names = ", ".join(f"{gpu.name} ({gpu.architecture.upper()})" for gpu in wrong)
        way_out = _way_out(image, left, wrong, market)
        raise DeployRefused(f"gpu: {','.join(pools)} holds {names}, and {image.reference} {_holds(image)}: {way_out}")


def fitting_pools(image: PushedImage, market: GpuMarket) -> list[str]:
    """Return the pools whose every GPU the image has kernels for."""
    return [pool for pool in market.pools if all(_number(gpu) in _held(image) for gpu in market.types if gpu.pool == pool)]


def variable_problems(env: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with variables whatever the image is: secrets that are written out, names and values that mean nothing."""
    known = [*(name for row in TABLE for name in (row.name, *row.aliases)), *variable_names()]
    for name, text in env.items():
        if is_secret(name) and text and not is_reference(text):
            yield f"env.{name}: a secret does not belong on a command line: store it with RunPod and give its name, secret.{name}=NAME"
        # MODLE is too short for the worker to doubt it, and on a command line two letters change places easily.
        swapped = [one for one in known if sorted(one) == sorted(name)]
        if swapped and name not in swapped:
            yield f"env.{name}: unknown to the worker; did you mean {swapped[0]}?"
    texts = _shown(env)
    try:
        read_settings(texts, baked=_NO_FILE, engine_names=variable_names())
    except InvalidSettings as error:
        yield from _without_model(error.problems)  # the image may bring one
    if texts.get("ENGINE") != "cpu":
        yield from collect_variables(texts)[1]


def check_variables(image: PushedImage, env: Mapping[str, str], gpus: int = 1) -> Settings:
    """Read the variables as the worker will, the endpoint's over the image's, and return what they mean; `gpus` is how many it has.

    Raises:
        DeployRefused: naming every variable that the worker would not start with.
    """
    texts, problems = _shown({**image.variables, **env}), list[str]()
    settings = None
    try:
        settings = read_settings(texts, baked=_NO_FILE, engine_names=variable_names())
    except InvalidSettings as error:
        # What the image has baked in cannot be seen from here.
        baked = not image.is_known or "BAKED_MODELS" in image.variables
        problems += _without_model(error.problems) if baked else error.problems
    if texts.get("ENGINE") != "cpu":
        problems += _engine_problems(texts, texts.get("FASTDEPLOY_RELEASE", ""), gpus)
    if problems:
        raise DeployRefused(*dict.fromkeys(problems))
    return settings or read_settings({**texts, "MODEL": "baked"}, baked=_NO_FILE, engine_names=variable_names())


def _without_model(problems: Iterable[str]) -> list[str]:
    return [problem for problem in problems if not problem.startswith("MODEL: not set")]


def _shown(env: Mapping[str, str]) -> dict[str, str]:
    """Return variables with a word in the place of each secret, whose value is not known here."""
    return {name: "secret" if is_secret(name) and is_reference(text) else text for name, text in env.items() if text}


def _engine_problems(texts: Mapping[str, str], release: str, gpus: int) -> list[str]:
    problems = collect_variables(texts)[1]
    if release not in RELEASES:
        return problems  # `read_settings` has looked at the name; what an unknown release makes of flags only the worker can tell
    values, wrong = collect_flags(texts, release)
    parallel = values.get("tensor_parallel_size", 1)
    if parallel > gpus:
        wrong = [*wrong, f"TENSOR_PARALLEL_SIZE: got {parallel}, expected at most {gpus}, the GPUs of one worker; give count={parallel}"]
    return problems + wrong


def _number(gpu: GpuType) -> int:
    return int(gpu.architecture.removeprefix("sm"))


def _held(image: PushedImage) -> tuple[int, ...]:
    try:
        return parse_architectures(image.variables.get("IMAGE_ARCHITECTURES", ""))
    except ValueError as error:
        raise DeployRefused(f"image: {image.reference}: its IMAGE_ARCHITECTURES is not a list of {error}") from None


def _holds(image: PushedImage) -> str:
    held = _held(image)
    return f"holds kernels for {', '.join(f'SM{number}' for number in held)}" if held else "holds kernels for no GPU"


def _way_out(image: PushedImage, left: Sequence[GpuType], wrong: Sequence[GpuType], market: GpuMarket) -> str:
    ways = []
    if len(wrong) < len(left):
        ways.append(f'leave them out by exclude="{",".join(gpu.name for gpu in wrong)}"')
    ways += [f"choose the {name} image" for name in sorted({gpu.architecture for gpu in wrong})] if len(wrong) == len(left) else []
    if pools := fitting_pools(image, market):
        ways.append(f"choose of {', '.join(pools)}")
    return ", or ".join(ways) or "choose another image"
