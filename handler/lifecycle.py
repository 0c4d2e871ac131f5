"""The states of a worker and the legal moves between them, as a table.

    STARTING --ready--> READY --term--> DRAINING --ended--> STOPPED
        |                 |               ^ |
        +-------- term ---|---------------+ |
        +-------- died ---+------ died -----+--> DEAD

1. There is one life: no state is entered twice, and STOPPED and DEAD are never left.
2. Jobs are taken in READY and in no other state.
3. A job that was taken is finished in READY and DRAINING; in DEAD it ends with the engine's error.
4. DEAD wins: whoever drains when the engine dies was not stopped in order, and the process says so with its exit code.
5. The table knows nothing of processes, signals or jobs. Whoever sees something happen reports the event; a move that is missing from the
   table is a mistake in the caller and raises, except that news which come late (a second TERM, a death after the end) change nothing.

`Lifecycle` holds the one current state. Events come from two threads (the engine's supervisor and the one that owns the signals),
hence the lock.
"""

from __future__ import annotations

import enum
import threading

__all__ = ["MOVES", "Event", "IllegalMove", "Lifecycle", "State"]


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
    """The worker's current state."""

    def __init__(self) -> None:
        self._state, self._lock = State.STARTING, threading.Lock()
        self.asked_to_leave = False
        """Set by a signal while the worker starts; Python drops what a signal raises in some places, so whoever takes over looks here."""

    @property
    def state(self) -> State:
        """Where the worker stands now."""
        return self._state

    def report(self, event: Event) -> State:
        """Make the move that `event` demands and return the new state.

        Raises:
            IllegalMove: when the table has no such move.
        """
        with self._lock:
            try:
                self._state = MOVES[self._state][event]
            except KeyError:
                raise IllegalMove(f"{event.name} ({event.value}) cannot happen to a worker that is {self._state.name}") from None
            return self._state
