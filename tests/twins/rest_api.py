"""The used part of RunPod's REST API v2, its gateway and a container registry on loopback, from their documented shapes.

Bodies are held against `schema` (rules of api-reference-v2/openapi.json): a wrong one gets the documented 422. What workers do is a script
for each image: each look at the workers takes its next scene, and the last one stays. Faults befall the next matching requests.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from jsonschema import Draft202012Validator

from tests.tools.deploy.registry import Registry
from tests.tools.deploy.schema import CREATE, UPDATE

KEY = "rpa_0123456789ABCDEFGH"
Scene = list[tuple[str, bool]]
"""The workers at one look: state, and whether each runs the newest version."""

_QUEUE_PATHS = {"run": "run", "runSync": "runsync", "status": "status/{job_id}", "stream": "stream/{job_id}"}
_QUEUE_PATHS |= {"cancel": "cancel/{job_id}", "retry": "retry/{job_id}", "purgeQueue": "purge-queue", "health": "health"}

WORKS: list[Scene] = [[("INITIALIZING", True)], [("IDLE", True)]]
SLOW: list[Scene] = [
    [("RUNNING", False)],
    [("RUNNING", False), ("INITIALIZING", True)],
    [("RUNNING", False), ("IDLE", True)],
    [("IDLE", True)],
]
LINGERS: list[Scene] = [[("RUNNING", False)], [("RUNNING", False), ("IDLE", True)]]
SICK: list[Scene] = [[("INITIALIZING", True)], [("UNHEALTHY", True)]]
NO_GPU: list[Scene] = [[("THROTTLED", True)]]
ON_REQUEST: list[Scene] = [[]]


@dataclass(slots=True, kw_only=True)
class Fault:
    """What befalls the next `times` requests of a method whose path ends so."""

    method: str
    path: str = ""
    status: int | None = 500
    """None drops the connection."""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    done: bool = False
    """The request is carried out; only its answer is lost."""


def problem(status: int, title: str, detail: str, errors: list[str] | None = None, headers: dict[str, str] | None = None) -> web.Response:
    """An error of RFC 9457, as the API's description has it."""
    body = {"title": title, "status": status, "detail": detail} | ({"errors": errors} if errors else {})
    return web.Response(status=status, text=json.dumps(body), content_type="application/problem+json", headers=headers)


class Twin:
    """RunPod and a registry, as an async context manager."""

    def __init__(self) -> None:
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, int] = {}
        self.scripts: dict[str, list[Scene]] = {}
        """By image; WORKS where none is given."""
        self.answers: dict[str, Callable[[web.Request, Any], Any]] = {}
        """By image; see `whole` and the like; `answer` where none is given."""
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, Any]] = []
        """Method, path and body of each request to the REST API."""
        self.asked: list[tuple[str, str, Any]] = []
        """The same of requests to endpoints."""
        self.address = ""
        self.log = ["loading", "CUDA error: no kernel image"]
        self.lag = 0
        """Looks at the workers after a change that still find the old release, and its workers up to date."""
        self.grown = asyncio.Event()
        self.prices: dict[str, float] = {}
        """USD an hour of a GPU, by pool."""
        self._looks: dict[str, int] = {}
        self._registry = Registry()

    async def __aenter__(self) -> Twin:
        application = web.Application()
        for method, path, handler in (
            ("GET", "/v2/catalog/gpus", self._gpus),
            ("GET", "/v2/serverless", self._list),
            ("POST", "/v2/serverless", self._create),
            ("GET", "/v2/serverless/{id}", self._get),
            ("PATCH", "/v2/serverless/{id}", self._update),
            ("DELETE", "/v2/serverless/{id}", self._delete),
            ("GET", "/v2/serverless/{id}/workers", self._workers),
            ("GET", "/v2/serverless/{id}/releases", self._releases),
            ("GET", "/v2/serverless/{id}/workers/{worker}/logs", self._logs),
        ):
            application.router.add_route(method, path, self._guarded(handler))
        for path in ("/queue/{id}/{route:.*}", "/balanced/{id}/{route:.*}"):
            application.router.add_route("*", path, self._gateway)
        application.router.add_get("/v2/me/{name}/manifests/{which}", self._registry.manifest)
        application.router.add_get("/v2/me/{name}/blobs/{digest}", self._registry.blob)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        self.image = self.push("worker", "1", IMAGE_ARCHITECTURES="80,86,89,90", IMAGE_CUDA="12.6")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """What makes the command line find it."""
        url = f"http://{self.address}"
        return {"RUNPOD_API_BASE_URL": url, "RUNPOD_ENDPOINT_BASE_URL": f"{url}/queue", "RUNPOD_API_KEY": KEY}

    @property
    def changes(self) -> list[tuple[str, str, Any]]:
        """Requests that change something."""
        return [one for one in self.seen if one[0] != "GET"]

    async def until(self, test: Callable[[], bool]) -> None:
        """Return once `test` holds; requests make it looked at."""
        while not test():
            self.grown.clear()
            await asyncio.wait_for(self.grown.wait(), 30)

    def push(self, name: str, tag: str, /, architecture: str = "amd64", **variables: str) -> str:
        """Put an image into the registry and return its name by digest."""
        return f"{self.address}/me/{name}@{self._registry.push(name, tag, architecture, variables)}"

    def add(self, name: str, **fields: Any) -> dict[str, Any]:
        """Put an endpoint there, as if it had been made before."""
        body = {
            "name": name,
            "type": "QUEUE",
            "image": self.image,
            "gpu": {"pools": ["ADA_24"]},
            "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
        }
        return self._add({**body, **fields})

    def _add(self, body: dict[str, Any]) -> dict[str, Any]:
        endpoint = self.describe(body)
        identity = endpoint["id"]
        self.endpoints[identity], self.versions[identity], self._looks[identity] = endpoint, 1, 0
        return endpoint

    def describe(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the API says about an endpoint that was made with `body`."""
        identity = f"ep{len(self.versions):06d}"
        balanced = body["type"] == "LOAD_BALANCER"
        workers = {"min": 0, "max": 3, "idleTimeout": 10} | body.get("workers", {})
        return {
            "id": identity,
            "args": "",
            "disk": 20,
            "ports": [],
            "env": {},
            "registry": None,
            "dataCenterIds": [],
            "networkVolumes": [],
            "timeout": 300000,
            "flashboot": "OFF",
            "createdAt": "2026-06-01T12:00:00Z",
            **body,
            **_compute(body),
            "workers": workers,
            "requestUrls": {"base": f"http://{self.address}/balanced/{identity}", "health": "/ping"}
            if balanced
            else {name: f"http://{self.address}/queue/{identity}/{path}" for name, path in _QUEUE_PATHS.items()},
        }

    def _guarded(self, handler: Callable[[web.Request, Any], Any]) -> Callable[[web.Request], Any]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            body = await request.json() if request.can_read_body else None
            self.seen.append((request.method, request.path, body))
            self.grown.set()
            if request.headers.get("Authorization") != f"Bearer {KEY}":
                return problem(401, "Unauthorized", "missing bearer token")
            fault = next((one for one in self.faults if one.method == request.method and request.path.endswith(one.path)), None)
            if fault is None:
                return await self._known(request, handler, body)
            fault.times -= 1
            self.faults = [one for one in self.faults if one.times > 0]
            if fault.done:
                await self._known(request, handler, body)
            if fault.status is None:
                assert request.transport
                request.transport.abort()
                return web.Response()
            said = fault.body or {"title": "Error", "status": fault.status, "detail": "it did not work"}
            return web.Response(status=fault.status, text=json.dumps(said), content_type="application/problem+json", headers=fault.headers)

        return guarded

    async def _known(self, request: web.Request, handler: Callable[[web.Request, Any], Any], body: Any) -> web.StreamResponse:
        identity = request.match_info.get("id")
        if identity and identity not in self.endpoints:
            return problem(404, "Not Found", "endpoint not found")
        response: web.StreamResponse = await handler(request, body)
        return response

    async def _gpus(self, *_: Any) -> web.Response:
        pools = {
            "NVIDIA GeForce RTX 4090": "ADA_24",
            "NVIDIA L4": "ADA_24",
            "NVIDIA A40": "AMPERE_48",
            "NVIDIA H100 80GB HBM3": "ADA_80_PRO",
        }
        pools |= {"NVIDIA RTX A4000": "AMPERE_16", "NVIDIA RTX 2000 Ada Generation": "AMPERE_16", "NVIDIA B200": "BLACKWELL_180"}
        return web.json_response(
            {
                "gpus": [
                    {"id": name, "name": name, "pool": pool, "price": {"serverless": self.prices.get(pool)}}
                    for name, pool in {**pools, "NVIDIA Next": "ADA_24"}.items()
                ]
            }
        )

    async def _list(self, *_: Any) -> web.Response:
        return web.json_response({"endpoints": list(self.endpoints.values())})

    async def _create(self, _: web.Request, body: Any) -> web.Response:
        errors = [f"{'.'.join(map(str, error.path)) or '$'}: {error.message}" for error in Draft202012Validator(CREATE).iter_errors(body)]
        if errors:
            return problem(422, "Unprocessable Entity", "Request validation failed.", errors)
        return web.json_response(self._add(body), status=201)

    async def _get(self, request: web.Request, _: Any) -> web.Response:
        return web.json_response(self.endpoints[request.match_info["id"]])

    async def _update(self, request: web.Request, body: Any) -> web.Response:
        errors = [f"{'.'.join(map(str, error.path)) or '$'}: {error.message}" for error in Draft202012Validator(UPDATE).iter_errors(body)]
        if errors:
            return problem(422, "Unprocessable Entity", "Request validation failed.", errors)
        identity = request.match_info["id"]
        before = json.dumps(self.endpoints[identity])
        self.endpoints[identity] = patched(self.endpoints[identity], body)
        if json.dumps(self.endpoints[identity]) != before:
            self.versions[identity] += 1
            self._looks[identity] = 0
        return web.json_response(self.endpoints[identity])

    async def _delete(self, request: web.Request, _: Any) -> web.Response:
        del self.endpoints[request.match_info["id"]]
        return web.Response(status=204)

    def _scene(self, identity: str) -> Scene:
        script = self.scripts.get(self.endpoints[identity]["image"], WORKS)
        return script[min(self._looks[identity], len(script) - 1)]

    async def _workers(self, request: web.Request, _: Any) -> web.Response:
        identity = request.match_info["id"]
        lagging, self.lag = self.lag > 0 and self.versions[identity] > 1, max(0, self.lag - 1)
        version, image = self.versions[identity] - lagging, self.endpoints[identity]["image"]
        workers = [
            {
                "id": f"w{version}{number}" if fresh else f"old{number}",
                "status": status,
                "isStale": not fresh,
                "version": version if fresh else version - 1,
                "gpuCount": 1,
                "image": image if fresh else "older",
            }
            for number, (status, fresh) in enumerate([("IDLE", True)] if lagging else self._scene(identity))
        ]
        self._looks[identity] += not lagging
        return web.json_response({"endpointVersion": version, "workers": workers, "summary": _counted(workers)})

    async def _releases(self, request: web.Request, _: Any) -> web.Response:
        identity = request.match_info["id"]
        rollout = {"inProgress": False, "workersOnLatest": 0, "workersTotal": 0, "percentOnLatest": 0}
        return web.json_response({"endpointVersion": self.versions[identity], "rollout": rollout, "releases": []})

    async def _logs(self, request: web.Request, _: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        for line in self.log:
            event = {"ts": "2026-06-01T12:05:04Z", "source": "container", "line": line}
            await response.write(f"id: 2026-06-01T12:05:04Z/1\ndata: {json.dumps(event)}\n\n".encode())
        await asyncio.Event().wait()  # it stays open, as the real one does
        return response

    async def _gateway(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.method, request.path, body))
        self.grown.set()
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({}, status=401)
        endpoint = self.endpoints.get(request.match_info["id"])
        if endpoint is None:
            return web.Response(status=404)
        worker: Callable[[web.Request, Any], Any] = self.answers.get(endpoint["image"], answer)
        response: web.StreamResponse = await worker(request, body)
        return response


def _compute(body: dict[str, Any]) -> dict[str, Any]:
    if "cpu" in body:
        return {"cpu": [{**one, "memory": 2 * one["vcpuCount"]} for one in body["cpu"]]}
    return {"gpu": {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None, **body["gpu"]}}


def _counted(workers: list[dict[str, Any]]) -> dict[str, int]:
    states = Counter(worker["status"].lower() for worker in workers)
    return {**{state: states[state] for state in ("running", "idle", "initializing", "throttled", "unhealthy")}, "total": len(workers)}


def patched(endpoint: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """What PATCH makes of an endpoint, by the API's description: tables are merged, but for `env` and `scaling`, which replace."""
    after = {**endpoint, **{name: value for name, value in body.items() if name not in {"gpu", "workers"}}}
    gpu = dict(body.get("gpu", {}))
    if "pools" in gpu and not gpu.get("excludedTypes"):  # pools without exclusions clear them
        gpu["excludedTypes"] = []
    if gpu.get("minCudaVersion") == "":
        gpu["minCudaVersion"] = None
    if "gpu" in endpoint:
        after["gpu"] = {**endpoint["gpu"], **gpu}
    elif "cpu" in body:
        after |= _compute(body)
    after["workers"] = {**endpoint["workers"], **body.get("workers", {})}
    if after["type"] == "QUEUE" and after["scaling"]["type"] == "REQUEST_COUNT":  # such a queue has no idle time
        after["workers"].pop("idleTimeout", None)
    return after


async def answer(request: web.Request, body: Any) -> web.StreamResponse:
    """What a good worker answers."""
    if request.path.endswith("/models"):
        return web.json_response({"object": "list", "data": [{"id": "org/model", "object": "model"}]})
    if request.path.endswith("/runsync"):
        return web.json_response({"id": "sync-1", "status": "COMPLETED", "output": [{"choices": [{"text": "Hello"}]}]})
    if body and body.get("stream"):
        frames = [{"choices": [{"delta": {"content": "Hello"}}]}, {"choices": []}]
        return web.Response(
            text="".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n", content_type="text/event-stream"
        )
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": "Hello"}}]})
