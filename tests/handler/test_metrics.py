from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from handler.job import CHAT, ROUTES
from handler.lifecycle import Lifecycle
from handler.metrics import Metrics, route_label
from tests.strategies import SETTINGS
from tests.twins.replay import synthetic


def made() -> Metrics:
    return Metrics(Lifecycle(), 8, restarts=int)


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    text = metrics.shown()[0].decode()
    samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
    return next((one.value for one in samples if one.name == name and one.labels == labels), None)


def groups(items: list[str]) -> st.SearchStrategy[list[list[str]]]:
    """The items in order, in groups as they may arrive together."""

    def cut(ends: list[bool]) -> list[list[str]]:
        found: list[list[str]] = [[]]
        for item, end in zip(items, ends, strict=True):
            found[-1].append(item)
            if end:
                found.append([])
        return found

    return st.lists(st.booleans(), min_size=len(items), max_size=len(items)).map(cut)


@SETTINGS
@given(st.text() | st.sampled_from([*ROUTES, "/openai/v1/models/a/b", "/v1/models/"]))
def test_any_path_has_one_of_a_few_labels(path: str) -> None:
    """Rule: the label sets are bounded whatever clients send."""
    assert route_label(path) in {*ROUTES, "other"}
    assert route_label("/openai" + path) == route_label(path) or not path.startswith("/v1")


@SETTINGS
@given(st.integers(0, 30), st.booleans(), st.integers(0, 40), st.data())
def test_tokens_are_what_the_frames_hold_and_what_the_usage_says_beyond_them(
    words: int, told: bool, usage: int, data: st.DataObject
) -> None:
    """Rule: no token is counted twice, whether or not the engine tells the usage at the end."""
    metrics = made()
    frames = [synthetic._role_event(), *[synthetic._chat_event(" word") for _ in range(words)]]
    frames += [synthetic._usage_event(CHAT, usage)] if told else []
    with metrics.request() as seen:
        seen.sent()
        for run in data.draw(groups([*frames, "data: [DONE]\n\n"])):
            seen.run("".join(run).encode())
        seen.ended()
    assert metrics.generation_tokens == (max(words, usage) if told else words)
    assert metrics.prompt_tokens == (synthetic.PROMPT_TOKENS if told else 0)
    assert sample(metrics, "worker_time_to_first_token_seconds_count") == (words > 0)
    assert sample(metrics, "worker_time_per_output_token_seconds_count") == (max(words, usage if told else 0) > 1)
    assert (metrics.running, metrics.waiting) == (0, 0)


@pytest.mark.parametrize(("status", "raised", "counted"), [(200, None, "200"), (503, None, "503"), (200, asyncio.CancelledError, "499")])
def test_a_request_is_counted_once_by_how_it_ended(status: int, raised: type[BaseException] | None, counted: str) -> None:
    metrics = made()
    try:
        with metrics.request() as seen:
            seen.path, seen.status = CHAT, status
            if raised:
                raise raised
    except asyncio.CancelledError:
        assert raised
    assert sample(metrics, "worker_requests_total", route=CHAT, status=counted) == 1
    assert sample(metrics, "worker_e2e_request_latency_seconds_count", route=CHAT) == (1 if counted == "200" else None)


def test_a_failed_job_that_is_closed_afterwards_is_a_failure_and_no_client_that_left() -> None:
    metrics = made()
    with contextlib.suppress(GeneratorExit), metrics.request() as seen:
        seen.status = 400
        raise GeneratorExit
    assert sample(metrics, "worker_requests_total", route="other", status="400") == 1
