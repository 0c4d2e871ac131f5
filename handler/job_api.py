"""RunPod's worker protocol: take jobs, learn which to stop, say that the worker lives, post what jobs give.

The API numbers nothing and acknowledges nothing but requests, hence these rules, which the tests cite.

Taking: the API answers a poll when it has a job, or after a while without one. A job that it hands out is gone from its queue.

T1. A poll that is no longer wanted is not dropped. The sending side of its connection is closed, upon which the server knows that nobody
    waits and hands out nothing; what it had sent before is still read. An answer that has begun is read to its end.
T2. Polls that fail are repeated with growing pauses; the log says when that begins, changes and ends, not each time.

Posting: a piece that is posted twice is streamed twice, and one that is left out is missing.

P1. Pieces of a job go one after the other. The next is posted when the one before it has arrived, so they stay in order.
P2. A piece is posted again when the server refused it (429, 5xx) or the connection failed, with growing pauses, or later where
    Retry-After says so. It is not when the server took it and then stayed silent: then it has probably been kept.
P3. A piece that has not arrived is the last one that was tried. A stream may end early; it never has a hole.
P4. The result, posted last, holds everything that was yielded, so nothing is lost with a stream that ended early. It is posted again
    after silence too, and the longest, since a second result changes nothing and a job without one runs into its time limit. Hence a
    Retry-After beyond that time does not end it, as it ends a stream: it is tried once more when the time is over.
P5. One duplicate cannot be avoided: when the server kept a piece and the connection failed before it said so, the piece comes twice, as a
    whole. Not to post it again would end the stream with every dropped connection, most of which have kept nothing. The result holds it
    once.
P6. Every body is JSON in UTF-8 that any reader takes (`json_text.to_json`).
P7. No piece is posted that is over 1 MB. Text is cut at the end of a frame, and within a frame only if that alone is too large: joined, the
    parts are the text. A JSON value that is too large is not streamed, only part of the result.
P8. A result that the server refuses for good (413, or any other final 4xx) is replaced by a small error that says so.

RunPod's SDK (1.12.0) is what this was compared with; tests/handler/test_sdk_traffic.py lists each difference and its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from handler.errors import InvalidJob, InvalidSettings
from handler.http1 import Broken, Client, Connection, Target
from handler.json_text import MAX_DEPTH, TOO_DEEP, read_bounded, to_json
from handler.timeouts import timeout

__all__ = ["PIECE", "RESULT", "Addresses", "JobPoll", "JobPosts", "Pings", "RetryPolicy", "StopPoll", "headers_for", "read_jobs"]

log = logging.getLogger(__name__)

MAX_INPUT_BYTES = 20 * 1024 * 1024
"""RunPod's own limit for /runsync, the larger of its two (docs.runpod.io, serverless/endpoints/operation-reference), as UTF-8 JSON."""

MAX_PIECE_BYTES = 1_000_000
"""RunPod: "Maximum size for a single streamed payload chunk is 1 MB" (docs.runpod.io, serverless/endpoints/operation-reference)."""

POLL_LIMIT = 90.0
"""Seconds that a poll may take, as in RunPod's own SDK."""

LAST_WORDS = 1.0
"""Seconds that the server has to begin its answer to a poll whose sending side was closed."""

RECEIVING_LIMIT = 60.0
"""Seconds for the rest of an answer that has begun when its poll is no longer wanted: ten jobs of the largest input at 14 Mbit/s."""

_NEVER = 86400.0
"""Seconds for what has other limits."""
_SHORTEST_POLL = 0.05
"""Seconds between two polls that gave nothing: the server is expected to hold them, but one that does not must not be flooded."""
_BUSY_PAUSE = 5.0
"""Seconds to wait after a 429 without Retry-After, as in RunPod's own SDK."""
_REVIVAL_PAUSE = 0.5
"""Seconds to wait after a 400, which the SDK expects of workers that FlashBoot has brought back."""
_SPREAD = 0.5
"""Pauses are this share shorter or longer by chance, so that the workers of an endpoint do not all come back at once."""


# --- where, and as whom


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The URLs of the API for one worker, and the key that its requests carry. Made by `read` from the platform's variables."""

    take: str
    stream: str
    done: str
    ping: str
    key: str
    ping_interval: float
    """Seconds between two pings."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Addresses:
        """Return the addresses that RunPod sets for its workers (RUNPOD_WEBHOOK_...).

        Raises:
            InvalidSettings: naming every variable that is wrong.
        """
        problems: list[str] = []
        worker = quote(environment.get("RUNPOD_POD_ID") or str(uuid.uuid4()), safe="-._~")

        def url(name: str, *places: str) -> str:
            text = environment.get(name, "")
            for place in places:
                text = text.replace(place, worker)
            try:
                Target.parse(text or "http://unset")
            except ValueError as error:
                problems.append(f"{name}: got {text!r}, {error}")
            if not text:
                problems.append(f"{name}: not set, expected an address: RunPod sets it for every worker")
            return text

        interval = environment.get("RUNPOD_PING_INTERVAL") or "10000"
        if not (interval.isascii() and interval.isdigit() and 1000 <= int(interval) <= 86_400_000):
            problems.append(f"RUNPOD_PING_INTERVAL: got {interval!r}, expected milliseconds, from 1000 to 86400000")
            interval = "10000"
        key = environment.get("RUNPOD_AI_API_KEY", "")
        if not (key.isascii() and key.isprintable()):
            problems.append("RUNPOD_AI_API_KEY: got ***, expected printable ASCII without line breaks")
        found = cls(
            take=url("RUNPOD_WEBHOOK_GET_JOB", "$ID"),
            stream=url("RUNPOD_WEBHOOK_POST_STREAM", "$RUNPOD_POD_ID"),
            done=url("RUNPOD_WEBHOOK_POST_OUTPUT", "$RUNPOD_POD_ID"),
            ping=url("RUNPOD_WEBHOOK_PING", "$RUNPOD_POD_ID") if environment.get("RUNPOD_POD_ID") and key else "",
            key=key,
            ping_interval=int(interval) / 1000,
        )
        if problems:
            raise InvalidSettings(problems)
        return found

    def take_for(self, room: int, *, busy: bool) -> str:
        """Return where to ask for so many jobs; `busy` says that some are running."""
        url = self.take if room == 1 else self.take.replace("/job-take/", "/job-take-batch/") + f"&batch_size={room}"
        return f"{url}&job_in_progress={int(busy)}"

    @property
    def stop(self) -> str:
        """Return where to learn which jobs to stop; empty where the platform's address is of another form."""
        return self.take.replace("/job-take/", "/job-stop/") if "/job-take/" in self.take else ""

    def stream_of(self, job: str) -> str:
        """Return where the pieces of a job go."""
        return self.stream.replace("$ID", quote(job, safe="-._~")) + "&isStream=false"

    def done_of(self, job: str) -> str:
        """Return where the result of a job goes."""
        return self.done.replace("$ID", quote(job, safe="-._~")) + "&isStream=true"


def headers_for(key: str) -> dict[str, str]:
    """Return the headers of every request to the API."""
    return {"Authorization": key, "User-Agent": "worker-fastdeploy", "Accept": "*/*"}


class _Backoff:
    """Pauses in seconds: `first`, then twice as long each time, never over `longest`, each one spread by chance."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def pause(self) -> float:
        pause, self._next = self._next, min(self._next * 2, self._longest)
        return pause * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311  # spread, not a secret

    def reset(self) -> None:
        self._next = self._first


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return for how many seconds an answer's Retry-After asks, a number or a date (RFC 9110, 10.2.3); 0 without one that can be read."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0.0


# --- taking


class _PollLog:
    """Pauses after failed polls, and what the log says of them; `what` names the polls (rule T2)."""

    def __init__(self, what: str) -> None:
        self._what, self._last, self._tries = what, "", 0
        self._backoff = _Backoff(0.25, 10.0)

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


class JobPoll:
    """Takes jobs, one poll at a time, until `leave`."""

    def __init__(self, url: Callable[[int], str], headers: Mapping[str, str]) -> None:
        """`url` returns where to ask for so many jobs."""
        self._url = url
        self._client = Client(Target.parse(url(1)), headers=headers)
        self._log = _PollLog("job-take")
        self._leaving = asyncio.Event()
        self._connection: Connection | None = None
        self._hung_up = False

    def close(self) -> None:
        """Close its connection."""
        self._client.close()

    @property
    def is_leaving(self) -> bool:
        """Whether `leave` was called."""
        return self._leaving.is_set()

    def leave(self) -> None:
        """Take nothing more; a poll in progress ends, with the jobs that it has been given."""
        self._leaving.set()

    async def jobs(self, room: int) -> list[dict[str, Any]]:
        """Return at most `room` jobs as `read_jobs` does, or none: after a poll without one, after a failure, or when leaving."""
        if self._leaving.is_set():
            return []
        loop = asyncio.get_running_loop()
        self._hung_up, self._begun, self._connection = False, loop.create_future(), None
        began = loop.time()
        asking, leaving = asyncio.ensure_future(self._ask(room)), asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({asking, leaving}, timeout=POLL_LIMIT, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                await self._give_up(asking)
            jobs, pause = asking.result() if asking.done() and not asking.cancelled() else ([], 0.0)
            if not jobs:
                spent = loop.time() - began
                await asyncio.wait({leaving}, timeout=max(pause, _SHORTEST_POLL - spent, 0))
            return jobs
        finally:
            for task in (asking, leaving):
                task.cancel()
            await asyncio.gather(asking, leaving, return_exceptions=True)

    async def _give_up(self, asking: asyncio.Future[Any]) -> None:
        """Wait for a poll that is no longer wanted: shortly until its answer begins, then long enough to receive it (rule T1)."""
        if not self._begun.done():  # a server that is answering might stop if it saw that nobody waits
            self._hung_up = True
            if self._connection:
                self._connection.hang_up()
            else:
                asking.cancel()  # not connected yet
            await asyncio.wait({asking, self._begun}, timeout=LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
        if self._begun.done():
            await asyncio.wait({asking}, timeout=RECEIVING_LIMIT)
            if not asking.done():
                log.error("an answer to job-take did not arrive within %g s; jobs that it held are lost", RECEIVING_LIMIT)

    async def _ask(self, room: int) -> tuple[list[dict[str, Any]], float]:
        """Return jobs, and for how many seconds to wait before asking again if there are none."""
        try:
            answer = await self._client.send("GET", Target.parse(self._url(room)).path, timeout=_NEVER, used=self._remember)
            self._begun.set_result(None)
            try:
                body = await answer.all()
            finally:
                answer.close()
        except (Broken, asyncio.TimeoutError) as error:
            expected = self._hung_up and not self._begun.done()  # when leaving, and at the end of a poll's time
            return [], 0.0 if expected else self._log.failed(f"the connection failed ({error})")
        if answer.status == 429:
            pause = self._log.failed("the server answered 429")
            return [], max(pause, _retry_after(answer.headers) or _BUSY_PAUSE)
        if answer.status == 400:
            return [], _REVIVAL_PAUSE
        if answer.status not in {200, 204}:
            return [], self._log.failed(f"the server answered {answer.status}")
        try:
            jobs = read_jobs(body) if answer.status == 200 and body.strip() else []
        except ValueError:
            return [], self._log.failed("the server answered what is no JSON")
        self._log.worked()
        return jobs, 0.0

    def _remember(self, connection: Connection) -> None:
        self._connection = connection


def read_jobs(body: bytes) -> list[dict[str, Any]]:
    """Return the jobs of an answer, each as an object with its `id` and `input`, and `batchId` where there is one.

    An `input` that cannot be used (missing, too large, too deep) is an InvalidJob, which says why. What has no id is left out: there is
    nothing to answer to.

    Raises:
        ValueError: the answer is no JSON.
    """
    value, cut = read_bounded(body.decode("utf-8", "replace"), MAX_DEPTH + 2)  # a list of jobs, a job, and its input
    suspicious = cut or len(body) > MAX_INPUT_BYTES
    found = value if isinstance(value, list) else [value]
    jobs = [job for job in found if isinstance(job, dict) and job.get("id")]
    if len(jobs) < len(found):
        log.error("%d of %d jobs came without an id and cannot be answered", len(found) - len(jobs), len(found))
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
    if TOO_DEEP in text:
        return InvalidJob(f"input: nested deeper than {MAX_DEPTH} levels", param="input", code="too_deep")
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_INPUT_BYTES:
        message = f"input: got {size} bytes, expected at most {MAX_INPUT_BYTES}"
        return InvalidJob(message, param="input", code="too_large", status=413)
    return job["input"]


class StopPoll:
    """Learns which running jobs to stop."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        target = Target.parse(url)
        self._client, self._path = Client(target, headers=headers), target.path
        self._log = _PollLog("job-stop")

    def close(self) -> None:
        """Close its connection."""
        self._client.close()

    async def ids(self) -> list[str]:
        """Return the ids of jobs to stop, after a poll; none after one without any, or after a failure and a pause."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answer = await self._client.send("GET", self._path, timeout=POLL_LIMIT)
            try:
                body = await answer.all()
            finally:
                answer.close()
        except (Broken, asyncio.TimeoutError) as error:
            if not isinstance(error, asyncio.TimeoutError):
                await asyncio.sleep(self._log.failed(f"the connection failed ({error})"))
            return []
        if answer.status not in {200, 204}:
            pause = self._log.failed(f"the server answered {answer.status}")
            await asyncio.sleep(max(pause, _retry_after(answer.headers)))
            return []
        self._log.worked()
        found = _stopped(body) if answer.status == 200 else []
        if not found:
            await asyncio.sleep(max(0.0, _SHORTEST_POLL - (loop.time() - began)))
        return found


def _stopped(body: bytes) -> list[str]:
    try:
        value, _ = read_bounded(body.decode("utf-8", "replace"))
    except ValueError:
        return []
    found = value.get("jobsToStop") if isinstance(value, dict) else None
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


class Pings:
    """Tells the platform at intervals that the worker lives, and which jobs it runs.

    In a thread, since the loop may be busy for seconds with a large body, and a worker that is not heard of is taken for dead.
    """

    def __init__(self, addresses: Addresses, jobs: Callable[[], str]) -> None:
        """`jobs` returns the ids of the running jobs, separated by commas; it is called in the thread."""
        self._addresses, self._jobs = addresses, jobs
        self._over = threading.Event()
        self._failing = ""

    def __enter__(self) -> Pings:
        if self._addresses.ping:
            threading.Thread(target=self._run, name="pings", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        while True:
            self._ping()
            if self._over.wait(self._addresses.ping_interval):
                return

    def _ping(self) -> None:
        jobs = self._jobs()
        url = self._addresses.ping + (f"&job_id={quote(jobs, safe='')}" if jobs else "")
        request = urllib.request.Request(url, headers=headers_for(self._addresses.key))  # noqa: S310  # http or https: Addresses checks it
        try:
            with urllib.request.urlopen(request, timeout=2 * self._addresses.ping_interval):  # noqa: S310
                self._note("")
        except (OSError, ValueError) as error:  # HTTPError and URLError among them
            self._note(f"{type(error).__name__}: {error}")

    def _note(self, failure: str) -> None:
        if failure and failure != self._failing:
            log.warning("ping fails, trying again at each interval: %s", failure)
        elif self._failing and not failure:
            log.info("ping works again")
        self._failing = failure


# --- posting


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long a post is tried; times in seconds."""

    total: float
    """From the first try until no further one is begun."""
    silence: float
    """Of one try, until the server's silence counts as its answer."""
    after_silence: bool
    """Whether it is tried again then."""
    to_the_end: bool
    """Whether it is tried once more when `total` is over, if a pause, such as the server asked for, would last longer."""


PIECE = RetryPolicy(total=60, silence=20, after_silence=False, to_the_end=False)
RESULT = RetryPolicy(total=300, silence=60, after_silence=True, to_the_end=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why a try did not succeed."""

    what: str
    again: bool
    wait: float = 0.0
    """Seconds that the server asked for."""
    status: int = 0
    """0 without an answer."""


class JobPosts:
    """Posts one job's pieces and its result."""

    def __init__(
        self,
        stream: Client,
        done: Client,
        job: str,
        addresses: Addresses,
        *,
        piece: RetryPolicy = PIECE,
        result: RetryPolicy = RESULT,
    ) -> None:
        """`stream` and `done` are the clients of those addresses, one for all jobs."""
        self._piece, self._result = piece, result
        self._stream = stream, Target.parse(addresses.stream_of(job)).path
        self._done = done, Target.parse(addresses.done_of(job)).path
        # RunPod's own SDK says so of its JSON.
        lines = f"Content-Type: application/x-www-form-urlencoded\r\ncharset: utf-8\r\nX-Request-ID: {quote(job, safe='-._~')}\r\n"
        self._lines = lines.encode()
        self._broken = False
        self._output: list[bytes] = []

    async def piece(self, value: Any, *, stream: bool = True) -> None:
        """Keep a value for the result and, unless told otherwise, stream it.

        Returns when it has arrived or when the stream is given up, which then does nothing ever after.
        """
        text = to_json(value)
        self._output.append(text)
        for body in _bodies(value, text) if stream else ():
            if self._broken:
                return
            if len(body) > MAX_PIECE_BYTES:
                self._broken = True
                log.info("a value of %d bytes is not streamed, only %d are allowed; it will be in the result", len(body), MAX_PIECE_BYTES)
            elif failure := await self._post(self._stream, body, self._piece):
                self._broken = True
                log.warning("streams nothing more of this job, its result will hold all of it: %s", failure.what)

    async def result(self, error: str | None = None, *, last: bool = False) -> bool:
        """Post the job's end, with all pieces or an error, and return whether it has arrived; `last` says that the worker ends."""
        end = b', "stopPod": true}' if last else b"}"
        body = b'{"error": ' + to_json(error) + end if error is not None else b'{"output": [' + b", ".join(self._output) + b"]" + end
        failure = await self._post(self._done, body, self._result)
        if failure and 400 <= failure.status < 500 and failure.status not in (401, 404, 429):
            log.error("the result of %d bytes was refused for good (%d)", len(body), failure.status)
            failure = await self._post(
                self._done, b'{"error": ' + to_json(json.dumps(_refused(failure.status, len(body)))) + end, self._result
            )
        if failure:
            log.error("the result could not be delivered, the job will run into its time limit: %s", failure.what)
        return not failure

    async def _post(self, to: tuple[Client, str], body: bytes, policy: RetryPolicy) -> _Failure | None:
        """Post until it has arrived; return why it has not."""
        if not (failure := await self._try(to, body, policy)):
            return None
        loop = asyncio.get_running_loop()
        deadline, backoff, tries = loop.time() + policy.total, _Backoff(0.25, 8.0), 1
        while failure is not None:
            pause, left = max(backoff.pause(), failure.wait), deadline - loop.time()
            if not failure.again or left <= 0 or (pause > left and not policy.to_the_end):
                return failure
            if tries == 1:
                log.warning("posting again: %s", failure.what)
            await asyncio.sleep(min(pause, left))
            tries += 1
            failure = await self._try(to, body, policy)
        log.info("posted with try %d", tries)
        return None

    async def _try(self, to: tuple[Client, str], body: bytes, policy: RetryPolicy) -> _Failure | None:
        try:
            client, path = to
            answer = await client.send("POST", path, body, lines=self._lines, timeout=policy.silence)
        except asyncio.TimeoutError:
            return _Failure(what=f"no answer within {policy.silence:g} s", again=policy.after_silence)
        except Broken as error:
            return _Failure(what=f"the connection failed ({error})", again=True)
        try:
            if answer.status >= 300:
                again = answer.status == 429 or answer.status >= 500
                what = f"the server answered {answer.status}"
                return _Failure(what=what, again=again, wait=_retry_after(answer.headers), status=answer.status)
            if not answer.complete:  # it has arrived, whatever becomes of this; a connection is used again once its answer is read
                with contextlib.suppress(Broken, asyncio.TimeoutError):
                    async with timeout(policy.silence):
                        await answer.all()
        finally:
            answer.close()
        return None


def _refused(status: int, size: int) -> dict[str, Any]:
    """Return the error object in the place of a result that the server refused for good."""
    if status == 413:
        message = f"the output of {size} bytes is larger than RunPod takes; ask for less at once, or read the stream"
        error = {"message": message, "code": "output_too_large"}
    else:
        message = f"RunPod refused the output of {size} bytes with status {status}; read the stream, or ask again"
        error = {"message": message, "code": "output_refused"}
    return {"error": {"type": "server_error", "param": None, **error}}


_FRAME_END = "\n\n"


def _bodies(value: Any, text: bytes) -> list[bytes]:
    """Return what to post for one value, whose JSON is `text`; text that is too large is halved at the end of a frame (rule P7)."""
    body = b'{"output": ' + text + b"}"
    if len(body) <= MAX_PIECE_BYTES or not isinstance(value, str) or len(value) < 2:
        return [body]
    half = len(value) // 2
    cut = value.rfind(_FRAME_END, 0, half) + len(_FRAME_END)
    if cut < len(_FRAME_END):
        cut = value.find(_FRAME_END, half) + len(_FRAME_END)
        if cut < len(_FRAME_END) or cut >= len(value):
            cut = half
    return [body for part in (value[:cut], value[cut:]) for body in _bodies(part, to_json(part))]
