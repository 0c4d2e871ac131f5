"""RunPod's REST API v2, as far as a deployment needs it: waits where it is told to, and turns problems into sentences."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from tools.deploy.outcomes import ApiError, Refused, Unsure

__all__ = ["DEFAULT_URL", "Json", "RunPod", "check_url", "problem"]

DEFAULT_URL = "https://api.runpod.io"

Json = dict[str, Any]

_TRIES = 5
_ANSWER = 60.0
"""Seconds that one answer may take."""
_UNNAMED_WAIT = 5.0
"""Seconds to wait on a 429 that does not say for how long."""
_LOG_SECONDS = 10.0
_LOG_SILENCE = 3.0
"""A worker's log is a stream without end: it is read for so long at most, and not longer than this after its last line."""


def check_url(name: str, url: str) -> str:
    """Return `url` without its last slash.

    Raises:
        Refused: when the API key would travel unencrypted to somewhere else than this machine.
    """
    plain = url.removeprefix("http://").partition("/")[0].rpartition(":")[0]
    if not url.startswith("https://") and not (url.startswith("http://") and plain in {"127.0.0.1", "localhost", "[::1]"}):
        raise Refused(f"{name}: got {url!r}, expected https://... (the API key travels there), or http://127.0.0.1:PORT for tests")
    return url.rstrip("/")


def problem(status: int, reason: str, text: str) -> str:
    """Return an error answer as a sentence: RFC 9457's title, detail and errors where it has them, else its first words."""
    with contextlib.suppress(ValueError):
        said = json.loads(text)
        if isinstance(said, dict) and "detail" in said:
            errors = said.get("errors")
            listed = ": " + "; ".join(map(str, errors)) if isinstance(errors, list) and errors else ""
            return f"{status} {said.get('title') or reason}: {said['detail']}{listed}"
    words = " ".join(text.split())[:300]
    return f"{status} {reason}" + (f": {words}" if words else "")


class RunPod:
    """One account's endpoints. `say` is told about waits; `patience` bounds them; `pause` is the first wait after a failed look."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, key: str, *, say: Callable[[str], None], patience: float = 1800, pause: float = 1
    ) -> None:
        self._session, self._url, self._say, self._patience, self._pause = session, url + "/v2", say, patience, pause
        self._headers = {"Authorization": f"Bearer {key}", "Accept": "application/json"}

    async def find(self, name_or_id: str) -> Json | None:
        """Return the endpoint with this id, or with this name.

        Raises:
            Refused: when several endpoints have the name.
        """
        answer = await self._call("GET", "/serverless", doing="list the endpoints")
        endpoints: list[Json] = answer.get("endpoints") or []
        found = [one for one in endpoints if one["id"] == name_or_id] or [one for one in endpoints if one.get("name") == name_or_id]
        if len(found) > 1:
            ids = ", ".join(one["id"] for one in found)
            raise Refused(f"endpoint: {len(found)} endpoints are named {name_or_id!r}, expected one; say which by its id: {ids}")
        return found[0] if found else None

    async def get(self, endpoint: str) -> Json:
        """Return an endpoint as it is now."""
        return await self._call("GET", f"/serverless/{endpoint}", doing=f"read endpoint {endpoint}")

    async def create(self, body: Json) -> Json:
        """Create an endpoint and return it.

        Raises:
            Unsure: when the answer was lost or a 5xx: it may be there nevertheless.
        """
        return await self._call("POST", "/serverless", body, doing=f"create endpoint {body['name']}")

    async def update(self, endpoint: str, patch: Json) -> Json:
        """Change an endpoint and return it.

        Raises:
            Unsure: when the answer was lost or a 5xx: it may have been changed nevertheless.
        """
        return await self._call("PATCH", f"/serverless/{endpoint}", patch, doing=f"change endpoint {endpoint}")

    async def delete(self, endpoint: str) -> None:
        """Delete an endpoint; one that is gone already is fine."""
        try:
            await self._call("DELETE", f"/serverless/{endpoint}", doing=f"delete endpoint {endpoint}")
        except ApiError as error:
            if error.status != 404:
                raise

    async def workers(self, endpoint: str) -> Json:
        """Return the active workers, and the version of the endpoint that new ones run."""
        answer = await self._call("GET", f"/serverless/{endpoint}/workers", doing=f"list the workers of {endpoint}")
        if not isinstance(answer.get("workers"), list):
            raise ApiError(f"could not list the workers of {endpoint}: expected a list of workers, got {str(answer)[:200]}")
        return answer

    async def releases(self, endpoint: str) -> Json:
        """Return the endpoint's releases, newest first, and how far the newest has come."""
        return await self._call("GET", f"/serverless/{endpoint}/releases", doing=f"list the releases of {endpoint}")

    async def gpu_types(self) -> list[Json]:
        """Return the types of GPU that RunPod has now, each with its `id` and `pool`."""
        answer = await self._call("GET", "/catalog/gpus", doing="list the GPU types")
        return list(answer.get("gpus") or [])

    async def worker_log(self, endpoint: str, worker: str, *, tail: int = 100) -> list[str]:
        """Return the last lines of a worker's container, or one that says why there are none."""
        url = f"{self._url}/serverless/{endpoint}/workers/{worker}/logs"
        lines: list[str] = []
        patience = aiohttp.ClientTimeout(total=_LOG_SECONDS, sock_read=_LOG_SILENCE)
        try:
            async with self._session.get(url, params={"tail": tail}, headers=self._headers, timeout=patience) as answer:
                if answer.status != 200:
                    return [f"(no log: {problem(answer.status, answer.reason or '', await answer.text())})"]
                async for raw in answer.content:
                    lines += [_log_line(raw[5:].decode("utf-8", "replace").strip())] if raw.startswith(b"data:") else []
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            if not lines and not isinstance(error, asyncio.TimeoutError):
                return [f"(no log: {error})"]
        return lines or ["(the log is empty)"]

    async def _call(self, method: str, path: str, body: Json | None = None, *, doing: str) -> Json:
        waited, tries = 0.0, 0
        while True:
            try:
                status, headers, trouble = await self._once(method, path, body)
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                status, headers, trouble = 0, {}, f"no answer ({str(error) or type(error).__name__})"
            if isinstance(trouble, dict):
                return trouble
            if status == 429:
                pause = _retry_after(headers)
                waited += pause
                if waited > self._patience:
                    raise ApiError(f"could not {doing}: {trouble}; the waits it asks for exceed patience={self._patience:g}", status)
                self._say(f"RunPod asks to wait {pause:g} s ({trouble})")
                await asyncio.sleep(pause)
            elif 0 < status < 500:
                raise ApiError(f"could not {doing}: {trouble}{_advice(status)}", status)
            elif method in {"POST", "PATCH"}:
                raise Unsure(f"could not {doing}: {trouble}")
            else:
                tries += 1
                if tries == _TRIES:
                    raise ApiError(f"could not {doing}, {tries} times: {trouble}", status)
                await asyncio.sleep(self._pause * 2 ** (tries - 1))

    async def _once(self, method: str, path: str, body: Json | None) -> tuple[int, Mapping[str, str], Json | str]:
        """Return status, headers, and the answer's JSON object, or a sentence about it."""
        patience = aiohttp.ClientTimeout(total=_ANSWER)
        async with self._session.request(
            method, self._url + path, json=body, headers=self._headers, timeout=patience, allow_redirects=False
        ) as answer:
            text = await answer.text()
            if not 200 <= answer.status < 300:
                return answer.status, answer.headers, problem(answer.status, answer.reason or "", text)
            try:
                value = json.loads(text) if text else {}
            except ValueError:
                value = None
            if not isinstance(value, dict):
                return 502, answer.headers, f"{answer.status}, and no JSON object: {text[:100]!r}"
            return answer.status, answer.headers, value


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of a Retry-After: a number, or a date."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return _UNNAMED_WAIT


def _advice(status: int) -> str:
    if status == 401:
        return "; check RUNPOD_API_KEY"
    if status == 403:
        return "; the key needs read and write access to the REST API"
    return ""


def _log_line(data: str) -> str:
    try:
        event = json.loads(data)
        return str(event["line"]).rstrip("\n")
    except (ValueError, KeyError, TypeError):
        return data
