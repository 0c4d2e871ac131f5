"""What RunPod's REST API answers, as typed values: an answer is read here before anything is decided on it.

Fields are those of the API's description (api-reference-v2/openapi.json in RunPod's documentation) that a deployment needs; others are
dropped. A field that may be missing may be null too.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypedDict, TypeVar, cast, get_args, get_origin, get_type_hints, is_typeddict

__all__ = [
    "ActiveWorker",
    "BadAnswer",
    "Endpoint",
    "EndpointList",
    "EndpointReleases",
    "GpuCatalog",
    "GpuOffer",
    "GpuSelection",
    "WorkerList",
    "read_answer",
]

T = TypeVar("T")

Identity = Annotated[str, re.compile(r"[A-Za-z0-9_-]{1,100}")]
"""Part of an address, so that nothing else may stand in it."""
Version = Annotated[str, re.compile(r"[0-9]{1,4}(\.[0-9]{1,4})*")]


class BadAnswer(Exception):
    """An answer has another form than the API's description; the text says where, and what was expected."""


class GpuSelection(TypedDict, total=False):
    """Which GPUs an endpoint's workers may have, and how many."""

    pools: list[str]
    excludedTypes: list[str]
    count: int
    allowedCudaVersions: list[str]
    minCudaVersion: Version


class CpuSelection(TypedDict):
    """A CPU flavor that an endpoint's workers may have."""

    id: str
    vcpuCount: int


class _WorkerBounds(TypedDict, total=False):
    min: int
    max: int
    idleTimeout: int


class _Scaling(TypedDict, total=False):
    type: str
    queueDelay: float
    requestCount: int


class _RequestUrls(TypedDict, total=False):
    base: str


class _Named(TypedDict):
    id: Identity
    name: str


class Endpoint(_Named, total=False):
    """A serverless endpoint as it is now."""

    type: str
    image: str
    env: dict[str, str]
    gpu: GpuSelection
    cpu: list[CpuSelection]
    workers: _WorkerBounds
    scaling: _Scaling
    ports: list[str]
    disk: int
    timeout: int
    registry: str
    flashboot: str
    networkVolumes: list[str]
    dataCenterIds: list[str]
    requestUrls: _RequestUrls


class EndpointList(TypedDict):
    """All endpoints of an account."""

    endpoints: list[Endpoint]


class _ActiveWorker(TypedDict):
    id: Identity
    status: Literal["RUNNING", "IDLE", "INITIALIZING", "THROTTLED", "UNHEALTHY"]
    isStale: bool


class ActiveWorker(_ActiveWorker, total=False):
    """One worker of an endpoint."""

    image: str


class _WorkerList(TypedDict):
    workers: list[ActiveWorker]


class WorkerList(_WorkerList, total=False):
    """An endpoint's workers, and the version that new ones run."""

    endpointVersion: int


class EndpointReleases(TypedDict, total=False):
    """How many releases an endpoint has had."""

    endpointVersion: int


class _Price(TypedDict, total=False):
    serverless: float


class _GpuOffer(TypedDict):
    id: str


class GpuOffer(_GpuOffer, total=False):
    """A type of GPU that RunPod rents; without a pool it is not rented to endpoints. Prices are USD for an hour of one GPU."""

    pool: str
    price: _Price
    availability: str


class GpuCatalog(TypedDict):
    """All types of GPU."""

    gpus: list[GpuOffer]


def read_answer(kind: type[T], value: object) -> T:
    """Return an answer's JSON value as the TypedDict `kind`, without the fields that it does not have.

    Raises:
        BadAnswer: naming the first places that are not what they should be.
    """
    problems: list[str] = []
    found = _read(kind, value, "", problems)
    if problems:
        raise BadAnswer("; ".join(problems[:3]))
    return cast("T", found)


def _read(kind: Any, value: Any, place: str, problems: list[str]) -> Any:
    if is_typeddict(kind):
        return _table(kind, value, place, problems)
    arguments = get_args(kind)
    origin = get_origin(kind)
    if origin is list and isinstance(value, list):
        return [_read(arguments[0], item, f"{place}[{number}]", problems) for number, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: _read(arguments[1], item, f"{place}.{name}", problems) for name, item in value.items()}
    if not _is(kind, value):
        problems.append(f"{place}: got {_shown(value)}, expected {_expected(kind)}")
    return value


def _table(kind: Any, value: Any, place: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{place or 'the answer'}: got {_shown(value)}, expected a table")
        return {}
    before = f"{place}." if place else ""
    problems += [f"{before}{name}: missing" for name in sorted(kind.__required_keys__) if value.get(name) is None]
    hints = get_type_hints(kind, include_extras=True)
    given = {name: item for name, item in value.items() if name in hints and item is not None}
    return {name: _read(hints[name], item, before + name, problems) for name, item in given.items()}


def _is(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Annotated:
        base, pattern = get_args(kind)
        return type(value) is base and pattern.fullmatch(value) is not None
    if get_origin(kind) is Literal:
        return type(value) is str and value in get_args(kind)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind  # exactly: True is an int to isinstance


def _expected(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return f"a text like {get_args(kind)[1].pattern}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    names = {list: "a list", dict: "a table", str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names[get_origin(kind) or kind]


def _shown(value: Any) -> str:
    kinds = {dict: "a table", list: "a list", type(None): "nothing"}
    return kinds.get(type(value)) or repr(value)[:60]
