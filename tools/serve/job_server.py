"""A loopback twin of RunPod's job API, for the real SDK loop: it hands out jobs and records everything a worker says about them.

Routes, queries and answers are those that `runpod==1.12.0` asks for (captured from its loop); limits are RunPod's documented ones. A
worker finds it through `JobServer.environment()`. Not here: the public API (`/run`, `/stream`, `/openai`), time limits, lost jobs' retries.

    async with JobServer() as server:
        worker = start_worker(env={**os.environ, **server.environment()})
        job = server.submit({"prompt": "Hello"})
        async for value in job:
            ...
        assert (await job.wait_done(10))["output"] == job.stream

All times are seconds of `time.monotonic()`.
"""

import asyncio
import contextlib
import json
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, final
from uuid import uuid4

from aiohttp import web

from tools.serve.platform_job import Bell, Job

MAX_CHUNK_BYTES: Final = 1_000_000  # "Maximum size for a single streamed payload chunk is 1 MB" (RunPod, operation reference)
MAX_BODY_BYTES: Final = 64 << 20

Kind = Literal["job-take", "job-stop", "job-done", "job-stream", "ping"]


@dataclass(slots=True, kw_only=True)
class Fault:
    """What befalls `times` requests of a kind, after the next `skip` ones."""

    times: int
    skip: int = 0
    status: int | None = None
    """Answer with this status; None drops the connection."""
    delivered: bool = False
    """The server keeps what was posted; only its answer is lost."""
    retry_after: str = ""
    """The answer's header of this name."""
    silence: float = 0.0
    """Seconds before anything is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultedRequest:
    """One request that a fault befell."""

    at: float
    kind: Kind
    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """One answered job-take."""

    at: float
    worker: str
    batch_size: int
    in_progress: bool
    """What the worker said about itself."""
    jobs: tuple[str, ...]
    """Ids handed out; none when the long poll expired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """One heartbeat."""

    at: float
    worker: str
    jobs: tuple[str, ...]
    query: dict[str, str]


@dataclass(frozen=True, slots=True)
class Traffic:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that no correct worker does."""

    at: float
    kind: Literal[
        "wrong-key", "unknown-job", "not-json", "second-done", "done-after-stop", "chunk-after-done", "chunk-after-stop", "chunk-too-big"
    ]
    job: str
    detail: str = ""


@final
class JobServer:
    """The job API on a port of its own; an async context manager."""

    def __init__(self, *, endpoint: str = "endpoint", api_key: str = "job-key", poll_s: float = 20.0) -> None:
        """`poll_s` is how long job-take and job-stop hold a request that has nothing to say (a worker may need as long to exit)."""
        self.endpoint = endpoint
        self.api_key = api_key
        self.poll_s = poll_s
        self.latency_s = 0.0
        """Round trip added to every POST, half before it counts and half after."""
        self.faults: dict[Kind, Fault] = {}
        """Per kind of request; used up ones are removed."""
        self.refusals: list[FaultedRequest] = []
        self.jobs: dict[str, Job] = {}
        self.takes: list[Take] = []
        self.pings: list[Ping] = []
        self.problems: list[Problem] = []
        self.port = 0
        self.traffic: list[Traffic] | None = None
        """Every request, once a list is put here."""
        self.open_takes = 0
        """How many job-take polls are waiting now; above 0 a worker is ready."""
        self._queue: deque[Job] = deque()
        self._stops: defaultdict[str, list[str]] = defaultdict(list)
        self._bell = Bell()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "JobServer":
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._record])
        application.add_routes(self.routes())
        # Without handler_cancellation a poll whose client is gone would still take a job.
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, worker: str = "worker") -> dict[str, str]:
        """The variables that make the SDK in a worker process use this server; the SDK reads them when it is imported."""
        base = f"{self.url}/v2/{self.endpoint}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=FAKE",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=FAKE",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=FAKE",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=FAKE",
            "RUNPOD_AI_API_KEY": self.api_key,
            "RUNPOD_POD_ID": worker,
            "RUNPOD_ENDPOINT_ID": self.endpoint,
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_LOG_LEVEL": "INFO",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def submit(self, job_input: Any, *, id: str | None = None, text: str | None = None) -> Job:  # noqa: A002 - the platform's word
        """Queue a job; `job_input` is any JSON value, or `text` is its JSON, for what no value stands for."""
        job = Job(id or str(uuid4()), job_input, text)
        if job.id in self.jobs:
            raise ValueError(f"id: {job.id} was submitted before; expected a new one")
        self.jobs[job.id] = job
        self._queue.append(job)
        self._bell.ring()
        return job

    def stop(self, job_id: str) -> None:
        """Cancel a job: one in the queue is never handed out, for a running one its worker is told."""
        job = self.jobs[job_id]
        if job.has_ended:
            return
        if job in self._queue:
            self._queue.remove(job)
        elif job.worker is not None:
            self._stops[job.worker].append(job_id)
        job.end("CANCELLED")
        self._bell.ring()

    async def wait_worker(self, timeout: float) -> None:
        """Return once a worker asks for jobs; raises TimeoutError."""
        await self._bell.until(lambda: self.open_takes > 0, timeout, f"no worker asked for jobs within {timeout} s")

    async def wait_idle(self, timeout: float) -> None:
        """Return once no poll for jobs is open, as after the death of the last worker; raises TimeoutError."""
        await self._bell.until(lambda: self.open_takes == 0, timeout, f"a poll for jobs was open for {timeout} s")

    async def wait_ping(self, test: Callable[[Ping], bool], timeout: float) -> Ping:
        """The first recorded or coming heartbeat that satisfies `test`; raises TimeoutError."""
        await self._bell.until(lambda: any(map(test, self.pings)), timeout, f"no such ping within {timeout} s; pings: {self.pings[-3:]}")
        return next(filter(test, self.pings))

    def routes(self) -> list[web.RouteDef]:
        """The job API's routes, for this server's own port or another application's."""
        base = f"/v2/{self.endpoint}"
        return [
            web.get(f"{base}/job-take/{{worker}}", self._take),
            web.get(f"{base}/job-take-batch/{{worker}}", self._take),
            web.get(f"{base}/job-stop/{{worker}}", self._stop_signals),
            web.get(f"{base}/ping/{{worker}}", self._ping),
            web.post(f"{base}/job-done/{{worker}}/{{job}}", self._done),
            web.post(f"{base}/job-stream/{{worker}}/{{job}}", self._streamed),
        ]

    @web.middleware
    async def _record(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if self.traffic is not None:
            body = await request.read()
            self.traffic.append(Traffic(request.method, request.path, dict(request.query), dict(request.headers), body))
        return await handler(request)

    async def _take(self, request: web.Request) -> web.StreamResponse:
        refusal = await self._refusal(request, "job-take")
        if refusal:
            return refusal
        worker, batch = request.match_info["worker"], "job-take-batch" in request.path
        size = int(request.query.get("batch_size", "1"))
        self.open_takes += 1
        self._bell.ring()
        try:
            with contextlib.suppress(TimeoutError):
                await self._bell.until(lambda: bool(self._queue), self.poll_s)
        finally:
            self.open_takes -= 1
            self._bell.ring()
        if request.transport is None or request.transport.is_closing():  # the client left in the moment in which a job came
            return web.Response(status=204)
        taken = [self._queue.popleft() for _ in range(min(size, len(self._queue)))]
        for job in taken:
            job.status, job.worker, job.taken_at = "IN_PROGRESS", worker, time.monotonic()
            job.bell.ring()
        in_progress = request.query.get("job_in_progress") == "1"
        ids = tuple(job.id for job in taken)
        self.takes.append(Take(at=time.monotonic(), worker=worker, batch_size=size, in_progress=in_progress, jobs=ids))
        if not taken:
            return web.Response(status=204)
        values = [_handed_out(job) for job in taken]
        return web.Response(text=f"[{','.join(values)}]" if batch else values[0], content_type="application/json")

    async def _stop_signals(self, request: web.Request) -> web.StreamResponse:
        refusal = await self._refusal(request, "job-stop")
        if refusal:
            return refusal
        stops = self._stops[request.match_info["worker"]]
        with contextlib.suppress(TimeoutError):
            await self._bell.until(lambda: bool(stops), self.poll_s)
        if not stops:
            return web.Response(status=204)
        told = stops.copy()
        stops.clear()
        return web.json_response({"jobsToStop": told})

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        refusal = await self._refusal(request, "ping")
        if refusal:
            return refusal
        ids = tuple(filter(None, request.query.get("job_id", "").split(",")))
        self.pings.append(Ping(at=time.monotonic(), worker=request.match_info["worker"], jobs=ids, query=dict(request.query)))
        self._bell.ring()
        return web.Response()

    async def _done(self, request: web.Request) -> web.StreamResponse:
        return await self._posted(request, "job-done", self._record_done)

    async def _streamed(self, request: web.Request) -> web.StreamResponse:
        return await self._posted(request, "job-stream", self._record_chunk)

    async def _posted(self, request: web.Request, kind: Kind, record: Callable[[Job, bytes, web.Request], None]) -> web.StreamResponse:
        body = await request.read()
        await asyncio.sleep(self.latency_s / 2)
        job, fault = self.jobs.get(request.match_info["job"]), self.faults.get(kind)
        kept = job is not None and fault is not None and fault.delivered and not fault.skip
        if job and kept:
            record(job, body, request)
        if refusal := await self._refusal(request, kind):
            return refusal
        if job is None:
            self._problem("unknown-job", request.match_info["job"], kind)
            return web.Response(status=404)
        record(job, body, request)
        await asyncio.sleep(self.latency_s / 2)
        return web.Response()

    def _record_done(self, job: Job, body: bytes, request: web.Request) -> None:
        value = self._parsed(job, body)
        if value.get("status") == "IN_PROGRESS":
            job.progress.append(value.get("output"))
            return
        job.done_count += 1
        if job.done_count > 1:
            self._problem("second-done", job.id)
        elif job.status == "CANCELLED":
            self._problem("done-after-stop", job.id)
        if job.result is None:
            job.result = {**value, "isStream": request.query.get("isStream") == "true"}
            if not job.has_ended:
                job.end("FAILED" if "error" in value else "COMPLETED")
            job.bell.ring()

    def _record_chunk(self, job: Job, body: bytes, _: web.Request) -> None:
        if len(body) > MAX_CHUNK_BYTES:
            self._problem("chunk-too-big", job.id, f"{len(body)} bytes, at most {MAX_CHUNK_BYTES}")
        if job.has_ended:
            self._problem("chunk-after-stop" if job.status == "CANCELLED" else "chunk-after-done", job.id, repr(body[:80]))
        job.stream.append(self._parsed(job, body).get("output"))
        job.arrivals.append(time.monotonic())
        job.bell.ring()

    def _parsed(self, job: Job, body: bytes) -> dict[str, Any]:
        """The posted object; NaN and Infinity, which the SDK lets through, are accepted and recorded."""

        def accept(constant: str) -> float:
            self._problem("not-json", job.id, f"{constant} in {body[:80]!r}")
            return float(constant)

        try:
            value = json.loads(body, parse_constant=accept)
        except ValueError as error:
            value = str(error)
        if isinstance(value, dict):
            return value
        self._problem("not-json", job.id, f"expected an object, got {body[:80]!r}")
        return {"error": f"the worker posted no JSON object: {body[:80]!r}"}

    async def _refusal(self, request: web.Request, kind: Kind) -> web.Response | None:
        """What to answer instead, if the key is wrong or a fault is due."""
        if request.headers.get("Authorization") != self.api_key:
            self._problem("wrong-key", request.match_info.get("job", ""), f"{kind}: {request.headers.get('Authorization')!r}")
            return web.Response(status=401)
        fault = self.faults.get(kind)
        if fault is None:
            return None
        if fault.skip > 0:
            fault.skip -= 1
            return None
        fault.times -= 1
        if fault.times <= 0:
            del self.faults[kind]
        self.refusals.append(FaultedRequest(at=time.monotonic(), kind=kind, job=request.match_info.get("job", "")))
        await asyncio.sleep(fault.silence)
        if fault.status is None and request.transport is not None:
            request.transport.abort()
        return web.Response(status=fault.status or 500, headers={"Retry-After": fault.retry_after} if fault.retry_after else None)

    def _problem(self, kind: Any, job: str, detail: str = "") -> None:
        self.problems.append(Problem(at=time.monotonic(), kind=kind, job=job, detail=detail))


def _handed_out(job: Job) -> str:
    """Return a job as it stands in the answer of job-take."""
    text = json.dumps(job.input) if job.text is None else job.text
    return f'{{"id": {json.dumps(job.id)}' + (f', "input": {text}}}' if text else "}")
