"""The RunPod SDK, with its loop replaced where it loses jobs or time: the only file that knows the SDK, private names included.

Of runpod 1.12.0 stay: reading the platform's variables, the fitness checks, the heartbeat process, the list of running jobs, the channel
that tells which jobs to stop, and the bookkeeping around each job. Replaced is `JobScaler.run`, of which

- taking loses a job that is handed out during shutdown or that it cannot read, spins when polls fail, and sleeps 1 s when all slots are
  taken, so that N slots do at most N jobs per second;
- starting waits up to 0.1 s for the next look at a queue;
- posting loses what meets a dropped connection or a 429, and whole jobs over a lone surrogate;
- leaving waits for polls of up to 90 s.

`taking` and `delivery` do these. tests/handler/test_sdk.py fails when anything that is used or replaced here differs in another release.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from handler.delivery import Addresses, Delivery
from handler.errors import InvalidSettings
from handler.ledger import Ledger
from handler.lifecycle import Event, Lifecycle
from handler.logs import current_job
from handler.proxy import Piece, Proxy
from handler.taking import Pace, Taker

__all__ = ["SDK_VARIABLES", "Work", "load", "serve_jobs"]

log = logging.getLogger(__name__)

SDK_VARIABLES = {
    "RUNPOD_LOG_LEVEL": "INFO",  # the SDK's own default, DEBUG, tells of every poll and every heartbeat
    "RUNPOD_PING_INTERVAL": "10000",  # milliseconds, the SDK's own default
    "RUNPOD_SKIP_GPU_CHECK": "true",  # it would ask for memory of a GPU that the engine owns by then
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",  # a disk filled by the model would end the worker
}
"""What the SDK must find in the environment when it is imported, unless the operator says otherwise; empty is unset, but not to the SDK."""

_LOG_LEVELS = ("NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What there is to do with jobs, and how many at the same time."""

    answer: Callable[[dict[str, Any]], AsyncGenerator[Piece, None]]
    """Yields the answer to a job, last of all `{"error": TEXT}` when it failed; never raises."""
    proxy: Proxy
    lifecycle: Lifecycle
    ledger: Ledger
    concurrency: int


def load(environment: Mapping[str, str]) -> types.ModuleType:
    """Import the SDK and return its package; `environment` is what it reads then, with `SDK_VARIABLES`.

    Raises:
        InvalidSettings: naming the variables over which it would break.
    """
    problems = []
    if (level := _given(environment, "RUNPOD_LOG_LEVEL").upper()) not in _LOG_LEVELS:
        problems.append(f"RUNPOD_LOG_LEVEL: got {level!r}, expected one of {', '.join(_LOG_LEVELS)}")
    interval = _given(environment, "RUNPOD_PING_INTERVAL")
    if not (interval.isascii() and interval.isdigit() and int(interval) >= 1000):
        problems.append(f"RUNPOD_PING_INTERVAL: got {interval!r}, expected milliseconds, at least 1000")
    if problems:
        raise InvalidSettings(problems)
    with _without_cpuinfo():
        import runpod  # noqa: TID251
    loaded: types.ModuleType = runpod
    return loaded


def _given(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or SDK_VARIABLES[name]


def serve_jobs(runpod: types.ModuleType, work: Work) -> None:
    """Take and answer jobs until the platform asks to stop or the engine dies."""
    from runpod.serverless.modules import rp_ping, rp_scale  # noqa: TID251

    # The heartbeat is a forked process, ended by TERM, to which it would answer as the worker does while it starts.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    rp_ping.Heartbeat.ping_loop = _while_worker_lives(rp_ping.Heartbeat.ping_loop)
    rp_scale.JobScaler = type("Scaler", (_Loop, rp_scale.JobScaler), {"work": work})
    vars(runpod.serverless)["print"] = lambda text: log.info("%s", text)  # its greeting is not in the platform's shape
    runpod.serverless.start({"handler": work.answer})


@contextlib.contextmanager
def _without_cpuinfo() -> Iterator[None]:
    """Stand in for a module that takes 1.3 s to find the processor's name, which the SDK shows in debug output that is not used here."""
    stand_in = types.ModuleType("cpuinfo")
    vars(stand_in)["get_cpu_info"] = lambda: {"brand_raw": ""}
    if "cpuinfo" in sys.modules or "runpod" in sys.modules:
        yield
        return
    sys.modules["cpuinfo"] = stand_in
    try:
        yield
    finally:
        del sys.modules["cpuinfo"]


def _while_worker_lives(ping_loop: Callable[..., None]) -> Callable[..., None]:
    """Return the heartbeat's loop, ended with the worker even if that was killed: else it would report a dead worker's jobs for ever."""

    def end_with_worker() -> None:
        worker = multiprocessing.parent_process()
        if worker:
            worker.join()
            os._exit(1)

    def loop(*arguments: Any) -> None:
        threading.Thread(target=end_with_worker, daemon=True).start()
        ping_loop(*arguments)

    return loop


class _Loop:
    """The parts of the SDK's `JobScaler` that are replaced; the rest of it is the other base of the class that `serve_jobs` makes."""

    work: Work
    config: dict[str, Any]
    jobs_queue: asyncio.Queue[dict[str, Any]]
    jobs_tasks: dict[str, asyncio.Future[None]]
    """The running jobs, by id."""
    job_progress: Any
    """What the heartbeat tells of them."""
    handle_job: Callable[..., Coroutine[Any, Any, None]]
    monitor_stop_signals: Callable[..., Coroutine[Any, Any, None]]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.jobs_handler = self._answer
        self.stop_signals_fetcher = self._stop_signals
        self._stops = Pace("job-stop")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_to_leave = False

    def handle_shutdown(self, *_: object) -> None:
        """Leave. Called in a signal handler: the loop may be asleep, and any lock may be held."""
        self._asked_to_leave = True
        if self._loop:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self.kill_worker)

    def kill_worker(self) -> None:
        """Leave: take nothing more and finish what runs."""
        self.work.lifecycle.report(Event.TERM)
        self._taker.leave()
        self._room.set()

    async def run(self) -> None:
        """Take and run jobs until told to leave."""
        from runpod.http_client import AsyncClientSession  # noqa: TID251
        from runpod.serverless.modules import rp_job  # noqa: TID251

        self._room = asyncio.Event()
        async with AsyncClientSession() as session, Taker(session.headers, rp_job._job_get_url) as self._taker, self.work.proxy:  # noqa: SLF001
            self._loop = asyncio.get_running_loop()
            if self._asked_to_leave or self.work.lifecycle.asked_to_leave:
                self.kill_worker()
            beside = [asyncio.ensure_future(task) for task in (self.monitor_stop_signals(session), self._leave_when_engine_died())]
            try:
                await self._take(session)
                await asyncio.gather(*self.jobs_tasks.values(), return_exceptions=True)
            finally:
                # For monitor_stop_signals: before Python 3.12 wait_for loses a cancellation that meets the end of a poll.
                super().kill_worker()  # type: ignore[misc]
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)

    async def _take(self, session: Any) -> None:
        """Start jobs as they come and as long as there is room for them, until told to leave."""
        taken = 0
        while not self._taker.is_leaving:
            room = self.work.concurrency - len(self.jobs_tasks)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            for job in await self._taker.jobs(room):
                if job["id"] in self.jobs_tasks:
                    log.warning("job %s was handed out again while it runs", job["id"])
                    continue
                taken += 1
                if taken == 1:
                    self.work.ledger.note("first job taken")
                    self.work.ledger.close()
                self._begin(session, job)

    def _begin(self, session: Any, job: dict[str, Any]) -> None:
        # handle_job takes every job for one that came through this queue.
        self.jobs_queue.put_nowait(job)
        self.jobs_queue.get_nowait()
        self.job_progress.add(job["id"])
        task = self.jobs_tasks[job["id"]] = asyncio.ensure_future(self.handle_job(session, job))

        def ended(_: object) -> None:
            if self.jobs_tasks.get(job["id"]) is task:  # not handed out again meanwhile
                del self.jobs_tasks[job["id"]]  # a job that was stopped before its first step has not done so itself
                self.job_progress.remove(job["id"])
            self._room.set()

        task.add_done_callback(ended)

    async def _answer(self, session: Any, _: dict[str, Any], job: dict[str, Any]) -> None:
        """Stream and end one job."""
        from runpod.serverless.modules import rp_http  # noqa: TID251

        current_job.set(job["id"])
        addresses = Addresses(
            pieces=rp_http.JOB_STREAM_URL.replace("$ID", job["id"]) + "&isStream=false",
            result=rp_http.JOB_DONE_URL.replace("$ID", job["id"]) + "&isStream=true",
        )
        delivery, output = Delivery(session, job["id"], addresses), list[Piece]()
        result: dict[str, Any] = {"output": output}
        async with contextlib.aclosing(self.work.answer(job)) as pieces:
            async for piece in pieces:
                if isinstance(piece, dict) and piece.keys() == {"error"}:
                    result = piece
                    break
                output.append(piece)
                await delivery.piece(piece)
        if self.config.get("refresh_worker"):
            result = {**result, "stopPod": True}
        await delivery.result(result)

    async def _leave_when_engine_died(self) -> None:
        await self.work.proxy.engine_died()
        self.config["refresh_worker"] = True  # job-done then tells the platform that this worker is not to be used again
        self.kill_worker()

    async def _stop_signals(self, session: Any) -> list[str]:
        """Return the ids of jobs to stop."""
        from runpod.serverless.modules import rp_job  # noqa: TID251

        try:
            jobs: list[str] = await rp_job.get_stop_signals(session)
        except Exception as error:  # noqa: BLE001  # whatever it is, jobs go on without this channel, and it is asked again
            await asyncio.sleep(self._stops.failed(type(error).__name__))
            return []
        self._stops.worked()
        return jobs
