"""Post what a job gives to RunPod's job API until it has arrived.

The API numbers nothing: a piece that is posted twice is streamed twice, and one that is left out is missing. Hence these rules.

D1. Pieces of a job go one after the other. The next is posted when the one before it has arrived, so they stay in order.
D2. A piece is posted again when the server refused it (429, 5xx) or the connection failed, with growing pauses, or later where
    Retry-After says so. It is not when the server took it and then stayed silent: then it has probably been kept.
D3. A piece that has not arrived is the last one that was tried. A stream may end early; it never has a hole.
D4. The result, posted last, holds everything that was yielded, so nothing is lost with a stream that ended early. It is posted again
    after silence too, and the longest, since a second result changes nothing and a job without one runs into its time limit. Hence a
    Retry-After beyond that time does not end it, as it ends a stream: it is tried once more when the time is over.
D5. One duplicate cannot be avoided: when the server kept a piece and the connection failed before it said so, the piece comes twice, as a
    whole. Not to post it again would end the stream with every dropped connection, most of which have kept nothing. The result holds it
    once.
D6. Every body is JSON in UTF-8. What JSON has no form for becomes null (NaN, the infinities, objects of other types), half of a
    surrogate pair becomes U+FFFD.
D7. No piece is posted that is over 1 MB. Text is cut at the end of a frame, and within a frame only if that alone is too large: joined, the
    parts are the text. A JSON value that is too large is not streamed, only part of the result.
D8. A result that the server finds too large (413) is replaced by an error that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from handler.backoff import Backoff, asked_to_wait

__all__ = ["Addresses", "Delivery", "Patience", "to_json"]

log = logging.getLogger(__name__)

MAX_PIECE_BYTES = 1_000_000
"""RunPod: "Maximum size for a single streamed payload chunk is 1 MB" (docs.runpod.io, serverless/endpoints/operation-reference)."""

MAX_DEPTH = 200
"""Values nested deeper become null; far below where Python's own JSON writer gives up."""

MAX_INTEGER_BITS = 14_000
"""Python writes no integer of more than 4300 digits."""

_FRAME_END = "\n\n"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a post is tried; times in seconds."""

    total: float
    """From the first try until no further one is begun."""
    silence: float
    """Of one try, until the server's silence counts as its answer."""
    after_silence: bool
    """Whether it is tried again then."""
    to_the_end: bool
    """Whether it is tried once more when `total` is over, if a pause, such as the server asked for, would last longer."""


PIECE = Patience(total=60, silence=20, after_silence=False, to_the_end=False)
RESULT = Patience(total=300, silence=60, after_silence=True, to_the_end=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the pieces and the result of one job go."""

    pieces: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why a try did not succeed."""

    what: str
    again: bool
    wait: float = 0.0
    """Seconds that the server asked for."""
    status: int = 0
    """0 without an answer."""


class Delivery:
    """The way of one job's pieces and of its result to the server."""

    def __init__(
        self, session: aiohttp.ClientSession, job: str, addresses: Addresses, *, piece: Patience = PIECE, result: Patience = RESULT
    ) -> None:
        self._session, self._addresses = session, addresses
        self._piece, self._result = piece, result
        self._headers = {
            "Content-Type": "application/x-www-form-urlencoded",  # RunPod's own SDK says so of its JSON
            "charset": "utf-8",
            "X-Request-ID": job,
        }
        self._broken = False

    async def piece(self, value: Any) -> None:
        """Stream a value; returns when it has arrived or when the stream is given up, and then does nothing ever after."""
        for body in _bodies(value):
            if self._broken:
                return
            if len(body) > MAX_PIECE_BYTES:
                self._broken = True
                log.info("a value of %d bytes is not streamed, only %d are allowed; it will be in the result", len(body), MAX_PIECE_BYTES)
            elif failure := await self._post(self._addresses.pieces, body, self._piece):
                self._broken = True
                log.warning("streams nothing more of this job, its result will hold all of it: %s", failure.what)

    async def result(self, result: Mapping[str, Any]) -> bool:
        """Post the job's end, `{"output": ...}` or `{"error": TEXT}`, and return whether it has arrived."""
        body = to_json(result)
        failure = await self._post(self._addresses.result, body, self._result)
        if failure and failure.status == 413:
            log.error("the result of %d bytes was refused as too large (413)", len(body))
            message = f"the output of {len(body)} bytes is larger than RunPod takes; ask for less at once, or read the stream"
            error = {"error": {"message": message, "type": "server_error", "param": None, "code": "output_too_large"}}
            small = {name: value for name, value in result.items() if name != "output"} | {"error": json.dumps(error)}
            failure = await self._post(self._addresses.result, to_json(small), self._result)
        if failure:
            log.error("the result could not be delivered, the job will run into its time limit: %s", failure.what)
        return not failure

    async def _post(self, url: str, body: bytes, patience: Patience) -> _Failure | None:
        """Post until it has arrived; return why it has not."""
        loop = asyncio.get_running_loop()
        deadline, backoff, tries = loop.time() + patience.total, Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), 1
        while failure := await self._try(url, body, patience):
            pause, left = max(backoff.pause(), failure.wait), deadline - loop.time()
            if not failure.again or left <= 0 or (pause > left and not patience.to_the_end):
                return failure
            if tries == 1:
                log.warning("posting again: %s", failure.what)
            await asyncio.sleep(min(pause, left))
            tries += 1
        if tries > 1:
            log.info("posted with try %d", tries)
        return None

    async def _try(self, url: str, body: bytes, patience: Patience) -> _Failure | None:
        timeout = aiohttp.ClientTimeout(total=patience.silence, sock_connect=min(10, patience.silence))
        try:
            data = body if len(body) < MAX_PIECE_BYTES else io.BytesIO(body)  # bytes are written in one go, however many
            async with self._session.post(url, data=data, headers=self._headers, timeout=timeout) as response:
                if response.status >= 300:
                    again = response.status == 429 or response.status >= 500
                    what = f"the server answered {response.status}"
                    return _Failure(what=what, again=again, wait=asked_to_wait(response.headers), status=response.status)
                with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    await response.read()  # it has arrived, whatever becomes of this; a connection is used again once its answer is read
        except aiohttp.ConnectionTimeoutError:
            return _Failure(what="no connection within 10 s", again=True)
        except asyncio.TimeoutError:
            return _Failure(what=f"no answer within {patience.silence:g} s", again=patience.after_silence)
        except aiohttp.ClientError as error:
            return _Failure(what=f"the connection failed ({type(error).__name__}: {error})", again=True)
        return None


def to_json(value: Any) -> bytes:
    """Return a value as JSON in UTF-8, whatever it holds (rule D6)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_plain(value, MAX_DEPTH), ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any, depth: int) -> Any:
    """Return the value with what JSON cannot say replaced."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if depth and isinstance(value, dict):
        return {_plain(name if isinstance(name, str) else str(name), 0): _plain(item, depth - 1) for name, item in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    sayable = (
        (isinstance(value, int) and value.bit_length() <= MAX_INTEGER_BITS)  # True and False are integers, too
        or (isinstance(value, float) and math.isfinite(value))
    )
    return value if sayable else None


def _bodies(value: Any) -> list[bytes]:
    """Return what to post for one value; text that is too large is halved at the end of a frame until it fits (rule D7)."""
    body = to_json({"output": value})
    if len(body) <= MAX_PIECE_BYTES or not isinstance(value, str) or len(value) < 2:
        return [body]
    half = len(value) // 2
    cut = value.rfind(_FRAME_END, 0, half) + len(_FRAME_END)
    if cut < len(_FRAME_END):
        cut = value.find(_FRAME_END, half) + len(_FRAME_END)
        if cut < len(_FRAME_END) or cut >= len(value):
            cut = half
    return _bodies(value[:cut]) + _bodies(value[cut:])
