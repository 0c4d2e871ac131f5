"""Send a `Request` to the engine and relay its answer: pieces of whole frames for a stream, one JSON value otherwise.

Closing the iterator closes the connection, and that is how the engine learns to stop working. This is the only place where exceptions of
the HTTP client are translated, and they are translated once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp
import yarl

from handler.batching import Batcher
from handler.dialect import Exchange
from handler.engine import SupervisedEngine
from handler.errors import EngineDied, EngineRejected, EngineTimeout
from handler.job import CHAT, COMPLETIONS, Request
from handler.native import native_answer, native_piece
from handler.settings import Limits
from handler.sse import FrameSplitter, data_of, is_done

__all__ = ["Piece", "Proxy"]

Piece = Any
"""What one yield carries: text made of whole SSE frames, or a JSON value."""

T = TypeVar("T")

_ENDS_WITH_DONE = frozenset({CHAT, COMPLETIONS})
_ERROR_FRAME = b'data: {"error":'
_KNOWN_SOON = 1.0
"""Seconds that a broken connection waits for the news that the engine died, which tells the caller more than the broken connection does."""


class Proxy:
    """The way to one engine: one client session for all requests, on the loop that enters it."""

    def __init__(self, engine: SupervisedEngine, limits: Limits) -> None:
        self._url, self._death, self._condemn = yarl.URL(engine.url), engine.death, engine.condemn
        self._limits, self._exchange = limits, engine.exchange
        self._stalls, self._heard = 0, 0.0

    async def __aenter__(self) -> Proxy:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self._limits.stall_timeout)
        # FastDeploy's server drops a connection after 2 idle seconds (gunicorn's default, which it leaves as it is), and taking one up at
        # that moment would look like a death.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        loop = asyncio.get_running_loop()
        died = self._died = loop.create_future()

        def tell(death: Future[EngineDied]) -> None:
            with contextlib.suppress(RuntimeError):  # this loop has ended, and nobody waits
                loop.call_soon_threadsafe(died.set_result, death.result())

        self._death.add_done_callback(tell)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def engine_died(self) -> EngineDied:
        """Wait for the engine's death."""
        return await asyncio.shield(self._died)

    async def relay(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield the engine's answer.

        Raises:
            InvalidJob: the engine must not see this request.
            EngineRejected: the engine answered with an error, before or in the middle of a stream.
            EngineDied: the engine ended, or broke off its answer.
            EngineTimeout: the engine sent nothing for the stall timeout.
        """
        exchange = self._exchange(request)
        if not request.stream:
            answer = await self._while_alive(self._whole(exchange))
            yield native_answer(answer) if request.native else answer
            return
        batcher = Batcher(request.batch)
        pump = asyncio.create_task(self._pump(exchange, batcher))
        try:
            while frames := await batcher.take():
                if not request.native:
                    yield b"".join(frames).decode("utf-8", "replace")
                elif piece := native_piece(frames):
                    yield piece
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _whole(self, exchange: Exchange) -> Any:
        """Return the whole answer to a request that the engine may have been asked to stream."""
        if not exchange.sent.stream:
            async with self._translated(exchange.sent), self._send(exchange.sent) as arriving:
                return exchange.whole(_value(await arriving.all()))
        async with contextlib.aclosing(self._frames(exchange.sent)) as arrivals:
            async for frames in arrivals:
                for frame in frames:
                    exchange.collect(_no_error(frame))
        return exchange.whole(_sendable(exchange.collected()))

    async def _pump(self, exchange: Exchange, batcher: Batcher) -> None:
        """Move frames from the engine to the batcher until either side ends, and close the batcher with the reason."""
        try:
            await self._while_alive(self._forward(exchange, batcher))
        except Exception as error:  # noqa: BLE001  # whatever it is, who waits at the batcher has to learn of it
            batcher.close(error)
        else:
            batcher.close()

    async def _forward(self, exchange: Exchange, batcher: Batcher) -> None:
        async with contextlib.aclosing(self._frames(exchange.sent)) as arrivals:
            async for frames in arrivals:
                for frame in frames:
                    for leaving in exchange.frame(_no_error(frame)):
                        batcher.put(leaving, tokens=_tokens(leaving))
                await batcher.room()

    async def _frames(self, request: Request) -> AsyncGenerator[list[bytes], None]:
        """Yield the frames of the engine's stream, those together that arrived together; an end without [DONE] is raised."""
        splitter, done, now = FrameSplitter(), False, asyncio.get_running_loop().time
        async with self._translated(request), self._send(request) as arriving:
            async for chunk in arriving:
                self._heard = now()
                frames = splitter.feed(chunk)
                done = done or any(map(is_done, frames))
                yield frames
        frames = splitter.close()
        done = done or any(map(is_done, frames))
        yield frames
        if request.path in _ENDS_WITH_DONE and not done:
            raise EngineDied("the engine's stream ended without [DONE]")

    async def _while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work at the engine, but not beyond the engine's own life: an orphan of it may hold the connection open."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._died}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise EngineDied(str(self._died.result()))
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _send(self, request: Request) -> AsyncIterator[_Arriving]:
        url = self._url.join(yarl.URL(request.path + (f"?{request.query}" if request.query else ""), encoded=True))
        async with self._session.request(request.method, url, json=request.body) as response:
            with _Arriving(response.content, self._limits.stall_timeout) as arriving:
                if response.status >= 400:
                    raise EngineRejected(response.status, await arriving.all())
                if request.stream and response.content_type != "text/event-stream":
                    raise EngineRejected(502, await arriving.all())
                yield arriving

    @contextlib.asynccontextmanager
    async def _translated(self, request: Request) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.TimeoutError as error:
            raise self._stalled() from error
        except aiohttp.ClientError as error:
            if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
                self._condemn("refused a connection")  # FastDeploy may close its port after a crash and live on
            await asyncio.wait({self._died}, timeout=_KNOWN_SOON)
            news = str(self._died.result()) if self._died.done() else f"the engine broke off its answer ({type(error).__name__})"
            raise EngineDied(news) from error
        else:
            if request.method == "POST":  # a frozen engine goes on listing its models
                self._stalls, self._heard = 0, asyncio.get_running_loop().time()

    def _stalled(self) -> EngineTimeout:
        """Count a request that got nothing in time, and give up the engine after too many in a row.

        One that got nothing while others got something was waiting in the engine's queue, which takes more than is computed at once.
        """
        silent = f"sent nothing for {self._limits.stall_timeout:g} s (REQUEST_STALL_TIMEOUT)"
        if asyncio.get_running_loop().time() - self._heard > self._limits.stall_timeout / 2:
            self._stalls += 1
            if self._stalls >= self._limits.fatal_stalls:
                self._condemn(f"{silent} to {self._stalls} requests in a row (REQUEST_STALLS_FATAL)")
        return EngineTimeout(f"the engine {silent}")


class _Arriving:
    """The bytes of an answer in pieces, as they arrive, while the `with` block lasts.

    A wait for a piece ends with asyncio.TimeoutError after `limit` seconds. The client's own limit ends with its connection, and its
    reader waits on: when an answer stops being HTTP in the middle, aiohttp 3.14 closes the connection and wakes nobody.
    """

    def __init__(self, content: aiohttp.StreamReader, limit: float) -> None:
        self._content, self._limit, self._now = content, limit, asyncio.get_running_loop().time
        self._since = math.inf
        """When the wait for a piece began, if anybody waits."""

    def __enter__(self) -> _Arriving:
        self._rest(self._limit)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _rest(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """End a wait that is too long, else look again when it would be: one timer for a request costs less than one for each piece."""
        left = self._since + self._limit - self._now()
        if left > 0:
            self._rest(min(left, self._limit))
        else:
            self._content.set_exception(asyncio.TimeoutError())

    def __aiter__(self) -> _Arriving:
        return self

    async def __anext__(self) -> bytes:
        self._since = self._now()
        piece = await self._content.readany()
        self._since = math.inf
        if not piece:
            raise StopAsyncIteration
        return piece

    async def all(self) -> bytes:
        return b"".join([piece async for piece in self])


def _no_error(frame: bytes) -> bytes:
    if frame.startswith(_ERROR_FRAME):
        raise EngineRejected(500, data_of(frame) or b"")
    return frame


def _tokens(frame: bytes) -> int:
    """Count a frame for its batch: as one token if it holds a choice, but the one that opens a chat answer holds none."""
    return int(b'"choices":[{' in frame and b'"role":"assistant"' not in frame)


def _value(body: bytes) -> Any:
    """Return a whole answer as the JSON value that it is, or as text when it is none, in a form that every JSON writer takes.

    NaN and the infinities, which Python's reader lets through, become null, and halves of surrogate pairs U+FFFD: the SDK loses a job
    over either.
    """
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except ValueError:
        return text or {"status": 200}
    return _whole_characters(value) if "\\ud" in text.lower() else value


def _sendable(value: Any) -> Any:
    """Return an answer made of frames in the form of `_value`."""
    return _value(json.dumps(value).encode())


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {_whole_characters(name): _whole_characters(item) for name, item in value.items()}
    return value
