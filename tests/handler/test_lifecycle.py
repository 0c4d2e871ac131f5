from __future__ import annotations

import itertools
import logging
import re
import time

import psutil
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from handler.lifecycle import MOVES, ColdStart, Event, IllegalMove, Lifecycle, State
from tests.strategies import SETTINGS


class Life(RuleBasedStateMachine):
    """Rules: "There is one life: no state is entered twice, and STOPPED and DEAD are never left." "DEAD wins." """

    def __init__(self) -> None:
        super().__init__()
        self.lifecycle, self.died, self.asked = Lifecycle(), False, False
        self.visited = [State.STARTING]

    def report(self, event: Event) -> None:
        state = self.lifecycle.report(event)
        if state is not self.visited[-1]:
            self.visited.append(state)

    @precondition(lambda self: self.lifecycle.state is State.STARTING)
    @rule()
    def the_engine_answers(self) -> None:
        self.report(Event.ENGINE_READY)

    @rule()
    def the_platform_asks_to_stop(self) -> None:
        self.report(Event.TERM)
        self.asked = True

    @rule()
    def the_engine_dies(self) -> None:
        self.died = self.died or self.lifecycle.state is not State.STOPPED
        self.report(Event.ENGINE_DIED)

    @precondition(lambda self: self.lifecycle.state in {State.DRAINING, State.DEAD})
    @rule()
    def the_last_job_ends(self) -> None:
        self.report(Event.ENDED)

    @invariant()
    def no_state_is_entered_twice(self) -> None:
        assert len(set(self.visited)) == len(self.visited)

    @invariant()
    def dead_wins(self) -> None:
        assert (self.lifecycle.state is State.DEAD) == self.died

    @invariant()
    def ready_only_before_any_request_to_stop(self) -> None:
        if self.lifecycle.state is State.READY:
            assert not self.asked


Life.TestCase.settings = SETTINGS
TestLife = Life.TestCase


LEGAL = {
    (State.STARTING, Event.ENGINE_READY): State.READY,
    (State.STARTING, Event.TERM): State.DRAINING,
    (State.STARTING, Event.ENGINE_DIED): State.DEAD,
    (State.READY, Event.TERM): State.DRAINING,
    (State.READY, Event.ENGINE_DIED): State.DEAD,
    (State.DRAINING, Event.TERM): State.DRAINING,
    (State.DRAINING, Event.ENGINE_READY): State.DRAINING,
    (State.DRAINING, Event.ENGINE_DIED): State.DEAD,
    (State.DRAINING, Event.ENDED): State.STOPPED,
    (State.STOPPED, Event.TERM): State.STOPPED,
    (State.STOPPED, Event.ENGINE_DIED): State.STOPPED,
    (State.DEAD, Event.TERM): State.DEAD,
    (State.DEAD, Event.ENGINE_DIED): State.DEAD,
    (State.DEAD, Event.ENGINE_READY): State.DEAD,
    (State.DEAD, Event.ENDED): State.DEAD,
}
PATHS = {
    State.STARTING: [],
    State.READY: [Event.ENGINE_READY],
    State.DRAINING: [Event.TERM],
    State.STOPPED: [Event.TERM, Event.ENDED],
    State.DEAD: [Event.ENGINE_DIED],
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=lambda value: value.name)
def test_every_pair_of_state_and_event_is_a_move_or_an_error_naming_both(state: State, event: Event) -> None:
    lifecycle = Lifecycle()
    for step in PATHS[state]:
        lifecycle.report(step)
    assert lifecycle.state is state
    if (state, event) in LEGAL:
        assert lifecycle.report(event) is LEGAL[state, event]
        assert lifecycle.state is LEGAL[state, event]
    else:
        with pytest.raises(IllegalMove, match=f"{event.name}.*cannot happen to a worker that is {state.name}"):
            lifecycle.report(event)
        assert lifecycle.state is state


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(MOVES) == set(State)


def test_phases_are_counted_from_the_start_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    start = ColdStart()
    start.note("first")
    start.note("second")
    start.show()
    found = re.fullmatch(r"cold start: first (\d+\.\d\d) s, second (\d+\.\d\d) s", caplog.messages[-1])
    assert found
    first, second = (float(seconds) for seconds in found.groups())
    age = time.time() - psutil.Process().create_time()
    assert first <= second
    assert abs(age - second) < 1.5
