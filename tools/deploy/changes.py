"""The body that creates an endpoint, the patch that changes one, and the patch that takes it back: values in, values out.

Rules of the API that are kept here: `env` replaces, so that the endpoint's own variables are merged first; `gpu.pools` replaces the
excluded types too, so both are sent together; a floor and a list of CUDA versions exclude each other; a queue that grows by requests has
no idle time; a load balancer grows by requests only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.deploy.api import Json
from tools.deploy.order import NO_IDLE_TIME, Order
from tools.deploy.outcomes import Refused

__all__ = ["REPLACES_WORKERS", "create_body", "differences", "makes_release", "merge", "patch_for", "undo"]

TYPES = {"queue": "QUEUE", "lb": "LOAD_BALANCER"}

REPLACES_WORKERS = ("image", "env", "args", "disk", "ports", "registry")
"""Fields of which the API says that a change makes a release, which workers are replaced for."""

_LB_PORT = "80"
"""RunPod's default; said aloud, so that the worker opens its HTTP server whoever sets what."""
_QUEUE_DELAY = 4
_WORKERS = (0, 3)
_PLATFORM_PATIENCE = "RUNPOD_INIT_TIMEOUT"


def merge(current: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """Return an endpoint's variables with those asked for over them; an empty text removes one."""
    return {name: text for name, text in {**current, **asked}.items() if text or name not in asked}


def create_body(order: Order, *, name: str, image: str, cuda: str | None, requests: int, startup: float) -> Json:
    """Return the body of POST /v2/serverless.

    `requests` is what one worker answers at the same time, `startup` the seconds that its engine may take: RunPod would give it up after
    seven minutes. `cuda` is the floor where the order names none.

    Raises:
        Refused: when an endpoint of this kind cannot be that.
    """
    balanced = order.type == "lb"
    if not balanced and order.idle is not None and order.requests is not None:
        raise Refused(NO_IDLE_TIME)
    env = merge({}, order.env)
    env.setdefault(_PLATFORM_PATIENCE, f"{startup:.0f}")
    if balanced:
        env.setdefault("PORT", _LB_PORT)
    gpu: Json = {"pools": list(order.gpu), "count": order.count or 1}
    if order.exclude:
        gpu["excludedTypes"] = list(order.exclude)
    if floor := order.cuda or cuda:
        gpu["minCudaVersion"] = floor
    low, high = order.workers or _WORKERS
    workers: Json = {"min": low, "max": high} | ({"idleTimeout": order.idle} if order.idle else {})
    body: Json = {"name": name, "type": TYPES[order.type or "queue"], "image": image, "gpu": gpu, "env": env, "workers": workers}
    body["scaling"] = _scaling(order, balanced=balanced, requests=requests)
    if balanced:
        body["ports"] = _ports(env)
    return body | _plain(order)


def patch_for(order: Order, *, image: str, cuda: str | None, endpoint: Json) -> Json:
    """Return what PATCH must say for `endpoint` to become what is asked for: nothing where it is that already.

    Raises:
        Refused: when the endpoint cannot become that.
    """
    _check_possible(order, endpoint)
    wanted: Json = {"image": image, "env": merge(endpoint.get("env") or {}, order.env), **_plain(order)}
    if endpoint.get("type") == "LOAD_BALANCER":
        missing = [port for port in _ports(wanted["env"]) if port not in (endpoint.get("ports") or [])]
        wanted["ports"] = [*(endpoint.get("ports") or []), *missing]
    if order.delay is not None or order.requests is not None:
        wanted["scaling"] = _scaling(order, balanced=endpoint.get("type") == "LOAD_BALANCER", requests=1)
    patch = {field: value for field, value in wanted.items() if value != _held(endpoint, field)}
    if gpu := _gpu_patch(order, cuda, endpoint.get("gpu") or {}):
        patch["gpu"] = gpu
    workers = dict(endpoint.get("workers") or {})
    if order.workers:
        workers["min"], workers["max"] = order.workers
    if order.idle is not None:
        workers["idleTimeout"] = order.idle
    if order.requests is not None and endpoint.get("type") != "LOAD_BALANCER":
        workers.pop("idleTimeout", None)
    if workers != (endpoint.get("workers") or {}):
        patch["workers"] = workers
    return patch


def undo(patch: Json, endpoint: Json) -> Json:
    """Return the patch that gives `endpoint`, as it was, back each field that `patch` changes."""
    back = {field: _held(endpoint, field) for field in patch if field != "gpu"}
    if "gpu" in patch:
        gpu = endpoint.get("gpu") or {}
        empty: Json = {"allowedCudaVersions": [], "minCudaVersion": "", "excludedTypes": []}
        back["gpu"] = {name: gpu.get(name) or empty.get(name) for name in patch["gpu"]}
    return back


def makes_release(patch: Json) -> bool:
    """Tell whether the API makes a new version of the endpoint for this patch."""
    return any(field in patch for field in REPLACES_WORKERS)


def differences(patch: Json, endpoint: Json) -> list[str]:
    """Return one line for each thing that `patch` changes, variables one by one."""
    lines = []
    for field, new in patch.items():
        old = _held(endpoint, field)
        if field in {"env", "gpu", "workers", "scaling"}:
            old = old or {}
            prefix = "env." if field == "env" else f"{field}."
            names = sorted({*old, *new} if field in {"env", "scaling"} else new)
            lines += [
                f"{prefix}{name}: {_shown(old.get(name))} -> {_shown(new.get(name))}" for name in names if old.get(name) != new.get(name)
            ]
        elif old != new:
            lines.append(f"{field}: {_shown(old)} -> {_shown(new)}")
    return lines


def _held(endpoint: Json, field: str) -> Any:
    empty: Json = {"env": {}, "ports": [], "networkVolumes": [], "dataCenterIds": []}
    value = endpoint.get(field)
    return empty.get(field) if value is None else value


def _shown(value: Any) -> str:
    return "(none)" if value is None or value in ([], {}, "") else str(value)


def _plain(order: Order) -> Json:
    """Return the fields that say the same when an endpoint is made and when it is changed."""
    values: Json = {
        "disk": order.disk,
        "timeout": None if order.timeout is None else order.timeout * 1000,
        "registry": order.registry,
        "flashboot": None if order.flashboot is None else ("FLASHBOOT" if order.flashboot else "OFF"),
        "networkVolumes": None if order.volume is None else list(order.volume),
        "dataCenterIds": None if order.datacenter is None else list(order.datacenter),
    }
    return {field: value for field, value in values.items() if value is not None}


def _scaling(order: Order, *, balanced: bool, requests: int) -> Json:
    if balanced or order.requests is not None:
        return {"type": "REQUEST_COUNT", "requestCount": order.requests or requests}
    return {"type": "QUEUE_DELAY", "queueDelay": _QUEUE_DELAY if order.delay is None else order.delay}


def _ports(env: Mapping[str, str]) -> list[str]:
    numbers = [env.get("PORT", _LB_PORT), env.get("PORT_HEALTH", "")]
    return [f"{number}/http" for number in dict.fromkeys(numbers) if number.strip("0")]


def _gpu_patch(order: Order, cuda: str | None, held: Json) -> Json:
    patch: Json = {}
    excluded = held.get("excludedTypes") or []
    if order.gpu and (list(order.gpu) != held.get("pools") or list(order.exclude) != excluded):
        patch |= {"pools": list(order.gpu), "excludedTypes": list(order.exclude)}
    if order.count and order.count != held.get("count", 1):
        patch["count"] = order.count
    allowed, floor = held.get("allowedCudaVersions") or [], held.get("minCudaVersion") or ""
    if order.cuda:
        if order.cuda != floor or allowed:
            patch |= {"minCudaVersion": order.cuda, **({"allowedCudaVersions": []} if allowed else {})}
    elif cuda and not allowed and _version(floor) < _version(cuda):
        patch["minCudaVersion"] = cuda
    return patch


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")) if text else ()


def _check_possible(order: Order, endpoint: Json) -> None:
    name, problems = endpoint.get("name"), []
    held = next((short for short, long in TYPES.items() if long == endpoint.get("type")), None)
    if order.type and held and order.type != held:
        problems.append(f"type: endpoint {name} is type={held}, and an endpoint cannot change it; choose another endpoint=")
    if endpoint.get("cpu"):
        problems.append(f"endpoint: {name} runs on CPUs, expected one with GPUs; choose another endpoint=")
    if not order.workers and not (endpoint.get("workers") or {}).get("max"):
        problems.append(f"workers: endpoint {name} may have none (0..0), so that nothing would run; give workers=0..3 or the like")
    if order.idle is not None and held != "lb" and order.delay is None:
        if order.requests is not None:
            problems.append(NO_IDLE_TIME)
        elif (endpoint.get("scaling") or {}).get("type") == "REQUEST_COUNT":
            problems.append("idle: RunPod takes no idle time where requests decide over the workers of a queue; give delay= too")
    if order.delay is not None and held == "lb":
        problems.append("delay: a load balancer has no queue, expected requests=N")
    if problems:
        raise Refused(*problems)
