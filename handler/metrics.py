"""What the worker counts and times, as Prometheus text.

It is an `Observer`: a face wraps each request in `request`, which counts it by route and status and times it, and the proxy shows what the
engine sends, for tokens and their times. The state of the worker and its cold start are read at each scrape. Labels have few values
whatever clients send: routes come from `job.ROUTES`, the rest is `other`.

Import it when the engine has been started: prometheus_client takes a tenth of a second.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from handler.batching import tokens_in
from handler.job import ROUTES
from handler.lifecycle import Lifecycle, State
from handler.observer import Observation, Observer
from handler.sse import data_of, ends_with_done, frames_of

__all__ = ["LEFT", "Metrics"]

OTHER = "other"
LEFT = 499
"""The status of a request whose client left before its end, as nginx writes it."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_PER_TOKEN = (0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 330.0, 600.0)

_NO_CHOICE = b'"choices":[],'


class Metrics(Observer):
    """Everything that is counted in one worker."""

    def __init__(self, lifecycle: Lifecycle, slots: int, restarts: Callable[[], int]) -> None:
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
        self.registry.register(_Now(self, lifecycle, slots, restarts))

    @contextlib.contextmanager
    def request(self) -> Iterator[Observation]:
        """Count and time one request, which the block answers; an exception out of it, with no error before, means that the client left."""
        seen, started = _Counted(self), time.perf_counter()
        try:
            yield seen
        except BaseException:
            seen.status = LEFT if seen.status == 200 else seen.status
            raise
        finally:
            route = route_label(seen.path)
            self._requests.labels(route, str(seen.status)).inc()
            if seen.status == 200:
                self._latency.labels(route).observe(time.perf_counter() - started)

    def shown(self, accept: str = "") -> tuple[bytes, str]:
        """Return all figures, in the format that an Accept header asks for, and their content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def route_label(path: str) -> str:
    """Return one of a few names for a path."""
    path = path.removeprefix("/openai")
    return path if path in ROUTES else "/v1/models" if path.startswith("/v1/models/") else OTHER


class _Counted(Observation):
    """One request, counted while it runs."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics
        self._tokens, self._sent, self._first, self._last = 0, 0.0, 0.0, 0.0
        self._waits = False

    def sent(self) -> None:
        self._sent, self._waits = time.perf_counter(), True
        self._metrics.running += 1
        self._metrics.waiting += 1

    def ended(self) -> None:
        self._begin()
        self._metrics.running -= 1

    def run(self, run: bytes) -> None:
        """Take what frames tell; each token of each stream passes here."""
        if made := tokens_in(run):
            self._last = time.perf_counter()
            if not self._tokens:
                self._begin()
                self._first = self._last
                self._metrics.first_token.observe(self._first - self._sent)
            self._tokens += made
            self._metrics.generation_tokens += made
        if _NO_CHOICE in run:
            for frame in frames_of(run):
                if _NO_CHOICE in frame:
                    self._take_usage(json.loads(data_of(frame) or b"{}").get("usage"))
        if self._tokens > 1 and ends_with_done(run):
            self._metrics.per_token.observe((self._last - self._first) / (self._tokens - 1))

    def whole(self, answer: Any) -> None:
        if isinstance(answer, dict):
            self._take_usage(answer.get("usage"))

    def _begin(self) -> None:
        """Wait no more: the answer has begun, or the request is over."""
        self._metrics.waiting -= self._waits
        self._waits = False

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

    def __init__(self, metrics: Metrics, lifecycle: Lifecycle, slots: int, restarts: Callable[[], int]) -> None:
        self._metrics, self._lifecycle, self._slots, self._restarts = metrics, lifecycle, slots, restarts

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
        for phase, seconds in self._lifecycle.cold_start.phases().items():
            start.add_metric((phase,), seconds)
        yield start
