"""Send the requests of .runpod/tests.json to an endpoint as a client would, and tell whether the answers are good.

A test is `{"name": ..., "input": {...}, "timeout": milliseconds}`, the Hub's form. An input that names an OpenAI route is sent to that
route; any other is a job, which a load balancer does not take. A test has passed when its answer is a 200 and
neither an error nor a stream that breaks off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tools.deploy.deploy_errors import DeployRefused, RolloutFailed
from tools.deploy.runpod_api import Json, problem, read_text

__all__ = ["AcceptanceTest", "EndpointClient", "read_tests"]

_NOT_YET = frozenset({408, 425, 429, 502, 503, 504, 520, 521, 522, 523, 524})
"""What a gateway answers while no worker is there yet."""
_SETTLING = frozenset({404, 500})
"""What it may answer for a moment about an endpoint that has just been made; a worker's own have an OpenAI error in them, and count."""
_SETTLED = 60.0
"""Seconds after which it means them."""
_DEFAULT_TIMEOUT = 300_000
_SYNC_WAIT = 300_000
"""Milliseconds: the longest wait that /runsync takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceTest:
    """One request and the seconds that it may take."""

    name: str
    input: Json
    timeout: float


def read_tests(path: Path) -> tuple[AcceptanceTest, ...]:
    """Return the tests in a file of the Hub's form.

    Raises:
        DeployRefused: when it is not there, or has another form.
    """
    try:
        tests = json.loads(path.read_text(encoding="utf-8"))["tests"]
        return tuple(
            AcceptanceTest(name=str(test["name"]), input=dict(test["input"]), timeout=float(test.get("timeout", _DEFAULT_TIMEOUT)) / 1000)
            for test in tests
        )
    except FileNotFoundError:
        raise DeployRefused(f"tests: {path} is not there; name another file, or give tests=no") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = '{"tests": [{"name": ..., "input": {...}, "timeout": milliseconds}]}'
        raise DeployRefused(f"tests: {path}: expected {expected} ({type(error).__name__}: {error})") from None


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    url: str
    body: Any = None
    job: bool = False
    """Whether the answer is about a job."""


class EndpointClient:
    """A client of one endpoint. `url` is its OpenAI base URL; `jobs` that of its jobs, empty where it takes none."""

    def __init__(self, session: aiohttp.ClientSession, key: str, *, url: str, jobs: str, pause: float, say: Callable[[str], None]) -> None:
        self._session, self._url, self._jobs, self._pause, self._say = session, url, jobs, pause, say
        self._headers = {"Authorization": f"Bearer {key}"}

    async def run(self, tests: tuple[AcceptanceTest, ...], *, cold_start: float) -> None:
        """Send one after the other; the first may take `cold_start` seconds at least.

        Raises:
            RolloutFailed: naming the first that failed, and what was answered.
        """
        for number, test in enumerate(tests):
            call = self._call(test.input)
            if call is None:
                self._say(f"test {test.name!r}: left out, a load balancer takes no jobs")
                continue
            began = time.monotonic()
            patience = test.timeout if number else max(test.timeout, cold_start)
            complaint = await self._patiently(call, patience)
            if complaint:
                raise RolloutFailed(f"test {test.name!r} failed: {complaint}")
            self._say(f"test {test.name!r} passed in {time.monotonic() - began:.1f} s")

    async def model(self) -> str:
        """Return the name of the model that the endpoint serves, or nothing if it does not say."""
        with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, ValueError, LookupError, TypeError, RecursionError):
            status, _, text = await self._send(_Call("GET", f"{self._url}/models"), 60)
            return str(json.loads(text)["data"][0]["id"])[:200] if status == 200 else ""
        return ""

    def _call(self, job: Json) -> _Call | None:
        """Return what to ask for a test's input, or None where the endpoint takes no such."""
        route = job.get("openai_route") or job.get("route")
        if isinstance(route, str) and route.startswith(("/v1/", "/openai/v1/")):
            body = job.get("openai_input", job.get("body")) or None
            method = job.get("method") or ("POST" if body else "GET")
            return _Call(method, self._url + route.removeprefix("/openai").removeprefix("/v1"), body)
        return _Call("POST", f"{self._jobs}/runsync?wait={_SYNC_WAIT}", {"input": job}, job=True) if self._jobs else None

    async def _patiently(self, call: _Call, patience: float) -> str:
        """Ask until there is an answer, for `patience` seconds at most; return what is wrong with it, or nothing."""
        said, began = "no answer", time.monotonic()
        deadline = began + patience
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return f"{said}, and its time was up"
            following: _Call | None = call
            try:
                following, said = await self._ask(call, left, new=time.monotonic() - began < _SETTLED)
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:  # ValueError: a header that is none
                said = f"no answer ({str(error) or 'it took too long'})"
            if following is None:
                return said
            call = following
            await asyncio.sleep(min(self._pause, max(0.0, deadline - time.monotonic())))

    async def _ask(self, call: _Call, patience: float, *, new: bool) -> tuple[_Call | None, str]:
        """Return what to ask next, None if this was the answer, and what is wrong with it."""
        status, reason, text = await self._send(call, patience)
        if status != 200:
            worker = _error_of(text)
            passing = status in _NOT_YET or (new and not worker and status in _SETTLING)
            return call if passing else None, worker or problem(status, reason, text)
        if call.job:
            unfinished, said = _job(text)
            return _Call("GET", f"{self._jobs}/status/{unfinished}", job=True) if unfinished else None, said
        if isinstance(call.body, dict) and call.body.get("stream"):
            return None, _stream_complaint(text)
        return None, _error_of(text) or ("" if text.strip() else "an empty answer")

    async def _send(self, call: _Call, patience: float) -> tuple[int, str, str]:
        """Return status, reason and body of an answer; the key does not follow a redirect."""
        limits = aiohttp.ClientTimeout(total=patience)
        async with self._session.request(
            call.method, call.url, json=call.body, headers=self._headers, timeout=limits, allow_redirects=False
        ) as answer:
            return answer.status, answer.reason or "", await read_text(answer)


def _error_of(text: str) -> str:
    """Return the sentence in an OpenAI error object, if `text` is one."""
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(text)
        error = said.get("error") if isinstance(said, dict) else None
        if isinstance(error, str):
            return _error_of(error) or error
        if isinstance(error, dict):
            return str(error.get("message") or error)
    return ""


def _stream_complaint(text: str) -> str:
    frames = [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]
    for frame in frames:
        if error := _error_of(frame):
            return error
    if not frames or frames[-1] != "[DONE]":
        return f"a stream that breaks off after {len(frames)} frames: {text[-200:]!r}"
    return "" if len(frames) > 1 else "a stream without a frame"


def _job(text: str) -> tuple[str, str]:
    """Return the id of a job that is still on its way, or nothing, and what is wrong with what /runsync or /status says."""
    try:
        said = json.loads(text)
        status = said["status"]
        if status in {"IN_QUEUE", "IN_PROGRESS"} and re.fullmatch(r"[\w-]{1,200}", said["id"]):  # it becomes part of an address
            return said["id"], f"the job is still {status}"
    except (ValueError, LookupError, TypeError, RecursionError):
        return "", f"not what is said of a job: {text[:200]!r}"
    if status == "COMPLETED":
        output = json.dumps(said.get("output"))
        return "", _error_of(output) or ("" if said.get("output") else "an empty output")
    return "", _error_of(text) or f"the job ended as {status}"
