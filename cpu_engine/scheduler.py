"""The thread that owns the model: continuous batching, chunked prefill, abort.

Every step feeds the model one token of each answering sequence and a bounded piece of the waiting
prompts. Sequences join and leave between any two steps; an abort takes effect at the next one.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items

from cpu_engine.forward import Chunk, Transformer
from cpu_engine.sequence import SequenceSpec, SequenceState, TokenEvent
from cpu_engine.tensors import FloatArray
from cpu_engine.tokenizer import Tokenizer

# Prompt tokens of one step. Alone, a long prompt goes in pieces that fill the matrix products; beside
# answers, in pieces short enough that these go on (64 tokens of a 0.3B model: about a third of a second).
_PREFILL_ALONE = 256
_PREFILL_BESIDE = 64


class Overloaded(Exception):
    """The queue is full, or the engine no longer takes work."""


class Ticket:
    """One submitted sequence, to recognise its events by and to abort it."""

    __slots__ = ("aborted", "spec")

    def __init__(self, spec: SequenceSpec) -> None:
        self.spec = spec
        self.aborted = False


class Scheduler:
    """Runs sequences on the model; `deliver` is called on the model's thread once a step with its events.

    What a sequence raises ends that sequence with an error event. `failed` is called, also there, when the model
    raises: every sequence has then ended with an error event and nothing more is taken.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        slots: int,
        queue_limit: int,
        deliver: Callable[[Items[tuple[Ticket, TokenEvent]]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._slots = slots
        self._queue_limit = queue_limit
        self._deliver = deliver
        self._failed = failed
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Ticket, SequenceState] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    @property
    def running(self) -> int:
        """Return how many sequences hold a slot."""
        return sum(not ticket.aborted for ticket in list(self._running))

    @property
    def waiting(self) -> int:
        """Return how many sequences wait for a slot."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, specs: Items[SequenceSpec]) -> list[Ticket]:
        """Queue sequences, all or none; raise Overloaded when they do not fit or the scheduler is closed."""
        tickets = [Ticket(spec) for spec in specs]
        with self._changed:
            if self._closed or len(self._waiting) + len(tickets) > self._queue_limit:
                raise Overloaded
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def abort(self, tickets: Items[Ticket]) -> None:
        """End sequences without further events; those that have ended already are left alone."""
        with self._changed:
            for ticket in tickets:
                ticket.aborted = True
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Stop after the current step, waiting for it at most `timeout` seconds. Running sequences just end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while self._admit():
            try:
                events = self._step()
            except Exception as error:  # noqa: BLE001 - whatever it is, no caller may be left waiting
                self._fail(error)
                return
            if events:
                self._deliver(events)

    def _admit(self) -> bool:
        """Wait until there is work, fill free slots; return False when the scheduler is closed."""
        with self._changed:
            while True:
                for ticket in [ticket for ticket in self._running if ticket.aborted]:
                    del self._running[ticket]
                while self._waiting and len(self._running) < self._slots:
                    self._begin(self._waiting.popleft())
                if self._closed or self._running:
                    return not self._closed
                self._changed.wait()

    def _begin(self, ticket: Ticket) -> None:
        try:
            self._running[ticket] = SequenceState(ticket.spec, self._model.new_cache(), self._tokenizer)
        except Exception as error:  # noqa: BLE001 - as in _advance
            self._deliver([(ticket, _failure(error))])

    def _advance(self, ticket: Ticket, rows: FloatArray) -> TokenEvent | None:
        try:
            return self._running[ticket].advance(rows)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is of this sequence and must not end the others
            return _failure(error)

    def _step(self) -> list[tuple[Ticket, TokenEvent]]:
        chunks = self._chunks()
        logits = self._model.forward([chunk for _, chunk in chunks])
        events, first = [], 0
        for ticket, chunk in chunks:
            rows = logits[first : first + chunk.answers]
            first += chunk.answers
            event = self._advance(ticket, rows) if chunk.answers else None
            if event is None:
                continue
            events.append((ticket, event))
            if event.finish is not None:
                with self._changed:
                    del self._running[ticket]
        return [(ticket, event) for ticket, event in events if not ticket.aborted]

    def _chunks(self) -> list[tuple[Ticket, Chunk]]:
        """Pick what this step feeds: all answers, then prompts in order of arrival up to the step's budget."""
        prompts = [item for item in self._running.items() if item[1].prompt_left]
        answers = [item for item in self._running.items() if not item[1].prompt_left]
        chunks = [(ticket, sequence.next_chunk(1)) for ticket, sequence in answers]
        budget = _PREFILL_BESIDE if answers else _PREFILL_ALONE
        for ticket, sequence in prompts:
            if budget <= 0:
                break
            chunk = sequence.next_chunk(budget)
            budget -= len(chunk.tokens)
            chunks.append((ticket, chunk))
        return chunks

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._closed = True
            tickets = [*self._running, *self._waiting]
            self._running.clear()
            self._waiting.clear()
        message = f"the model failed: {type(error).__name__}"
        self._deliver([(ticket, TokenEvent(text=message, token=None, finish="error")) for ticket in tickets])
        self._failed(error)


def _failure(error: Exception) -> TokenEvent:
    traceback.print_exception(type(error), error, error.__traceback__)
    return TokenEvent(text=f"the sequence failed: {type(error).__name__}", token=None, finish="error")
