"""RunPod's REST API v2, as far as a deployment needs it.

A question is asked again where it failed; a change never is, since it may have happened: that is OutcomeUnknown, and the caller looks.
Every wait counts against `patience`, whatever an answer says about waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from tools.deploy.api_answers import BadAnswer, Endpoint, EndpointList, EndpointReleases, GpuCatalog, GpuOffer, WorkerList, read_answer
from tools.deploy.deploy_errors import ApiError, DeployRefused, OutcomeUnknown

__all__ = ["DEFAULT_URL", "Json", "RunPodApi", "check_url", "is_secure", "problem", "read_text"]

DEFAULT_URL = "https://api.runpod.io"

Json = dict[str, Any]
T = TypeVar("T")

_TRIES = 5
_ANSWER = 60.0
"""Seconds that one answer may take."""
_LARGEST = 16 << 20
"""Bytes of an answer."""
_UNNAMED_WAIT = 5.0
"""Seconds to wait on a 429 that does not say for how long."""
_LOG_SECONDS = 10.0
_LOG_SILENCE = 3.0
"""A worker's log is a stream without end: it is read for so long at most, and not longer than this after its last bytes."""
_LOG_BYTES = 1 << 20


def is_secure(url: str) -> bool:
    """Tell whether a key may travel to `url`: over TLS, or to this very machine, and with no account written into the address."""
    try:
        parts = urlsplit(url)
        loopback = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}
        return (loopback or parts.scheme == "https") and bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:  # a port that is none
        return False


def check_url(name: str, url: str) -> str:
    """Return `url` without its last slash.

    Raises:
        DeployRefused: when a key must not travel there. http://localhost:x@example.org is an address at example.org.
    """
    if not is_secure(url):
        raise DeployRefused(f"{name}: got {url!r}, expected https://HOST (the API key travels there), or http://127.0.0.1:PORT for tests")
    return url.rstrip("/")


def problem(status: int, reason: str, text: str) -> str:
    """Return an error answer as a sentence: RFC 9457's title, detail and errors where it has them, else its first words."""
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(text)
        if isinstance(said, dict) and "detail" in said:
            errors = said.get("errors")
            listed = ": " + "; ".join(map(str, errors)) if isinstance(errors, list) and errors else ""
            return f"{status} {said.get('title') or reason}: {said['detail']}{listed}"[:2000]
    words = " ".join(text.split())[:300]
    return f"{status} {reason}" + (f": {words}" if words else "")


async def read_text(answer: aiohttp.ClientResponse, largest: int = _LARGEST) -> str:
    """Return an answer's body, and no more of it than `largest` bytes; whatever charset it names, it is UTF-8."""
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > largest:
            break
    return bytes(body[:largest]).decode("utf-8", "replace")


class RunPodApi:
    """One account's endpoints. `say` prints a line about a wait; `patience` bounds all waits; `pause` is the first after a failure."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, key: str, *, say: Callable[[str], None], patience: float = 1800, pause: float = 1
    ) -> None:
        self._session, self._url, self._say, self._patience, self._pause = session, url + "/v2", say, patience, pause
        self._headers = {"Authorization": f"Bearer {key}", "Accept": "application/json", "Accept-Encoding": "identity"}

    async def endpoints(self) -> list[Endpoint]:
        """Return all endpoints."""
        return (await self._call("GET", "/serverless", _reader(EndpointList), doing="list the endpoints"))["endpoints"]

    async def find(self, name_or_id: str) -> Endpoint | None:
        """Return the endpoint with this id, or with this name.

        Raises:
            DeployRefused: when several endpoints have the name.
        """
        known = await self.endpoints()
        found = [one for one in known if one["id"] == name_or_id] or [one for one in known if one["name"] == name_or_id]
        if len(found) > 1:
            ids = ", ".join(one["id"] for one in found)
            raise DeployRefused(f"endpoint: {len(found)} endpoints are named {name_or_id!r}, expected one; say which by its id: {ids}")
        return found[0] if found else None

    async def get(self, endpoint: str) -> Endpoint:
        """Return an endpoint as it is now."""
        return await self._call("GET", f"/serverless/{endpoint}", _reader(Endpoint), doing=f"read endpoint {endpoint}")

    async def create(self, body: Json) -> Endpoint:
        """Create an endpoint and return it.

        Raises:
            OutcomeUnknown: when the answer was lost, a 5xx, or of another form: it may be there nevertheless.
        """
        return await self._call("POST", "/serverless", _reader(Endpoint), body, doing=f"create endpoint {body['name']}")

    async def update(self, endpoint: str, patch: Json) -> Endpoint:
        """Change an endpoint and return it.

        Raises:
            OutcomeUnknown: when the answer was lost, a 5xx, or of another form: it may have been changed nevertheless.
        """
        return await self._call("PATCH", f"/serverless/{endpoint}", _reader(Endpoint), patch, doing=f"change endpoint {endpoint}")

    async def delete(self, endpoint: str) -> None:
        """Delete an endpoint; one that is gone already is fine."""
        try:
            await self._call("DELETE", f"/serverless/{endpoint}", lambda _: None, doing=f"delete endpoint {endpoint}")
        except ApiError as error:
            if error.status != 404:
                raise

    async def workers(self, endpoint: str) -> WorkerList:
        """Return the active workers, and the version of the endpoint that new ones run."""
        return await self._call("GET", f"/serverless/{endpoint}/workers", _reader(WorkerList), doing=f"list the workers of {endpoint}")

    async def version(self, endpoint: str) -> int | None:
        """Return the number of an endpoint's newest release, or None where the API does not say."""
        read, doing = _reader(EndpointReleases), f"list the releases of {endpoint}"
        return (await self._call("GET", f"/serverless/{endpoint}/releases", read, doing=doing)).get("endpointVersion")

    async def gpu_offers(self) -> list[GpuOffer]:
        """Return the types of GPU that RunPod rents today."""
        return (await self._call("GET", "/catalog/gpus", _reader(GpuCatalog), doing="list the GPU types"))["gpus"]

    async def worker_log(self, endpoint: str, worker: str, *, tail: int = 100) -> list[str]:
        """Return the last lines of a worker's container, or one that says why there are none."""
        url = f"{self._url}/serverless/{endpoint}/workers/{worker}/logs"
        received = bytearray()
        limits = aiohttp.ClientTimeout(total=_LOG_SECONDS, sock_read=_LOG_SILENCE)
        try:
            async with self._session.get(
                url, params={"tail": tail}, headers=self._headers, timeout=limits, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    return [f"(no log: {problem(answer.status, answer.reason or '', await read_text(answer, 65536))})"]
                async for piece in answer.content.iter_any():
                    received += piece
                    if len(received) > _LOG_BYTES:
                        break
        except asyncio.TimeoutError:
            pass
        except (aiohttp.ClientError, ValueError) as error:
            if not received:
                return [f"(no log: {error})"]
        events = [line[5:] for line in bytes(received).split(b"\n") if line.startswith(b"data:")]
        return [_log_line(event.decode("utf-8", "replace").strip()) for event in events[-tail:]] or ["(the log is empty)"]

    async def _call(self, method: str, path: str, read: Callable[[str], T], body: Json | None = None, *, doing: str) -> T:
        """Return what `read` makes of a good answer's body."""
        deadline, tries, said = time.monotonic() + self._patience, 0, ""
        while True:
            try:
                status, headers, text = await self._once(method, path, body)
                trouble = text
                if 200 <= status < 300:
                    return read(text)
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:  # ValueError: a header that is none
                status, headers, trouble = 0, {}, f"no answer ({str(error) or type(error).__name__})"
            except BadAnswer as error:
                status, headers, trouble = 502, {}, f"an answer of another form: {error}"
            if status == 429:
                pause = max(_retry_after(headers), self._pause)
                if time.monotonic() + pause > deadline:
                    raise ApiError(f"could not {doing}: {trouble}; the waits it asks for exceed patience={self._patience:g}", status)
                line = f"RunPod asks to wait {pause:g} s ({trouble})"
                if line != said:
                    self._say(line)
                said = line
                await asyncio.sleep(pause)
            elif 0 < status < 500:
                raise ApiError(f"could not {doing}: {trouble}{_advice(status)}", status)
            elif method in {"POST", "PATCH"}:
                raise OutcomeUnknown(f"could not {doing}: {trouble}")
            else:
                tries += 1
                if tries == _TRIES or time.monotonic() > deadline:
                    raise ApiError(f"could not {doing}, {tries} times: {trouble}", status)
                await asyncio.sleep(self._pause * 2 ** (tries - 1))

    async def _once(self, method: str, path: str, body: Json | None) -> tuple[int, Mapping[str, str], str]:
        """Return status, headers, and the body of a good answer, or a sentence about another."""
        limits = aiohttp.ClientTimeout(total=_ANSWER)
        async with self._session.request(
            method, self._url + path, json=body, headers=self._headers, timeout=limits, allow_redirects=False
        ) as answer:
            text = await read_text(answer)
            if 200 <= answer.status < 300:
                return answer.status, answer.headers, text
            return answer.status, answer.headers, problem(answer.status, answer.reason or "", text)


def _reader(kind: type[T]) -> Callable[[str], T]:
    """Return a function that reads an answer's body as a `kind`, and raises BadAnswer where it is none."""

    def read(text: str) -> T:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise BadAnswer(f"no JSON: {text[:100]!r}") from None
        return read_answer(kind, value)

    return read


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of a Retry-After: a number, or a date."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:20])
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return _UNNAMED_WAIT


def _advice(status: int) -> str:
    if status == 401:
        return "; check RUNPOD_API_KEY"
    if status == 403:
        return "; the key needs read and write access to the REST API"
    return ""


def _log_line(text: str) -> str:
    with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
        return str(json.loads(text)["line"])
    return text
