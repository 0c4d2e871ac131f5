"""The OpenAI route, `/openai/v1/...`: one request, one job, one answer in OpenAI's own form.

Documented are the base URL, the key as bearer, and which routes exist. How a request becomes a job and a job an answer is not; it is
taken from what workers are given and from what they yield. So all of this is unverified:
- a request becomes {"openai_route": "/v1/...", "openai_input": BODY}; a GET is a job with an empty body;
- texts that the worker yields are sent to the client as they come, one after another, as text/event-stream; of a list with one value, the
  value is the answer;
- a failed job becomes an HTTP error whose body is the worker's OpenAI error object, with the status that goes with its type and code
  (a report of a worker for another engine saw 500); one that fails in the middle of a stream ends the stream, after the worker's own error
  event;
- a client that leaves cancels its job; the result is dropped with the answer; no comments are sent to keep a connection alive;
- the largest body is that of /runsync.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from tools.serve.job_table import JobTable, RequestRefused, TrackedJob
from tools.serve.operations import read_json

__all__ = ["OpenAIRoute", "error_response"]

_BY_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "timeout_error": 504,
}
_BY_CODE = {"model_not_found": 404, "not_found": 404, "engine_died": 503, "not_ready": 503}
_TYPES = {status: name for name, status in _BY_TYPE.items()}
_CANCELLED_KEPT_S = 60.0
"""A cancelled job stays known while its worker still posts what was on the way."""


class OpenAIRoute:
    """The route over one table of jobs."""

    def __init__(self, table: JobTable) -> None:
        self._table = table

    def routes(self) -> list[web.RouteDef]:
        """Every route below /openai/v1."""
        path = f"/v2/{self._table.jobs.endpoint}/openai/{{route:v1/.+}}"
        return [web.get(path, self._answer), web.post(path, self._answer)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, self._table.limits.runsync_bytes) if request.method == "POST" else {}
        route = f"/{request.match_info['route']}" + (f"?{request.query_string}" if request.query_string else "")
        entry = self._table.submit({"openai_route": route, "openai_input": body}, kept_s=_CANCELLED_KEPT_S)
        try:
            response = await self._relay(request, entry)
            self._table.forget(entry.job.id)
            return response
        finally:
            if entry.job.id in self._table.entries:
                self._table.stop(entry)

    async def _relay(self, request: web.Request, entry: TrackedJob) -> web.StreamResponse:
        """Wait for the first value, or the end, which decide the form of the answer."""
        job = entry.job
        await job.bell.until(lambda: bool(job.stream) or job.has_ended, None)
        if job.stream and isinstance(job.stream[0], str):
            return await self._events(request, entry)
        await job.bell.until(lambda: job.has_ended, None)
        if entry.state != "COMPLETED":
            return error_response(*_failure(entry))
        output = (job.result or {}).get("output")
        if isinstance(output, list) and output and all(isinstance(value, str) for value in output):
            return web.Response(text="".join(output), content_type="text/event-stream")
        return web.json_response(output[0] if isinstance(output, list) and len(output) == 1 else output)

    async def _events(self, request: web.Request, entry: TrackedJob) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})
        await response.prepare(request)
        async for value in entry.job:
            await response.write(_text(value).encode("utf-8", "replace"))
        if entry.state in {"TIMED_OUT", "CANCELLED"}:  # the worker has dropped it and posts nothing more
            _, error = _failure(entry)
            await response.write(f"data: {json.dumps(error)}\n\n".encode())
        await response.write_eof()
        return response


def error_response(status: int, body: dict[str, Any]) -> web.Response:
    """Return an OpenAI error object as an HTTP answer."""
    return web.json_response(body, status=status)


def error_object(refusal: RequestRefused) -> dict[str, Any]:
    """Return the OpenAI error object for what the gateway itself refuses."""
    type_ = _TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    return {"error": {"message": str(refusal), "type": type_, "param": refusal.param, "code": None}}


def _failure(entry: TrackedJob) -> tuple[int, dict[str, Any]]:
    """Return the status and the error object of a job that did not complete."""
    if entry.state != "FAILED":
        message = entry.shown().get("error") or "the job was cancelled before it was done"
        type_, status = ("timeout_error", 504) if entry.timed_out else ("server_error", 500)
        return status, {"error": {"message": message, "type": type_, "param": None, "code": f"job_{entry.state.lower()}"}}
    text = (entry.job.result or {}).get("error")
    try:
        error = json.loads(text)["error"] if isinstance(text, str) else None
    except (ValueError, TypeError, KeyError):
        error = None
    if not isinstance(error, dict):
        return 500, {"error": {"message": _text(text), "type": "server_error", "param": None, "code": "job_failed"}}
    return _BY_CODE.get(str(error.get("code"))) or _BY_TYPE.get(str(error.get("type"))) or 500, {"error": error}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
