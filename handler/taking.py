"""Ask RunPod's job API for jobs, and lose none that it hands out.

The API answers a poll when it has a job, or after a while without one. A job that it hands out is gone from its queue: if the answer is
not read, nobody runs the job. Hence a poll that is no longer wanted is not dropped. The sending side of its connection is closed, upon
which the server knows that nobody waits and hands out nothing; what it had sent before is still read. An answer that has begun is read
to its end.

Polls that fail are repeated with growing pauses, and the log tells when that begins, changes and ends, not of every try.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from handler.backoff import Backoff, asked_to_wait
from handler.errors import InvalidJob

__all__ = ["Pace", "Taker", "read_jobs"]

log = logging.getLogger(__name__)

MAX_INPUT_BYTES = 10 * 1024 * 1024
"""RunPod's own limit for /run (docs.runpod.io, serverless/endpoints/operation-reference), as UTF-8 JSON."""

MAX_DEPTH = 200
"""Levels of an input; the engine's readers give up at about a thousand."""

POLL_LIMIT = 90.0
"""Seconds that a poll may take, as in RunPod's own SDK."""

LAST_WORDS = 1.0
"""Seconds that the server has to begin its answer to a poll whose sending side was closed."""

RECEIVING_LIMIT = 60.0
"""Seconds for the rest of an answer that has begun when its poll is no longer wanted: ten jobs of the largest input at 14 Mbit/s."""

_SHORTEST_POLL = 0.05
"""Seconds between two polls that gave nothing: the server is expected to hold them, but one that does not must not be flooded."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0
_BUSY_PAUSE = 5.0
"""Seconds to wait after a 429 without Retry-After, as in RunPod's own SDK."""
_REVIVAL_PAUSE = 0.5
"""Seconds to wait after a 400, which the SDK expects of workers that FlashBoot has brought back."""


class Pace:
    """Pauses after failed polls, and what the log says of them; `what` names the polls."""

    def __init__(self, what: str) -> None:
        self._what, self._last, self._tries = what, "", 0
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)

    def failed(self, why: str) -> float:
        """Note a failure and return for how many seconds to wait."""
        if why != self._last:
            log.warning("%s fails, trying again with growing pauses: %s", self._what, why)
        self._last, self._tries = why, self._tries + 1
        return self._backoff.pause()

    def worked(self) -> None:
        """Note an answer."""
        if self._last:
            log.info("%s works again, after %d failures", self._what, self._tries)
        self._last, self._tries = "", 0
        self._backoff.reset()


class Taker:
    """Takes jobs, one poll at a time, until it is told to leave; an async context manager."""

    def __init__(self, headers: Mapping[str, str], url: Callable[[int], str]) -> None:
        """`headers` authorize it; `url` says where to ask for so many jobs."""
        self._headers, self._url = headers, url
        self._pace = Pace("job-take")
        self._leaving = asyncio.Event()
        self._sockets: list[socket.socket] = []
        self._hung_up = False

    async def __aenter__(self) -> Taker:
        connector = aiohttp.TCPConnector(limit=1, socket_factory=self._make_socket)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(headers=self._headers, connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to."""
        return self._leaving.is_set()

    def leave(self) -> None:
        """Take nothing more; a poll in progress ends, with the jobs that it has been given."""
        self._leaving.set()

    async def jobs(self, room: int) -> list[dict[str, Any]]:
        """Return at most `room` jobs as `read_jobs` does, or none: after a poll without one, after a failure, or when leaving."""
        if self._leaving.is_set():
            return []
        loop = asyncio.get_running_loop()
        self._hung_up, self._begun = False, loop.create_future()
        began = loop.time()
        asking, leaving = asyncio.ensure_future(self._ask(room)), asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({asking, leaving}, timeout=POLL_LIMIT, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                await self._end(asking)
            jobs, pause = asking.result() if asking.done() else ([], 0.0)
            if not jobs:
                spent = loop.time() - began
                await asyncio.wait({leaving}, timeout=max(pause, _SHORTEST_POLL - spent, 0))
            return jobs
        finally:
            for task in (asking, leaving):
                task.cancel()
            await asyncio.gather(asking, leaving, return_exceptions=True)

    async def _end(self, asking: asyncio.Future[Any]) -> None:
        """Wait for a poll that is no longer wanted: shortly until its answer begins, then long enough to receive it."""
        if not self._begun.done():  # a server that is answering might stop if it saw that nobody waits
            self._hang_up()
            await asyncio.wait({asking, self._begun}, timeout=LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
        if self._begun.done():
            await asyncio.wait({asking}, timeout=RECEIVING_LIMIT)
            if not asking.done():
                log.error("an answer to job-take did not arrive within %g s; jobs that it held are lost", RECEIVING_LIMIT)

    async def _ask(self, room: int) -> tuple[list[dict[str, Any]], float]:
        """Return jobs, and for how many seconds to wait before asking again if there are none."""
        try:
            async with self._session.get(self._url(room)) as response:
                self._begun.set_result(None)
                body = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            asked_for = self._hung_up and not self._begun.done()  # when leaving, and at the end of a poll's time
            return [], 0.0 if asked_for else self._pace.failed(f"the connection failed ({type(error).__name__}: {error})")
        if response.status == 429:
            pause = self._pace.failed("the server answered 429")
            return [], max(pause, asked_to_wait(response.headers) or _BUSY_PAUSE)
        if response.status == 400:
            return [], _REVIVAL_PAUSE
        if response.status not in {200, 204}:
            return [], self._pace.failed(f"the server answered {response.status}")
        try:
            jobs = read_jobs(body) if response.status == 200 and body.strip() else []
        except ValueError:
            return [], self._pace.failed("the server answered what is no JSON")
        self._pace.worked()
        return jobs, 0.0

    def _make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        # After a connection failed the client tries a GET once more, also one that was ended on purpose.
        if self._hung_up:
            raise ConnectionAbortedError("nothing more is asked")
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        self._sockets = [one for one in self._sockets if one.fileno() >= 0] + [made]
        return made

    def _hang_up(self) -> None:
        """Close the sending side of the connection; on TLS the server sees it as one that was cut off, and it still can be read."""
        self._hung_up = True
        for made in self._sockets:
            with contextlib.suppress(OSError):  # not connected, or closed meanwhile
                made.shutdown(socket.SHUT_WR)


def read_jobs(body: bytes) -> list[dict[str, Any]]:
    """Return the jobs of an answer, each as an object with its `id` and `input`, and `batchId` where there is one.

    An `input` that cannot be used (missing, too large, too deep) is an InvalidJob, which says why. What has no id is left out: nobody
    could be told of it.

    Raises:
        ValueError: the answer is no JSON.
    """
    text = body.decode("utf-8", "replace")
    cut = _shallow(text) if text.count("[") + text.count("{") > MAX_DEPTH else text
    value = json.loads(cut, parse_int=_integer)
    found = value if isinstance(value, list) else [value]
    jobs = [job for job in found if isinstance(job, dict) and job.get("id")]
    if len(jobs) < len(found):
        log.error("%d of %d jobs came without an id and cannot be answered", len(found) - len(jobs), len(found))
    suspicious = cut != text or len(body) > MAX_INPUT_BYTES
    return [
        {"id": str(job["id"]), "input": _usable(job, suspicious=suspicious)} | ({"batchId": job["batchId"]} if job.get("batchId") else {})
        for job in jobs
    ]


def _usable(job: Mapping[str, Any], *, suspicious: bool) -> Any:
    """Return a job's input, or the InvalidJob that it deserves; depth and size are looked at where the whole answer is `suspicious`."""
    if "input" not in job:
        return InvalidJob("input: missing, expected an object", param="input")
    if not suspicious:
        return job["input"]
    text = json.dumps(job["input"], ensure_ascii=False)
    if _TOO_DEEP in text:
        return InvalidJob(f"input: nested deeper than {MAX_DEPTH} levels", param="input", code="too_deep")
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_INPUT_BYTES:
        message = f"input: got {size} bytes, expected at most {MAX_INPUT_BYTES}"
        return InvalidJob(message, param="input", code="too_large", status=413)
    return job["input"]


def _integer(text: str) -> float:
    """Return an integer; one of more digits than Python reads becomes infinite, which no request may hold."""
    return int(text) if len(text) <= _MAX_DIGITS else float("inf")


_MAX_DIGITS = 4300
_TOO_DEEP = uuid.uuid4().hex
"""Stands for what is nested too deep; random, so that no job can hold it."""
_SIGN = re.compile(r'"[^"]*"?|[\[{\]}]')
"""A whole text without escapes, or its begin if it has no end, or what begins or ends a level."""


def _shallow(text: str) -> str:
    """Return a JSON text with every array and object below the deepest level allowed replaced by a mark."""
    kept, depth, start = [], 0, 0
    plain = text.replace(r"\\", "__").replace(r"\"", "__")  # as long as before, and every quote left begins or ends a text
    for found in _SIGN.finditer(plain):
        sign = plain[found.start()]
        if sign in "[{":
            depth += 1
            if depth == _DEEPEST + 1:
                kept += [text[start : found.start()], f'"{_TOO_DEEP}"']
        elif sign in "]}":
            if depth == _DEEPEST + 1:
                start = found.end()
            depth -= 1
    if depth > _DEEPEST:
        raise ValueError("an array or an object has no end")
    return "".join([*kept, text[start:]])


_DEEPEST = MAX_DEPTH + 2
"""The levels of an answer: a list of jobs, a job, and its input."""
