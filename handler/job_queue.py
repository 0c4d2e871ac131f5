"""The queue face: RunPod jobs in, pieces out, as many at the same time as there are slots.

`Handler` is what a job passes through in every face that knows jobs: an async generator that never raises. Its last yield is
`{"error": TEXT}` when the job failed, with a JSON OpenAI error object as TEXT: RunPod knows a job's failure only as a text.

`serve` takes jobs once the engine has answered, until the worker is asked to stop or the engine dies; what runs then is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import traceback
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

from handler.engine import Engine
from handler.errors import InvalidJob, WorkerError, for_log, last_frames
from handler.http1 import Client, Target
from handler.job import Request, read_job
from handler.job_api import Addresses, JobPoll, JobPosts, Pings, StopPoll, headers_for
from handler.lifecycle import Event, Lifecycle
from handler.logs import current_job
from handler.observer import Observation, Observer
from handler.proxy import Piece, Proxy
from handler.settings import Settings
from handler.shutdown import Shutdown
from handler.translation.exchange import error_of

if TYPE_CHECKING:
    from handler.metrics import Metrics

__all__ = ["Handler", "serve"]

log = logging.getLogger(__name__)


class Handler:
    """Answers jobs through a proxy that is entered on the running loop."""

    def __init__(self, proxy: Proxy, settings: Settings, observer: Observer | None = None) -> None:
        self._proxy, self._settings, self._observer = proxy, settings, observer or Observer()

    async def answer(self, job: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """Yield the answer to one job; never raises, except when it is cancelled."""
        with self._observer.request() as seen:
            async with contextlib.aclosing(self._answer(job, seen)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _answer(self, job: dict[str, Any], seen: Observation) -> AsyncGenerator[Piece, None]:
        streamed = False
        try:
            request = self._read(job.get("input"))
            seen.path = request.path
            async with contextlib.aclosing(self._proxy.relay(request, seen)) as pieces:
                async for piece in pieces:
                    yield piece
                    streamed = request.stream and not request.native
        except Exception as error:  # noqa: BLE001  # the one place: whatever happens, the job ends with an error object
            if not isinstance(error, WorkerError):
                # Without the error's own text, which may quote the request.
                log.error("%s, raised at\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))  # noqa: TRY400
            seen.status, body = error_of(seen.path, error)
            log.warning("failed: %s", for_log(error))
            if streamed:
                yield last_frames(error).decode()
            yield {"error": json.dumps(body)}

    def _read(self, job_input: object) -> Request:
        if isinstance(job_input, InvalidJob):  # found when the job was taken
            raise job_input
        return read_job(job_input, self._settings.batch)


async def serve(
    engine: Engine,
    settings: Settings,
    addresses: Addresses,
    lifecycle: Lifecycle,
    shutdown: Shutdown,
    metrics: Metrics | None = None,
) -> None:
    """Take and answer jobs until the platform asks to stop or the engine dies; `metrics` is given where somebody can read them.

    Raises:
        EngineFailedToStart, Interrupted: before any job was taken.
    """
    await shutdown.unless_requested(engine.ready())
    lifecycle.cold_start.note("taking jobs")
    lifecycle.cold_start.show()
    async with Proxy(engine, settings.limits) as proxy:
        queue = _Queue(Handler(proxy, settings, metrics), addresses, lifecycle, settings.limits.max_concurrency)
        with Pings(addresses, queue.running_ids):
            await queue.run(shutdown.requested.wait(), proxy.engine_died())


class _Queue:
    """The slots of one worker and the jobs in them."""

    def __init__(self, handler: Handler, addresses: Addresses, lifecycle: Lifecycle, slots: int) -> None:
        self._handler, self._addresses, self._lifecycle, self._slots = handler, addresses, lifecycle, slots
        self._running: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._engine_died = False
        headers = headers_for(addresses.key)
        self._poll = JobPoll(lambda room: addresses.take_for(room, busy=bool(self._running)), headers)
        self._stops = StopPoll(addresses.stop, headers) if addresses.stop else None
        self._stream, self._done = _clients(headers, addresses.stream, addresses.done)

    def running_ids(self) -> str:
        """Return the ids of the running jobs, separated by commas; may be called from any thread."""
        return ",".join(tuple(self._running))

    async def run(self, *ends: Any) -> None:
        """Take and run jobs until one of the two events comes, the wish to stop or the engine's death, and finish what runs."""
        asked, died = (asyncio.ensure_future(end) for end in ends)
        beside = [asyncio.ensure_future(self._stop_jobs()), asyncio.ensure_future(self._leave_after(asked, died)), asked, died]
        try:
            await self._take()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            for client in (self._poll, self._stops, self._stream, self._done):
                if client:
                    client.close()

    async def _leave_after(self, asked: asyncio.Future[Any], died: asyncio.Future[Any]) -> None:
        await asyncio.wait({asked, died}, return_when=asyncio.FIRST_COMPLETED)
        self._lifecycle.report(Event.TERM)
        self._poll.leave()
        self._room.set()
        await died
        self._engine_died = True  # job-done then tells the platform that this worker is not to be used again

    async def _take(self) -> None:
        """Start jobs as they come and as long as there is room for them."""
        taken = 0
        while not self._poll.is_leaving:
            room = self._slots - len(self._running)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            for job in await self._poll.jobs(room):
                if job["id"] in self._running:
                    log.warning("job %s was handed out again while it runs", job["id"])
                    continue
                taken += 1
                if taken == 1:
                    self._lifecycle.cold_start.note("first job taken")
                    self._lifecycle.cold_start.show()
                self._begin(job)

    def _begin(self, job: dict[str, Any]) -> None:
        task = self._running[job["id"]] = asyncio.ensure_future(self._answer(job))

        def ended(_: object) -> None:
            self._running.pop(job["id"], None)
            self._room.set()

        task.add_done_callback(ended)

    async def _answer(self, job: dict[str, Any]) -> None:
        """Stream and end one job."""
        current_job.set(job["id"])
        posts = JobPosts(self._stream, self._done, job["id"], self._addresses)
        streams = isinstance(job["input"], dict) and job["input"].get("stream") is True
        error: str | None = None
        async with contextlib.aclosing(self._handler.answer(job)) as pieces:
            async for piece in pieces:
                if isinstance(piece, dict) and piece.keys() == {"error"}:
                    error = piece["error"]
                    break
                # The one piece of a whole answer is part of the result, which follows at once.
                await posts.piece(piece, stream=streams or isinstance(piece, str))
        await posts.result(error, last=self._engine_died)

    async def _stop_jobs(self) -> None:
        if self._stops is None:
            log.warning(
                "RUNPOD_WEBHOOK_GET_JOB has no /job-take/ in it, so the address of cancelled jobs is not known: none can be stopped"
            )
        while self._stops:
            for name in await self._stops.ids():
                if task := self._running.get(name):
                    log.info("stopping job %s", name)
                    task.cancel()


def _clients(headers: Mapping[str, str], *urls: str) -> list[Client]:
    """Return a client for each URL: the same one where they are of the same server."""
    made: dict[tuple[str, str, int], Client] = {}
    found = []
    for target in map(Target.parse, urls):
        server = (target.scheme, target.host, target.port)
        made[server] = made.get(server) or Client(target, headers=headers)
        found.append(made[server])
    return found
