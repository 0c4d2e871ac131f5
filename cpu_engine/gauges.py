"""Counts of the server -> Prometheus text, under the names FastDeploy uses."""

from __future__ import annotations

from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds; from a cached tiny model to a long prompt on a busy machine.
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class Counters:
    """What is counted; only the thread of the event loop writes."""

    requests: int = 0
    successes: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    first_token_seconds: float = 0.0
    first_tokens: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * len(_BUCKETS))

    def first_token(self, seconds: float) -> None:
        """Count the time from a request's arrival to its first token."""
        self.first_tokens += 1
        self.first_token_seconds += seconds
        for place, bound in enumerate(_BUCKETS):
            self.buckets[place] += seconds <= bound

    def render(self, *, running: int, waiting: int) -> str:
        """Return the text of /metrics; `running` and `waiting` are the scheduler's figures of this moment."""
        lines: list[str] = []
        for name, kind, text, value in (
            ("num_requests_running", "gauge", "Sequences that hold a slot", running),
            ("num_requests_waiting", "gauge", "Sequences that wait for a slot", waiting),
            ("request_total", "counter", "Generation requests accepted", self.requests),
            ("request_success_total", "counter", "Generation requests answered in full", self.successes),
            ("prompt_tokens_total", "counter", "Prompt tokens of accepted requests", self.prompt_tokens),
            ("generation_tokens_total", "counter", "Tokens generated", self.generation_tokens),
        ):
            lines += [f"# HELP fastdeploy:{name} {text}", f"# TYPE fastdeploy:{name} {kind}", f"fastdeploy:{name} {value}"]
        name = "fastdeploy:time_to_first_token_seconds"
        lines += [f"# HELP {name} From arrival of a request to its first token", f"# TYPE {name} histogram"]
        lines += [f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in zip(_BUCKETS, self.buckets, strict=True)]
        lines += [f'{name}_bucket{{le="+Inf"}} {self.first_tokens}']
        lines += [f"{name}_sum {self.first_token_seconds}", f"{name}_count {self.first_tokens}"]
        return "\n".join(lines) + "\n"
