"""Whether an engine gets on, or runs at all, from what its processes leave behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.liveness import FROZEN_AFTER, Pulse, Signs, gets_on
from tests.strategies import SETTINGS

BEFORE = Signs(heard=10, read=1 << 20, resident=1 << 30, gpu=5 << 30, cpu={1: 8.0, 2: 1.0})


@pytest.mark.parametrize(
    "change",
    [
        {"heard": 11},
        {"read": (1 << 20) + 4096},
        {"resident": (1 << 30) + (64 << 20)},
        {"gpu": (5 << 30) + (2 << 20)},
        {"gpu": 1 << 30},
        {"cpu": {1: 9.0, 2: 1.0}},
        {"cpu": {1: 8.0, 2: 1.0, 3: 0.9}},
    ],
    ids=str,
)
def test_any_one_sign_of_work_shows_that_a_start_gets_on(change: dict[str, Any]) -> None:
    assert gets_on(BEFORE, replace(BEFORE, **change), 1.0)


@SETTINGS
@given(
    st.lists(st.floats(0, 0.28), min_size=1, max_size=12),
    st.integers(-(1 << 20), 1 << 20),
    st.booleans(),
    st.floats(0.5, 5),
)
def test_a_waiting_fastdeploy_does_not_get_on_however_many_of_its_loops_burn_time(
    shares: list[float], grown: int, told: bool, seconds: float
) -> None:
    """Rule: its idle processes take 5 to 28 % of a core each, as measured, and together may take a whole one."""
    before = replace(BEFORE, cpu=dict.fromkeys(range(len(shares)), 3.0), gpu=BEFORE.gpu if told else None)
    now = replace(before, cpu={pid: 3.0 + share * seconds for pid, share in enumerate(shares)}, resident=before.resident + grown)
    assert not gets_on(before, now, seconds)


def test_processes_that_ended_are_no_sign_and_gpus_that_stopped_telling_are_none() -> None:
    assert not gets_on(BEFORE, replace(BEFORE, cpu={}, gpu=None, resident=0), 1.0)
    assert not gets_on(replace(BEFORE, gpu=None), BEFORE, 1.0)


@SETTINGS
@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 1)), min_size=1))
def test_a_process_is_frozen_exactly_when_it_has_used_no_time_for_longer_than_the_limit(looks: list[tuple[float, float]]) -> None:
    """Rule: one that polls uses some in any such time."""
    pulse, now, spent, beat = Pulse(10.0), 0.0, 0.0, 0.0
    assert not pulse.frozen(now, spent)
    for seconds, used in looks:
        now += seconds
        if spent + used > spent:
            beat = now
        spent += used
        assert pulse.frozen(now, spent) == (now - beat > 10.0)


def test_a_process_that_was_stopped_and_goes_on_lives_again() -> None:
    pulse = Pulse()
    assert not pulse.frozen(0, 1.0)
    assert pulse.frozen(FROZEN_AFTER + 1, 1.0)
    assert not pulse.frozen(FROZEN_AFTER + 2, 1.01)
