"""The operations of a queue-based endpoint: /run, /runsync, /status, /stream, /cancel, /retry, /purge-queue, /health.

Paths, methods, limits and the fields of answers are documented (docs.runpod.io: serverless/endpoints/operation-reference); the shape of
/stream is the one that RunPod's own client reads (runpod 1.12.0, endpoint/runner.py), the documentation's example is a bare list.
Unverified, since undocumented:
- the status and body of refusals: {"error": TEXT} with 400, 404, 413, 429; an "MB" is a million bytes;
- /status and /stream also answer POST, as older clients and the SDK's local server have it;
- /stream answers at once with what no earlier call was given, and with an empty list when there is nothing new;
- a client of /runsync that leaves does not cancel its job; `wait` outside 1000 to 300000 is refused;
- cancelling a job that has ended changes nothing and shows its state;
- the workers' states in /health beyond `idle` and `running`.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from aiohttp import web

from tools.serve.job_table import JobTable, RequestRefused, TrackedJob

__all__ = ["Operations", "read_json"]

_LEAST_WAIT_MS, _MOST_WAIT_MS = 1000, 300_000


class Operations:
    """The routes over one table of jobs."""

    def __init__(self, table: JobTable) -> None:
        self._table = table

    def routes(self) -> list[web.RouteDef]:
        """Everything below /v2/ENDPOINT but the OpenAI route and the job API."""
        base = f"/v2/{self._table.jobs.endpoint}"
        return [
            web.post(f"{base}/run", self._run),
            web.post(f"{base}/runsync", self._runsync),
            *(web.route(method, f"{base}/status/{{job}}", self._status) for method in ("GET", "POST")),
            *(web.route(method, f"{base}/stream/{{job}}", self._stream) for method in ("GET", "POST")),
            web.post(f"{base}/cancel/{{job}}", self._cancel),
            web.post(f"{base}/retry/{{job}}", self._retry),
            web.post(f"{base}/purge-queue", self._purge),
            web.get(f"{base}/health", self._health),
        ]

    async def _run(self, request: web.Request) -> web.Response:
        limits = self._table.limits
        entry = await self._submit(request, limits.run_bytes, kept_s=limits.run_kept_s)
        return web.json_response({"id": entry.job.id, "status": "IN_QUEUE"})

    async def _runsync(self, request: web.Request) -> web.Response:
        limits = self._table.limits
        wait_s = _milliseconds(request, "wait", _LEAST_WAIT_MS, _MOST_WAIT_MS)
        wait_s = limits.wait_s if wait_s is None else wait_s
        entry = await self._submit(request, limits.runsync_bytes, kept_s=max(limits.runsync_kept_s, wait_s), prefix="sync-")
        with contextlib.suppress(TimeoutError):
            await entry.job.bell.until(lambda: entry.job.has_ended, wait_s)
        return web.json_response(entry.shown())

    async def _submit(self, request: web.Request, limit: int, *, kept_s: float, prefix: str = "") -> TrackedJob:
        body = await read_json(request, limit)
        if "input" not in body:
            raise RequestRefused(400, 'input: missing, expected a JSON object such as {"input": {"prompt": "Hello"}}', param="input")
        return self._table.submit(body["input"], kept_s=kept_s, policy=body.get("policy"), prefix=prefix)

    async def _status(self, request: web.Request) -> web.Response:
        entry = self._entry(request)
        ttl_s = _milliseconds(request, "ttl", 0, 7 * 86_400_000)
        if ttl_s is not None:
            self._table.forget_after(entry, ttl_s)
        return web.json_response(entry.shown())

    async def _stream(self, request: web.Request) -> web.Response:
        entry = self._entry(request)
        new = entry.job.stream[entry.streamed :]
        entry.streamed += len(new)
        shown = entry.shown()
        shown.pop("output", None)
        return web.json_response(shown | {"stream": [{"output": value} for value in new]})

    async def _cancel(self, request: web.Request) -> web.Response:
        entry = self._entry(request)
        self._table.stop(entry)
        return web.json_response({"id": entry.job.id, "status": entry.state})

    async def _retry(self, request: web.Request) -> web.Response:
        entry = self._table.retry(self._entry(request))
        return web.json_response({"id": entry.job.id, "status": "IN_QUEUE"})

    async def _purge(self, _: web.Request) -> web.Response:
        return web.json_response({"removed": self._table.purge(), "status": "completed"})

    async def _health(self, _: web.Request) -> web.Response:
        counts, ready = self._table.counts(), bool(self._table.jobs.takes or self._table.jobs.open_takes)
        running = int(ready and counts["inProgress"] > 0)
        workers = {"idle": int(ready) - running, "initializing": int(not ready), "ready": int(ready), "running": running}
        return web.json_response({"jobs": counts, "workers": workers | {"throttled": 0, "unhealthy": 0}})

    def _entry(self, request: web.Request) -> TrackedJob:
        return self._table.find(request.match_info["job"])


async def read_json(request: web.Request, limit: int) -> dict[str, Any]:
    """Return the object in a request's body; raises RequestRefused, 413 above `limit` bytes, 400 when it is none."""
    too_large = RequestRefused(413, f"body: more than {limit} bytes, which is RunPod's limit for this operation")
    if (request.content_length or 0) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise too_large
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, f"body: expected a JSON object ({error})") from None
    if not isinstance(value, dict):
        raise RequestRefused(400, "body: expected a JSON object")
    return value


def _milliseconds(request: web.Request, name: str, least: int, most: int) -> float | None:
    """Return a query's milliseconds as seconds, None when it is not there."""
    text = request.query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise RequestRefused(400, f"{name}: got {text!r}, expected milliseconds from {least} to {most}", param=name)
    return int(text) / 1000
