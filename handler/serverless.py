"""The queue face: RunPod jobs in, pieces out.

`Handler` is what a job passes through, with or without the SDK: an async generator that never raises. Its last yield is
`{"error": TEXT}` when the job failed, with a JSON OpenAI error object as TEXT: RunPod knows a job's failure only as a text.

`serve` lets the SDK (`sdk`) take jobs once the engine has answered.
"""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from collections.abc import AsyncGenerator
from typing import Any

from handler import sdk
from handler.engine import SupervisedEngine
from handler.errors import InvalidJob, WorkerError, for_log, to_openai
from handler.job import Request, read_job
from handler.ledger import Ledger
from handler.lifecycle import Lifecycle
from handler.metrics import Asked, MeteredProxy, Metrics
from handler.proxy import Piece, Proxy
from handler.sdk import SDK_VARIABLES
from handler.settings import Settings

__all__ = ["SDK_VARIABLES", "Handler", "serve"]

log = logging.getLogger(__name__)


class Handler:
    """Answers jobs through a proxy that is entered on the running loop."""

    def __init__(self, proxy: Proxy, settings: Settings, metrics: Metrics | None = None) -> None:
        self._proxy, self._settings, self._metrics = proxy, settings, metrics

    async def answer(self, job: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """Yield the answer to one job; never raises, except when it is cancelled."""
        with self._metrics.request() if self._metrics else contextlib.nullcontext(Asked()) as asked:
            async with contextlib.aclosing(self._answer(job, asked)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _answer(self, job: dict[str, Any], asked: Asked) -> AsyncGenerator[Piece, None]:
        streamed = False
        try:
            request = self._read(job.get("input"))
            asked.path = request.path
            async with contextlib.aclosing(self._proxy.relay(request)) as pieces:
                async for piece in pieces:
                    yield piece
                    streamed = request.stream and not request.native
        except Exception as error:  # noqa: BLE001  # the one place: whatever happens, the job ends with an error object
            if not isinstance(error, WorkerError):
                # Without the error's own text, which may quote the request.
                log.error("%s, raised at\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))  # noqa: TRY400
            asked.status, body = to_openai(error)
            text = json.dumps(body)
            log.warning("failed: %s", for_log(error))
            if streamed:
                yield f"data: {text}\n\n"
            yield {"error": text}

    def _read(self, job_input: object) -> Request:
        if isinstance(job_input, InvalidJob):  # found when the job was taken
            raise job_input
        return read_job(job_input, self._settings.batch)


def serve(engine: SupervisedEngine, settings: Settings, lifecycle: Lifecycle, ledger: Ledger, metrics: Metrics | None = None) -> None:
    """Take and answer jobs until the platform asks to stop or the engine dies; importing the SDK overlaps with the engine's start.

    `metrics` is given where somebody can read them.

    Raises:
        EngineFailedToStart: before any job was taken.
        InvalidSettings: the SDK refuses a variable.
    """
    runpod = sdk.load(settings.texts)
    ledger.note("SDK imported")
    engine.wait_ready()
    ledger.note("taking jobs")
    ledger.close()
    proxy = MeteredProxy(engine, settings.limits, metrics) if metrics else Proxy(engine, settings.limits)
    answer = Handler(proxy, settings, metrics).answer
    work = sdk.Work(answer=answer, proxy=proxy, lifecycle=lifecycle, ledger=ledger, concurrency=settings.limits.max_concurrency)
    sdk.serve_jobs(runpod, work)
