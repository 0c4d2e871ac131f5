"""Send a `Request` to the engine and relay its answer: runs of whole frames for a stream, one JSON value otherwise.

A stream is pushed: the connection's reader cuts what arrived into whole frames, mends them, and hands them on in one call, with no task
and no queue between. Leaving the stream closes the connection, and that is how the engine learns to stop working. This is the only place
where exceptions of the HTTP client are translated, and they are translated once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from handler.batching import Batcher
from handler.errors import EngineDied, EngineRejected, EngineTimeout, WorkerError
from handler.exchange import Exchange
from handler.http1 import Answer, Broken, Client, Refused, Target
from handler.job import CHAT, COMPLETIONS, Request
from handler.json_text import read_answer
from handler.native import native_answer, native_piece
from handler.observer import Observation
from handler.settings import Limits
from handler.sse import FrameSplitter, data_of, ends_with_done, frames_of
from handler.translation.exchange import translated

__all__ = ["Piece", "Proxy", "RelayedEngine", "Stream"]

Piece = Any
"""What one yield carries: text made of whole SSE frames, or a JSON value."""

_ENDS_WITH_DONE = frozenset({CHAT, COMPLETIONS})
_ERROR_FRAME = b'data: {"error":'
_KNOWN_SOON = 1.0
"""Seconds that a broken connection waits for the news that the engine died, which tells the caller more than the broken connection does."""
_KEPT = 1.0
"""Seconds that a connection without a request is kept: FastDeploy's server drops one after 2 (gunicorn's default, which it keeps)."""


class RelayedEngine(Protocol):
    """What a proxy needs of an engine."""

    url: str
    died: asyncio.Future[EngineDied]

    @property
    def exchange(self) -> Callable[[Request], Exchange]:
        """How a request is put to it."""

    def condemn(self, reason: str) -> None:
        """End an engine that is alive but of no use."""


class Proxy:
    """The way to one engine: one HTTP client for all requests, on the loop that enters it."""

    def __init__(self, engine: RelayedEngine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._stalls, self.heard = 0, 0.0
        self._client: Client | None = None

    async def __aenter__(self) -> Proxy:
        self._engine.died.add_done_callback(self._close)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._engine.died.remove_done_callback(self._close)
        if self._client:
            self._client.close()

    def _close(self, died: asyncio.Future[EngineDied]) -> None:
        """Break off all answers: an orphan of a dead engine may hold their connections open."""
        if self._client and not died.cancelled():
            self._client.close(died.result())

    async def engine_died(self) -> EngineDied:
        """Wait for the engine's death."""
        return await asyncio.shield(self._engine.died)

    async def relay(self, request: Request, seen: Observation) -> AsyncGenerator[Piece, None]:
        """Yield the engine's answer: for a stream, one piece for all that arrived while the piece before was on its way.

        Raises:
            InvalidJob: the engine must not see this request.
            EngineRejected: the engine answered with an error, before or in the middle of a stream.
            EngineDied: the engine ended, or broke off its answer.
            EngineTimeout: the engine sent nothing for the stall timeout.
        """
        if not request.stream:
            answer = await self.whole(request, seen)
            yield native_answer(answer) if request.native else answer
            return
        async with self.stream(request, seen) as stream:
            batcher = Batcher(request.batch, stream.pause, stream.resume)
            stream.pour(batcher.put, batcher.close)
            while batch := await batcher.take():
                if not request.native:
                    yield batch.decode("utf-8", "replace")
                elif piece := native_piece(frames_of(batch)):
                    yield piece

    async def whole(self, request: Request, seen: Observation) -> Any:
        """Return the whole answer to a request that the engine may have been asked to stream; raises as `relay` does."""
        exchange = self._exchange(request)
        with _failing(exchange):
            if exchange.sent.stream:
                async with self._opened(exchange, seen, exchange.collect) as stream:
                    await stream.ended()
                return exchange.whole(read_answer(json.dumps(exchange.collected()).encode()))
            async with self._answer(exchange.sent, seen) as answer:
                stall = _Stall(answer, self._limits.stall_timeout)
                try:
                    body = await answer.all()
                finally:
                    stall.end()
                if answer.status >= 400:
                    raise EngineRejected(answer.status, body)
                value = read_answer(body)
                seen.whole(value)
                return exchange.whole(value)

    @contextlib.asynccontextmanager
    async def stream(self, request: Request, seen: Observation) -> AsyncIterator[Stream]:
        """Return the stream of a request, whose head has arrived; leaving closes it. Raises as `relay` does."""
        exchange = self._exchange(request)
        with _failing(exchange):
            async with self._opened(exchange, seen, exchange.run) as stream:
                yield stream

    @contextlib.asynccontextmanager
    async def _opened(self, exchange: Exchange, seen: Observation, mend: Callable[[bytes], bytes | None]) -> AsyncIterator[Stream]:
        async with self._answer(exchange.sent, seen) as answer:
            stall = _Stall(answer, self._limits.stall_timeout)
            try:
                if answer.status >= 400:
                    raise EngineRejected(answer.status, await answer.all())
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise EngineRejected(502, await answer.all())
                yield Stream(self, answer, stall, seen, mend, needs_done=exchange.sent.path in _ENDS_WITH_DONE)
            finally:
                stall.end()

    def _exchange(self, request: Request) -> Exchange:
        if self._engine.died.done():
            raise self._engine.died.result()
        return translated(request, self._engine.exchange)

    @contextlib.asynccontextmanager
    async def _answer(self, request: Request, seen: Observation) -> AsyncIterator[Answer]:
        """Send a request, and translate what goes wrong then and in the block."""
        self._client = self._client or Client(Target.parse(self._engine.url), headers={"Content-Type": "application/json"}, idle=_KEPT)
        path = request.path + (f"?{request.query}" if request.query else "")
        body = b"" if request.body is None else json.dumps(request.body).encode()
        seen.sent()
        try:
            answer = await self._client.send(request.method, path, body, timeout=self._limits.stall_timeout)
            try:
                yield answer
            finally:
                answer.close()
        except asyncio.TimeoutError as error:
            raise self._stalled() from error
        except Broken as error:
            raise await self._broken(error) from error
        else:
            if request.method == "POST":  # a frozen engine goes on listing its models
                self._stalls, self.heard = 0, asyncio.get_running_loop().time()
        finally:
            seen.ended()

    async def _broken(self, error: Broken) -> EngineDied:
        """Return what a broken connection means."""
        if isinstance(error, Refused) and error.by_server:
            self._engine.condemn("refused a connection")  # FastDeploy may close its port after a crash and live on
        await asyncio.wait({self._engine.died}, timeout=_KNOWN_SOON)
        return self._engine.died.result() if self._engine.died.done() else EngineDied(f"the engine broke off its answer ({error})")

    def _stalled(self) -> EngineTimeout:
        """Count a request that got nothing in time, and give up the engine after too many in a row.

        One that got nothing while others got something was waiting in the engine's queue, which takes more than is computed at once.
        """
        silent = f"sent nothing for {self._limits.stall_timeout:g} s (REQUEST_STALL_TIMEOUT)"
        if asyncio.get_running_loop().time() - self.heard > self._limits.stall_timeout / 2:
            self._stalls += 1
            if self._stalls >= self._limits.fatal_stalls:
                self._engine.condemn(f"{silent} to {self._stalls} requests in a row (REQUEST_STALLS_FATAL)")
        return EngineTimeout(f"the engine {silent}")


@contextlib.contextmanager
def _failing(exchange: Exchange) -> Iterator[None]:
    """Have errors of the block told as the exchange tells them."""
    try:
        yield
    except WorkerError as error:
        told = exchange.failed(error)
        if told is error:
            raise
        raise told from error


class Stream:
    """The stream of one answer: `pour` it, or wait for its end if it is only to be collected."""

    def __init__(
        self,
        proxy: Proxy,
        answer: Answer,
        stall: _Stall,
        seen: Observation,
        mend: Callable[[bytes], bytes | None],
        *,
        needs_done: bool,
    ) -> None:
        self._proxy, self._answer, self._stall, self._seen, self._mend = proxy, answer, stall, seen, mend
        self._done, self._splitter, self._now = not needs_done, FrameSplitter(), asyncio.get_running_loop().time
        self._put: Callable[[bytes], None] = lambda _: None

    def pour(self, put: Callable[[bytes], None], end: Callable[[BaseException | None], None]) -> None:
        """Hand runs of whole frames to `put` as they arrive, and at the end call `end`, with the error if the stream broke."""
        self._put = put
        self._answer.pour(self._take, lambda error: end(error or self._finish()))

    def pause(self) -> None:
        """Stop reading from the engine until `resume`."""
        self._stall.pause()
        self._answer.pause()

    def resume(self) -> None:
        """Go on reading."""
        self._stall.resume()
        self._answer.resume()

    async def ended(self) -> None:
        """Take the whole stream and return at its end; raises what broke it."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(error: BaseException | None) -> None:
            if not over.done():
                over.set_exception(error) if error else over.set_result(None)

        self.pour(lambda _: None, end)
        await over

    def _take(self, chunk: bytes) -> None:
        self._proxy.heard = self._stall.heard = self._now()
        self._relay(self._splitter.feed(chunk))

    def _relay(self, run: bytes) -> None:
        if not run:
            return
        if _ERROR_FRAME in run:
            frames = frames_of(run)
            at = next((at for at, frame in enumerate(frames) if frame.startswith(_ERROR_FRAME)), None)
            if at is not None:
                self._relay(b"".join(frames[:at]))
                raise EngineRejected(500, data_of(frames[at]) or b"")
        self._seen.run(run)
        self._done = self._done or ends_with_done(run)
        if mended := self._mend(run):
            self._put(mended)

    def _finish(self) -> BaseException | None:
        """Take what is left at the end of the answer; return what is wrong with it."""
        try:
            self._relay(self._splitter.close())
        except Exception as error:  # noqa: BLE001  # whatever it is, who waits for the stream has to learn of it
            return error
        return None if self._done else EngineDied("the engine's stream ended without [DONE]")


class _Stall:
    """Ends an answer of which nothing comes for `limit` seconds while it is read: one timer for it, not one for each piece."""

    def __init__(self, answer: Answer, limit: float) -> None:
        self._answer, self._limit, self._loop = answer, limit, asyncio.get_running_loop()
        self.heard = self._loop.time()
        """When something came last."""
        self._paused = False
        self._rest(limit)

    def pause(self) -> None:
        """Count no time from now on: the engine waits for the caller."""
        self._paused = True

    def resume(self) -> None:
        """Count from now on."""
        self._paused, self.heard = False, self._loop.time()

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _rest(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        heard = max(self.heard, self._answer.heard)
        left = self._limit if self._paused else heard + self._limit - self._loop.time()
        if left > 0:
            self._rest(left)
        else:
            self._answer.fail(asyncio.TimeoutError())
