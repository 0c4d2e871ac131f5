"""The queue face: RunPod jobs in, pieces out. The only file that knows the RunPod SDK.

`Handler` is what a job passes through, with or without the SDK: an async generator that never raises. Its last yield is
`{"error": TEXT}` when the job failed, with a JSON OpenAI error object as TEXT: the SDK reports such a yield as the job's failure and would
turn a dict into a Python repr, an exception into a traceback (runpod 1.12.0, serverless/modules/rp_job.py).

`serve` runs the SDK's own loop, changed in one place, `_scaler`, by what its public interface lacks: a shutdown that does not wait for a
long-poll of up to 90 s, and a way to leave when the engine died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from handler.engine import SupervisedEngine
from handler.errors import WorkerError, for_log, to_openai
from handler.job import read_job
from handler.ledger import Ledger
from handler.lifecycle import Event, Lifecycle
from handler.proxy import Piece, Proxy
from handler.settings import Settings

__all__ = ["SDK_VARIABLES", "Handler", "serve"]

log = logging.getLogger(__name__)

SDK_VARIABLES = {
    "RUNPOD_LOG_LEVEL": "INFO",  # the SDK's own default, DEBUG, prints every prompt and every piece
    "RUNPOD_SKIP_GPU_CHECK": "true",  # it would ask for memory of a GPU that the engine owns by then
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",  # a disk filled by the model would end the worker
}
"""What the SDK must find in the environment when it is imported, unless the operator says otherwise."""


class Handler:
    """Answers jobs through a proxy that is entered on the running loop."""

    def __init__(self, proxy: Proxy, settings: Settings) -> None:
        self._proxy, self._settings = proxy, settings

    async def answer(self, job: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """Yield the answer to one job; never raises, except when it is cancelled."""
        streamed = False
        try:
            request = read_job(job.get("input"), self._settings.batch)
            async with contextlib.aclosing(self._proxy.relay(request)) as pieces:
                async for piece in pieces:
                    yield piece
                    streamed = request.stream and not request.native
        except Exception as error:  # the one place: whatever happens, the job ends with an error object
            if not isinstance(error, WorkerError):
                log.exception("job %s", job.get("id"))
            _, body = to_openai(error)
            text = json.dumps(body)
            log.warning("job %s failed: %s", job.get("id"), for_log(error))
            if streamed:
                yield f"data: {text}\n\n"
            yield {"error": text}


def serve(engine: SupervisedEngine, settings: Settings, lifecycle: Lifecycle, ledger: Ledger) -> None:
    """Take and answer jobs until the platform asks to stop or the engine dies; importing the SDK overlaps with the engine's start.

    Raises:
        EngineFailedToStart: before any job was taken.
    """
    import runpod  # noqa: TID251
    from runpod.serverless.modules import rp_scale  # noqa: TID251

    ledger.note("SDK imported")
    engine.wait_ready()
    ledger.note("taking jobs")
    ledger.close()
    # The SDK forks a process for its heartbeat and ends it by TERM, to which it would answer as the worker does while it starts.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    proxy = Proxy(engine, settings.limits)
    rp_scale.JobScaler = _scaler(rp_scale.JobScaler, proxy, lifecycle)
    runpod.serverless.start(
        {
            "handler": Handler(proxy, settings).answer,
            # Constant: with any change of the value the SDK waits until no job runs before it takes the next.
            "concurrency_modifier": lambda _: settings.limits.max_concurrency,
            # The whole answer again at the end: RunPod's OpenAI route and /runsync read it from there.
            "return_aggregate_stream": True,
        }
    )


def _scaler(base: Any, proxy: Proxy, lifecycle: Lifecycle) -> type:
    """Return the SDK's loop of taking and running jobs with what it lacks; everything private of the SDK that is used stands here."""

    class Scaler(base):  # type: ignore[misc]
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            self._leaving = asyncio.Event()
            self.jobs_fetcher: Any = self._until_leaving(self.jobs_fetcher)
            self.stop_signals_fetcher: Any = self._until_leaving(self.stop_signals_fetcher)

        def kill_worker(self) -> None:
            lifecycle.report(Event.TERM)
            super().kill_worker()
            self._leaving.set()

        async def run(self) -> None:
            async with proxy:
                leave = asyncio.create_task(self._leave_when_engine_died())
                await super().run()
                leave.cancel()

        async def _leave_when_engine_died(self) -> None:
            await proxy.engine_died()
            self.config["refresh_worker"] = True  # job-done then tells the platform that this worker is not to be used again
            self.kill_worker()

        def _until_leaving(self, fetch: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def fetch_unless_leaving(*arguments: Any) -> Any:
                fetching, leaving = asyncio.ensure_future(fetch(*arguments)), asyncio.ensure_future(self._leaving.wait())
                try:
                    await asyncio.wait({fetching, leaving}, return_when=asyncio.FIRST_COMPLETED)
                    if fetching.done():
                        return fetching.result()
                    raise asyncio.TimeoutError  # to the SDK a poll that ran out: the one end of a poll after which it does not sleep
                finally:
                    fetching.cancel()
                    leaving.cancel()
                    await asyncio.gather(fetching, leaving, return_exceptions=True)

            return fetch_unless_leaving

    return Scaler
