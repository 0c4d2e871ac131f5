"""The body that creates an endpoint, the patch that changes one, and the patch that takes it back: values in, values out.

Rules of the API that are kept here: `env` replaces, so that the endpoint's own variables are merged first; `gpu.pools` replaces the
excluded types too, so both are sent together; a floor and a list of CUDA versions exclude each other; a queue that grows by requests has
no idle time; a load balancer grows by requests only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.deploy.api_answers import Endpoint, GpuSelection
from tools.deploy.deploy_errors import DeployRefused
from tools.deploy.deploy_options import NO_IDLE_TIME, DeployOptions
from tools.deploy.runpod_api import Json

__all__ = ["REPLACES_WORKERS", "create_body", "differences", "makes_release", "merge", "patch_for", "undo"]

TYPES = {"queue": "QUEUE", "lb": "LOAD_BALANCER"}

REPLACES_WORKERS = ("image", "env", "args", "disk", "ports", "registry")
"""Fields of which the API says that a change makes a release, which workers are replaced for."""

_LB_PORT = "80"
"""RunPod's default, written down so that the worker opens its HTTP server for it."""
_QUEUE_DELAY = 4
_WORKERS = (0, 3)
_PLATFORM_PATIENCE = "RUNPOD_INIT_TIMEOUT"


def merge(current: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """Return an endpoint's variables, changed by those of the command line; an empty text removes one."""
    return {name: text for name, text in {**current, **asked}.items() if text or name not in asked}


def create_body(options: DeployOptions, *, name: str, image: str, cuda: str | None, requests: int, startup: float) -> Json:
    """Return the body of POST /v2/serverless.

    `requests` is what one worker answers at the same time, `startup` the seconds that its engine may take: RunPod would give it up after
    seven minutes. `cuda` is the floor where the options name none.

    Raises:
        DeployRefused: when an endpoint of this kind cannot be that.
    """
    balanced = options.type == "lb"
    if not balanced and options.idle is not None and options.requests is not None:
        raise DeployRefused(NO_IDLE_TIME)
    env = merge({}, options.env)
    env.setdefault(_PLATFORM_PATIENCE, f"{startup:.0f}")
    if balanced:
        env.setdefault("PORT", _LB_PORT)
    low, high = options.workers or _WORKERS
    workers: Json = {"min": low, "max": high} | ({"idleTimeout": options.idle} if options.idle else {})
    body: Json = {"name": name, "type": TYPES[options.type or "queue"], "image": image, **_compute(options, cuda), "env": env}
    body["workers"] = workers
    body["scaling"] = _scaling(options, balanced=balanced, requests=requests)
    if balanced:
        body["ports"] = _ports(env)
    return body | _plain(options)


def _compute(options: DeployOptions, cuda: str | None) -> Json:
    """Return what workers run on."""
    if options.cpu:
        return {"cpu": [{"id": flavor, "vcpuCount": count} for flavor, count in options.cpu]}
    gpu: Json = {"pools": list(options.gpu), "count": options.count or 1}
    if options.exclude:
        gpu["excludedTypes"] = list(options.exclude)
    if floor := options.cuda or cuda:
        gpu["minCudaVersion"] = floor
    return {"gpu": gpu}


def patch_for(options: DeployOptions, *, image: str, cuda: str | None, endpoint: Endpoint) -> Json:
    """Return what PATCH must say for `endpoint` to become what is asked for: nothing where it is that already.

    Raises:
        DeployRefused: when the endpoint cannot become that.
    """
    _check_possible(options, endpoint)
    wanted: Json = {"image": image, "env": merge(endpoint.get("env") or {}, options.env), **_plain(options)}
    if endpoint.get("type") == "LOAD_BALANCER":
        missing = [port for port in _ports(wanted["env"]) if port not in (endpoint.get("ports") or [])]
        wanted["ports"] = [*(endpoint.get("ports") or []), *missing]
    if options.delay is not None or options.requests is not None:
        wanted["scaling"] = _scaling(options, balanced=endpoint.get("type") == "LOAD_BALANCER", requests=1)
    patch = {field: value for field, value in wanted.items() if value != _held(endpoint, field)}
    if options.cpu:
        if (cpu := _compute(options, cuda)["cpu"]) != _cpu_held(endpoint):
            patch["cpu"] = cpu
    elif not endpoint.get("cpu") and (gpu := _gpu_patch(options, cuda, endpoint.get("gpu") or {})):
        patch["gpu"] = gpu
    workers: Json = {**(endpoint.get("workers") or {})}
    if options.workers:
        workers["min"], workers["max"] = options.workers
    if options.idle is not None:
        workers["idleTimeout"] = options.idle
    if options.requests is not None and endpoint.get("type") != "LOAD_BALANCER":
        workers.pop("idleTimeout", None)
    if workers != (endpoint.get("workers") or {}):
        patch["workers"] = workers
    return patch


def undo(patch: Json, endpoint: Endpoint) -> Json:
    """Return the patch that gives `endpoint`, as it was, back each field that `patch` changes."""
    back = {field: _held(endpoint, field) for field in patch if field not in {"gpu", "cpu"}}
    if "cpu" in patch:
        back["cpu"] = _cpu_held(endpoint)
    if "gpu" in patch:
        gpu: Json = {**(endpoint.get("gpu") or {})}
        empty: Json = {"allowedCudaVersions": [], "minCudaVersion": "", "excludedTypes": []}
        back["gpu"] = {name: gpu.get(name) or empty.get(name) for name in patch["gpu"]}
    return back


def makes_release(patch: Json) -> bool:
    """Tell whether the API makes a new version of the endpoint for this patch."""
    return any(field in patch for field in REPLACES_WORKERS)


def differences(patch: Json, endpoint: Mapping[str, object]) -> list[str]:
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


def _held(endpoint: Mapping[str, object], field: str) -> Any:
    empty: Json = {"env": {}, "ports": [], "networkVolumes": [], "dataCenterIds": []}
    value = endpoint.get(field)
    return empty.get(field) if value is None else value


def _cpu_held(endpoint: Endpoint) -> list[Json]:
    return [{"id": one["id"], "vcpuCount": one["vcpuCount"]} for one in endpoint.get("cpu") or []]


def _shown(value: Any) -> str:
    return "(none)" if value is None or value in ([], {}, "") else str(value)


def _plain(options: DeployOptions) -> Json:
    """Return the fields that say the same when an endpoint is made and when it is changed."""
    values: Json = {
        "disk": options.disk,
        "timeout": None if options.timeout is None else options.timeout * 1000,
        "registry": options.registry,
        "flashboot": None if options.flashboot is None else ("FLASHBOOT" if options.flashboot else "OFF"),
        "networkVolumes": None if options.volume is None else list(options.volume),
        "dataCenterIds": None if options.datacenter is None else list(options.datacenter),
    }
    return {field: value for field, value in values.items() if value is not None}


def _scaling(options: DeployOptions, *, balanced: bool, requests: int) -> Json:
    if balanced or options.requests is not None:
        return {"type": "REQUEST_COUNT", "requestCount": options.requests or requests}
    return {"type": "QUEUE_DELAY", "queueDelay": _QUEUE_DELAY if options.delay is None else options.delay}


def _ports(env: Mapping[str, str]) -> list[str]:
    numbers = [env.get("PORT", _LB_PORT), env.get("PORT_HEALTH", "")]
    return [f"{number}/http" for number in dict.fromkeys(numbers) if number.strip("0")]


def _gpu_patch(options: DeployOptions, cuda: str | None, held: GpuSelection) -> Json:
    patch: Json = {}
    excluded = held.get("excludedTypes") or []
    if options.gpu and (list(options.gpu) != held.get("pools") or list(options.exclude) != excluded):
        patch |= {"pools": list(options.gpu), "excludedTypes": list(options.exclude)}
    if options.count and options.count != held.get("count", 1):
        patch["count"] = options.count
    allowed, floor = held.get("allowedCudaVersions") or [], held.get("minCudaVersion") or ""
    if options.cuda:
        if options.cuda != floor or allowed:
            patch |= {"minCudaVersion": options.cuda, **({"allowedCudaVersions": []} if allowed else {})}
    elif cuda and not allowed and _version(floor) < _version(cuda):
        patch["minCudaVersion"] = cuda
    return patch


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")) if text else ()


def _check_possible(options: DeployOptions, endpoint: Endpoint) -> None:
    name, problems = endpoint.get("name"), []
    held = next((short for short, long in TYPES.items() if long == endpoint.get("type")), None)
    if options.type and held and options.type != held:
        problems.append(f"type: endpoint {name} is type={held}, and an endpoint cannot change it; choose another endpoint=")
    if options.env and endpoint.get("env") is None:
        problems.append(f"env: RunPod does not tell the variables of endpoint {name}, and would replace them; try again later")
    if endpoint.get("cpu") and (options.gpu or options.count or options.cuda):
        problems.append(f"gpu: endpoint {name} runs on CPUs, and an endpoint cannot change that; choose another endpoint=")
    if options.cpu and not endpoint.get("cpu"):
        problems.append(f"cpu: endpoint {name} runs on GPUs, and an endpoint cannot change that; choose another endpoint=")
    if not options.workers and not (endpoint.get("workers") or {}).get("max"):
        problems.append(f"workers: endpoint {name} may have none (0..0), so that nothing would run; give workers=0..3 or the like")
    if options.idle is not None and held != "lb" and options.delay is None:
        if options.requests is not None:
            problems.append(NO_IDLE_TIME)
        elif (endpoint.get("scaling") or {}).get("type") == "REQUEST_COUNT":
            problems.append("idle: RunPod takes no idle time where requests decide over the workers of a queue; give delay= too")
    if options.delay is not None and held == "lb":
        problems.append("delay: a load balancer has no queue, expected requests=N")
    if problems:
        raise DeployRefused(*problems)
