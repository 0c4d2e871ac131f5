"""What the platform keeps about each job: its policy, its state, its result, and when each of them ends.

Figures are RunPod's documented ones (docs.runpod.io: serverless/endpoints/send-requests, operation-reference).
Unverified, since undocumented: policies outside the documented bounds are refused with a 400, not clamped; a job past its execution
timeout is taken from the worker, which continues its others (the documentation has "the worker stops"); `?ttl=` counts from the call.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from tools.serve.job_server import JobServer
from tools.serve.platform_job import Job

__all__ = ["JobTable", "PlatformLimits", "RequestRefused", "TrackedJob"]

State = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
_RECORDS_KEPT = 1000
_MAX_TTL_S = 7 * 86400.0


class RequestRefused(Exception):
    """A request that is not served: the HTTP status and what is wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformLimits:
    """RunPod's figures, in seconds, bytes and jobs."""

    run_bytes: int = 10_000_000
    runsync_bytes: int = 20_000_000
    run_kept_s: float = 1800.0
    runsync_kept_s: float = 60.0
    wait_s: float = 90.0
    execution_s: float = 600.0
    least_execution_s: float = 5.0
    ttl_s: float = 86400.0
    least_ttl_s: float = 10.0
    queue: int = 500
    """Queued jobs at which one worker's endpoint answers 429 (`MAX_WORKERS * 500`)."""


@dataclass(slots=True, kw_only=True)
class TrackedJob:
    """One job in the table."""

    job: Job
    execution_s: float
    ttl_s: float
    kept_s: float
    timed_out: bool = False
    streamed: int = 0
    """How many streamed values /stream has handed out."""
    counted: bool = False
    watch: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """The job's state in the words of the public API."""
        return "TIMED_OUT" if self.timed_out else self.job.status

    def shown(self) -> dict[str, Any]:
        """What /status and /runsync say."""
        job, now = self.job, time.monotonic()
        shown: dict[str, Any] = {"id": job.id, "status": self.state}
        if job.taken_at is not None:
            shown |= {"delayTime": _milliseconds(job.taken_at - job.submitted_at), "workerId": job.worker}
            shown["executionTime"] = _milliseconds((job.ended_at or now) - job.taken_at)
        if job.has_ended:
            shown |= {name: value for name, value in (job.result or {}).items() if name in {"output", "error"}}
        elif job.progress:
            shown["output"] = job.progress[-1]
        if self.timed_out:
            shown["error"] = f"job timed out: it ran longer than its execution timeout of {self.execution_s:g} s"
        return shown


class JobTable:
    """All jobs of one endpoint; an async context manager that ends every open job when it is left."""

    def __init__(self, jobs: JobServer, limits: PlatformLimits) -> None:
        self.jobs, self.limits = jobs, limits
        self.entries: dict[str, TrackedJob] = {}
        self.ended: Counter[State] = Counter()
        self.retried = 0
        self._trimming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> JobTable:
        self._trimming = asyncio.create_task(self._trim())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop_all()
        watches = [entry.watch for entry in self.entries.values()]
        tasks = [task for task in (self._trimming, *watches) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def submit(self, job_input: Any, *, kept_s: float, policy: object = None, prefix: str = "") -> TrackedJob:
        """Queue a job.

        Raises:
            RequestRefused: 400 when the policy does not fit, 429 when the queue is full.
        """
        execution_s, ttl_s = self._policy(policy)
        if len(self.entries) >= self.limits.queue and self.counts()["inQueue"] >= self.limits.queue:
            raise RequestRefused(429, f"the queue holds {self.limits.queue} jobs, which is RunPod's limit for one worker; try again later")
        job = self.jobs.submit(job_input, id=prefix + str(uuid4()))
        return self._enter(TrackedJob(job=job, execution_s=execution_s, ttl_s=ttl_s, kept_s=kept_s))

    def find(self, job_id: str) -> TrackedJob:
        """The entry of a job; raises RequestRefused, 404, when there is none or it is gone."""
        entry = self.entries.get(job_id)
        if entry is None:
            raise RequestRefused(404, f"job {job_id}: not found; it never was, or its result is no longer kept")
        return entry

    def stop(self, entry: TrackedJob) -> None:
        """Cancel a job in any state; its worker receives the id with its next poll for jobs to stop."""
        self.jobs.stop(entry.job.id)

    def stop_all(self) -> None:
        """Cancel every job that has not ended."""
        for entry in self.entries.values():
            self.stop(entry)

    def purge(self) -> int:
        """Cancel every job that no worker has taken; return their number."""
        queued = [entry for entry in self.entries.values() if entry.state == "IN_QUEUE"]
        for entry in queued:
            self.stop(entry)
        return len(queued)

    def retry(self, entry: TrackedJob) -> TrackedJob:
        """Queue the same input under the same id; raises RequestRefused, 400, unless the job failed or timed out."""
        if entry.state not in {"FAILED", "TIMED_OUT"}:
            raise RequestRefused(400, f"job {entry.job.id}: it is {entry.state}, expected FAILED or TIMED_OUT")
        self.forget(entry.job.id)
        self.retried += 1
        job = self.jobs.submit(entry.job.input, id=entry.job.id)
        return self._enter(TrackedJob(job=job, execution_s=entry.execution_s, ttl_s=entry.ttl_s, kept_s=entry.kept_s))

    def forget(self, job_id: str) -> None:
        """Drop a job with all that is known about it; one that still runs is cancelled first."""
        entry = self.entries.pop(job_id, None)
        if entry is None:
            return
        self.stop(entry)
        self._count(entry)
        if entry.watch and entry.watch is not asyncio.current_task():
            entry.watch.cancel()
        del self.jobs.jobs[job_id]

    def forget_after(self, entry: TrackedJob, seconds: float) -> None:
        """Drop this entry, whatever its state then."""

        def forget() -> None:
            if self.entries.get(entry.job.id) is entry:
                self.forget(entry.job.id)

        asyncio.get_running_loop().call_later(seconds, forget)

    def counts(self) -> dict[str, int]:
        """The numbers of jobs that /health shows; those that ended count for ever."""
        now = Counter(entry.state for entry in self.entries.values())
        return {
            "completed": self.ended["COMPLETED"],
            "failed": self.ended["FAILED"] + self.ended["TIMED_OUT"],
            "inProgress": now["IN_PROGRESS"],
            "inQueue": now["IN_QUEUE"],
            "retried": self.retried,
        }

    def _enter(self, entry: TrackedJob) -> TrackedJob:
        self.entries[entry.job.id] = entry
        entry.watch = asyncio.create_task(self._watch(entry))
        return entry

    async def _watch(self, entry: TrackedJob) -> None:
        """Follow one job through its life: queue, execution, retention; its time to live bounds them all."""
        job, dies_at = entry.job, time.monotonic() + entry.ttl_s
        try:
            await job.bell.until(lambda: job.taken_at is not None or job.has_ended, entry.ttl_s)
            left = dies_at - time.monotonic()
            await job.bell.until(lambda: job.has_ended, min(entry.execution_s, left))
        except (TimeoutError, asyncio.TimeoutError):
            entry.timed_out = not job.has_ended and time.monotonic() < dies_at
            self.stop(entry)
        self._count(entry)
        await asyncio.sleep(max(0.0, min(entry.kept_s, dies_at - time.monotonic())))
        self.forget(job.id)

    def _count(self, entry: TrackedJob) -> None:
        self.ended[entry.state] += not entry.counted
        entry.counted = True

    async def _trim(self) -> None:
        """Bound what the job server remembers for tests."""
        records: tuple[list[Any], ...] = (self.jobs.takes, self.jobs.pings, self.jobs.problems)
        while True:
            await asyncio.sleep(30)
            for record in records:
                del record[:-_RECORDS_KEPT]

    def _policy(self, policy: object) -> tuple[float, float]:
        """Return execution timeout and time to live in seconds."""
        if policy is None:
            return self.limits.execution_s, self.limits.ttl_s
        if not isinstance(policy, dict):
            raise RequestRefused(400, "policy: expected an object with executionTimeout, ttl or lowPriority", param="policy")
        execution = _seconds(policy, "executionTimeout", self.limits.execution_s, self.limits.least_execution_s)
        return execution, _seconds(policy, "ttl", self.limits.ttl_s, self.limits.least_ttl_s)


def _seconds(policy: dict[str, Any], name: str, default: float, least: float) -> float:
    value = policy.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value / 1000 <= _MAX_TTL_S:
        bounds = f"{least * 1000:g} to {_MAX_TTL_S * 1000:.0f}"
        raise RequestRefused(400, f"policy.{name}: got {value!r}, expected milliseconds from {bounds}", param=f"policy.{name}")
    return float(value) / 1000


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
