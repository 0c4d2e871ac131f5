"""RunPod's own SDK loop, unmodified, in place of `job_queue`: for the day on which a change of RunPod's API comes before a new image.

Chosen by JOB_LOOP=sdk. The SDK owns its process, signals and event loop, so it gets a process of its own, started by the worker, which
keeps the engine. Nothing of it is patched; what it does not do as well as `job_queue` (runpod 1.12.0, measured): N slots do at most N short
jobs a second; a job that is handed out while the worker stops is lost; a piece that meets a dropped connection or a 429 is missing from the
stream, and a result is lost; stopping waits for polls of up to 90 s. Its variables (RUNPOD_LOG_LEVEL, RUNPOD_SKIP_...) are its own.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncGenerator, Callable
from typing import Any

from handler.engine import Engine
from handler.errors import EngineDied
from handler.exchange import Exchange
from handler.job import Request
from handler.job_queue import Handler
from handler.lifecycle import Event, Lifecycle
from handler.logs import configure, current_job
from handler.proxy import Piece, Proxy
from handler.settings import Settings
from handler.shutdown import Shutdown

__all__ = ["serve"]

log = logging.getLogger(__name__)

_VARIABLES = {
    "RUNPOD_LOG_LEVEL": "INFO",  # its own default, DEBUG, shows every piece
    "RUNPOD_SKIP_GPU_CHECK": "true",  # it would ask for memory of a GPU that the engine owns by then
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",  # a disk filled by the model would end the worker
}
"""What the SDK finds in its environment unless the operator says otherwise."""

_GRACE = 100.0
"""Seconds that the SDK has to stop, whose polls take up to 90."""


async def serve(engine: Engine, settings: Settings, lifecycle: Lifecycle, shutdown: Shutdown) -> None:
    """Run the SDK's loop in a process of its own until the platform asks to stop, the SDK ends, or the engine dies.

    Raises:
        EngineFailedToStart, Interrupted: before any job was taken.
    """
    await shutdown.unless_requested(engine.ready())
    lifecycle.cold_start.note("taking jobs")
    lifecycle.cold_start.show()
    arguments = (engine.url, engine.exchange, settings)
    process = multiprocessing.get_context("spawn").Process(target=_run, args=arguments, name="runpod SDK")
    process.start()
    ended = asyncio.ensure_future(asyncio.to_thread(process.join))
    asked = asyncio.ensure_future(shutdown.requested.wait())
    died = asyncio.ensure_future(asyncio.wait({engine.died}))
    try:
        await asyncio.wait([ended, asked, died], return_when=asyncio.FIRST_COMPLETED)
        lifecycle.report(Event.TERM)
        process.terminate()
        await asyncio.wait({ended}, timeout=_GRACE)
    finally:
        process.kill()
        asked.cancel()
        died.cancel()
        await ended
    if process.exitcode:
        log.error("the SDK's process ended with exit code %d", process.exitcode)


class _DistantEngine:
    """The engine as the SDK's process sees it: its death is a connection that fails."""

    def __init__(self, url: str, exchange: Callable[[Request], Exchange]) -> None:
        self.url, self.exchange = url, exchange
        self.died: asyncio.Future[EngineDied] = asyncio.get_running_loop().create_future()

    def condemn(self, reason: str) -> None:
        """Leave it to the worker, which watches the engine."""
        log.warning("the engine %s", reason)


def _run(url: str, exchange: Callable[[Request], Exchange], settings: Settings) -> None:
    """Run the SDK's loop; the body of its process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name, value in _VARIABLES.items():
        os.environ[name] = os.environ.get(name) or value  # noqa: TID251  # the SDK reads it when it is imported
    configure(settings.log_level, platform=True)
    import runpod  # noqa: TID251

    proxies: list[Proxy] = []

    async def answer(job: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        if not proxies:  # on the SDK's loop, which exists from the first job on
            proxies.append(await Proxy(_DistantEngine(url, exchange), settings.limits).__aenter__())
        current_job.set(str(job.get("id")))
        async for piece in Handler(proxies[0], settings).answer(job):
            yield piece

    slots = settings.limits.max_concurrency
    runpod.serverless.start({"handler": answer, "concurrency_modifier": lambda _: slots, "return_aggregate_stream": True})
