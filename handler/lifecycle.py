"""The states of a worker and the legal moves between them, as a table.

    STARTING --ready--> READY --term--> DRAINING --ended--> STOPPED
        |                 |               ^ |
        +-------- term ---|---------------+ |
        +-------- died ---+------ died -----+--> DEAD

1. There is one life: no state is entered twice, and STOPPED and DEAD are never left.
2. Jobs are taken in READY and in no other state.
3. A job that was taken is finished in READY and DRAINING; in DEAD it ends with the engine's error.
4. DEAD wins: whoever drains when the engine dies was not stopped in order, and the process says so with its exit code.
5. The table knows nothing of processes, signals or jobs: who sees something happen reports the event. A move that is missing from the
   table is a mistake in the caller and raises, except that late news (a second TERM, a death after the end) changes nothing.

`ColdStart` notes how long the way to READY took.
"""

from __future__ import annotations

import enum
import logging
import os
import time
from pathlib import Path

__all__ = ["MOVES", "ColdStart", "Event", "IllegalMove", "Lifecycle", "State"]

log = logging.getLogger(__name__)


class State(enum.Enum):
    """Where the worker stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    DEAD = "dead"


class Event(enum.Enum):
    """What may happen to it."""

    ENGINE_READY = "the engine answered"
    TERM = "the worker was asked to stop"
    ENGINE_DIED = "the engine ended unasked"
    ENDED = "the last job ended and the engine was stopped"


MOVES: dict[State, dict[Event, State]] = {
    State.STARTING: {
        Event.ENGINE_READY: State.READY,
        Event.TERM: State.DRAINING,
        Event.ENGINE_DIED: State.DEAD,
    },
    State.READY: {
        Event.TERM: State.DRAINING,
        Event.ENGINE_DIED: State.DEAD,
    },
    State.DRAINING: {
        Event.TERM: State.DRAINING,
        Event.ENGINE_READY: State.DRAINING,
        Event.ENGINE_DIED: State.DEAD,
        Event.ENDED: State.STOPPED,
    },
    State.STOPPED: {Event.TERM: State.STOPPED, Event.ENGINE_DIED: State.STOPPED},
    State.DEAD: {Event.TERM: State.DEAD, Event.ENGINE_DIED: State.DEAD, Event.ENGINE_READY: State.DEAD, Event.ENDED: State.DEAD},
}


class IllegalMove(RuntimeError):
    """An event was reported that cannot happen in the current state: a mistake in the program."""


class Lifecycle:
    """The worker's current state, and how its start went."""

    def __init__(self) -> None:
        self._state = State.STARTING
        self.cold_start = ColdStart()

    @property
    def state(self) -> State:
        """Where the worker stands now."""
        return self._state

    def report(self, event: Event) -> State:
        """Make the move that `event` demands and return the new state.

        Raises:
            IllegalMove: when the table has no such move.
        """
        try:
            self._state = MOVES[self._state][event]
        except KeyError:
            raise IllegalMove(f"{event.name} ({event.value}) cannot happen to a worker that is {self._state.name}") from None
        return self._state


class ColdStart:
    """When each phase of the start was over, counted from the start of the process."""

    def __init__(self) -> None:
        self._started = time.monotonic() - _age()
        self._phases: dict[str, float] = {}

    def note(self, phase: str) -> None:
        """Note that a phase is over now."""
        self._phases[phase] = time.monotonic() - self._started

    def phases(self) -> dict[str, float]:
        """Return the seconds from the start of the process to the end of each phase so far."""
        return dict(self._phases)

    def show(self) -> None:
        """Log all that was noted, in seconds since the process was started."""
        log.info("cold start: %s", ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in self._phases.items()))


def _age() -> float:
    """Return for how many seconds this process has been running; 0 where the kernel does not tell (other than Linux)."""
    try:
        # Field 22: start time in clock ticks since boot; the second field, a name in brackets, may hold spaces.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
