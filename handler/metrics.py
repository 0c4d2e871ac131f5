"""What the worker counts and times, as Prometheus text.

Three seams feed it. A face wraps each request in `request`, which counts it by route and status and times it. `MeteredProxy` stands where a
face would have a `Proxy`: it knows which requests run, and looks at each frame that the engine sends, for tokens and their times. The state
of the worker and its cold start are read when somebody asks. Labels have few values whatever clients send: routes come from `job.ROUTES`,
the rest is `other`.

Import it when the engine has been started: prometheus_client takes a tenth of a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from handler.dialect import Exchange
from handler.engine import SupervisedEngine
from handler.job import ROUTES, Request
from handler.ledger import Ledger
from handler.lifecycle import Lifecycle, State
from handler.proxy import Piece, Proxy
from handler.settings import Limits
from handler.sse import data_of, is_done

__all__ = ["LEFT", "Asked", "MeteredProxy", "Metrics"]

OTHER = "other"
LEFT = 499
"""The status of a request whose client left before its end, as nginx writes it."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_PER_TOKEN = (0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 330.0, 600.0)

_CHOICE, _OPENING, _NO_CHOICE = b'"choices":[{', b'"role":"assistant"', b'"choices":[],'
_NEAR = 64
"""Bytes behind the choice in which the frame that opens a chat answer says so."""


class Metrics:
    """Everything that is counted in one worker; may be written by one thread and shown by another."""

    def __init__(self, lifecycle: Lifecycle, ledger: Ledger, slots: int, restarts: Callable[[], int]) -> None:
        """`slots` is how many requests the engine decodes at once; `restarts` tells how often it was started again."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "worker_requests",
            f"Requests that ended, by status, also that of an error inside a stream; {LEFT}: the client left.",
            ("route", "status"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "worker_e2e_request_latency_seconds",
            "From the arrival of a request to the end of its answer, of those answered.",
            ("route",),
            buckets=_WHOLE,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "worker_time_to_first_token_seconds",
            "From sending a request to the engine to the first token of its answer, of answers that the engine streams.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.per_token = Histogram(
            "worker_time_per_output_token_seconds",
            "Mean time from token to token after the first, one observation for each answer that the engine streamed to its end.",
            buckets=_PER_TOKEN,
            registry=self.registry,
        )
        self.running = self.waiting = self.prompt_tokens = self.generation_tokens = 0
        self.registry.register(_Now(self, lifecycle, ledger, slots, restarts))

    @contextlib.contextmanager
    def request(self) -> Iterator[Asked]:
        """Count and time one request, which the block answers; an exception out of it, with no error before, means that the client left."""
        asked, started = Asked(), time.perf_counter()
        try:
            yield asked
        except BaseException:
            asked.status = LEFT if asked.status == 200 else asked.status
            raise
        finally:
            route = route_label(asked.path)
            self._requests.labels(route, str(asked.status)).inc()
            if asked.status == 200:
                self._latency.labels(route).observe(time.perf_counter() - started)

    def shown(self, accept: str = "") -> tuple[bytes, str]:
        """Return all figures, in the format that an Accept header asks for, and their content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


@dataclasses.dataclass(slots=True)
class Asked:
    """What is known of a running request; whoever answers it fills it in."""

    path: str = ""
    status: int = 200


def route_label(path: str) -> str:
    """Return one of a few names for a path."""
    path = path.removeprefix("/openai")
    return path if path in ROUTES else "/v1/models" if path.startswith("/v1/models/") else OTHER


class MeteredProxy(Proxy):
    """A proxy that counts what it relays."""

    def __init__(self, engine: SupervisedEngine, limits: Limits, metrics: Metrics) -> None:
        self._metrics = metrics
        self._exchanges: dict[int, _Metered] = {}

        def metered(request: Request) -> Exchange:
            exchange = self._exchanges[id(request)] = _Metered(engine.exchange(request), metrics)
            return exchange

        super().__init__(dataclasses.replace(engine, exchange=metered), limits)

    async def relay(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield the engine's answer, as `Proxy.relay` does."""
        self._metrics.running += 1
        try:
            async with contextlib.aclosing(super().relay(request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._metrics.running -= 1
            if exchange := self._exchanges.pop(id(request), None):
                exchange.begin()


class _Metered(Exchange):
    """An exchange that looks at what the engine sends before anything is changed in it."""

    def __init__(self, inner: Exchange, metrics: Metrics) -> None:
        self.sent, self._inner, self._metrics = inner.sent, inner, metrics
        self._sent_at = time.perf_counter()
        self._tokens, self._first, self._last = 0, 0.0, 0.0
        self._waits = True
        metrics.waiting += 1

    def begin(self) -> None:
        """Wait no more: the answer has begun, or nobody wants it any longer."""
        self._metrics.waiting -= self._waits
        self._waits = False

    def frame(self, frame: bytes) -> list[bytes]:
        self._look(frame)
        return self._inner.frame(frame)

    def collect(self, frame: bytes) -> None:
        self._look(frame)
        self._inner.collect(frame)

    def collected(self) -> Any:
        return self._inner.collected()

    def whole(self, answer: Any) -> Any:
        self.begin()
        if not self.sent.stream and isinstance(answer, dict):
            self._take_usage(answer.get("usage"))
        return self._inner.whole(answer)

    def _look(self, frame: bytes) -> None:
        """Take what a frame tells; each token of each stream passes here."""
        at = frame.find(_CHOICE)
        if at >= 0:
            if frame.find(_OPENING, at, at + _NEAR) < 0:
                self._last = time.perf_counter()
                self._tokens += 1
                self._metrics.generation_tokens += 1
                if self._tokens == 1:
                    self.begin()
                    self._first = self._last
                    self._metrics.first_token.observe(self._first - self._sent_at)
        elif _NO_CHOICE in frame:
            self._take_usage(json.loads(data_of(frame) or b"{}").get("usage"))
        elif is_done(frame) and self._tokens > 1:
            self._metrics.per_token.observe((self._last - self._first) / (self._tokens - 1))

    def _take_usage(self, usage: Any) -> None:
        """Count the prompt, and the tokens that came several to a frame or in none."""
        if not isinstance(usage, dict):
            return
        prompt, made = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        self._metrics.prompt_tokens += prompt if isinstance(prompt, int) else 0
        if isinstance(made, int) and made > self._tokens:
            self._metrics.generation_tokens += made - self._tokens
            self._tokens = made


class _Now(Collector):
    """What is read at the moment somebody asks."""

    def __init__(self, metrics: Metrics, lifecycle: Lifecycle, ledger: Ledger, slots: int, restarts: Callable[[], int]) -> None:
        self._metrics, self._lifecycle, self._ledger, self._slots, self._restarts = metrics, lifecycle, ledger, slots, restarts

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        metrics, here = self._metrics, self._lifecycle.state
        prompt = "Tokens of prompts, as far as the engine told: of whole answers, and of streams that were asked for their usage."
        yield CounterMetricFamily("worker_prompt_tokens", prompt, value=metrics.prompt_tokens)
        made = "Tokens made; those of a running stream are counted by its frames."
        yield CounterMetricFamily("worker_generation_tokens", made, value=metrics.generation_tokens)
        yield GaugeMetricFamily("worker_num_requests_running", "Requests at the engine.", value=metrics.running)
        waiting = "Requests at the engine of which no answer has begun: they wait for a slot, or their prompt is computed."
        yield GaugeMetricFamily("worker_num_requests_waiting", waiting, value=metrics.waiting)
        queue = "Requests at the engine beyond those that it decodes at once (MAX_NUM_SEQS)."
        yield GaugeMetricFamily("worker_queue_depth", queue, value=max(0, metrics.running - self._slots))
        yield CounterMetricFamily("worker_engine_restarts", "Starts of the engine after the first.", value=self._restarts())
        state = GaugeMetricFamily("worker_state", "1 for the state that the worker and its engine are in.", labels=("state",))
        for one in State:
            state.add_metric((one.value,), float(one is here))
        yield state
        start = GaugeMetricFamily("worker_cold_start_seconds", "From the start of the process to the end of a phase.", labels=("phase",))
        for phase, seconds in self._ledger.phases().items():
            start.add_metric((phase,), seconds)
        yield start
