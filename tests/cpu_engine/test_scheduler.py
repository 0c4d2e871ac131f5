"""Continuous batching: whoever else is in the batch, whenever they come and go, an answer stays the same."""

from __future__ import annotations

import atexit
import queue
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_engine.checkpoint import load
from cpu_engine.forward import Chunk, Transformer
from cpu_engine.sampling import SamplingParams
from cpu_engine.scheduler import Overloaded, Scheduler, Ticket
from cpu_engine.sequence import SequenceSpec, TokenEvent
from tests import DEMO
from tests.cpu_engine.checkpoints import VOCABULARY, write_overflowing

MODEL, READER = load(DEMO, served_name=None, max_model_len=4096, threads=1, memory=None)
atexit.register(READER.close)
PATIENCE = 30.0


class Outlet:
    """Collects what a scheduler delivers, and lets a test wait for it."""

    def __init__(self) -> None:
        self.steps: queue.Queue[Sequence[tuple[Ticket, TokenEvent]]] = queue.Queue()
        self.failures: queue.Queue[Exception] = queue.Queue()
        self.events: dict[Ticket, list[TokenEvent]] = defaultdict(list)

    def wait(self) -> None:
        """Take the events of one step."""
        for ticket, event in self.steps.get(timeout=PATIENCE):
            self.events[ticket].append(event)

    def finish(self, tickets: Sequence[Ticket]) -> list[list[TokenEvent]]:
        """Wait until every ticket has its finish reason; return the events of each."""
        while not all(self.events[ticket] and self.events[ticket][-1].finish for ticket in tickets):
            self.wait()
        return [self.events[ticket] for ticket in tickets]


@contextmanager
def scheduler(model: Transformer = MODEL, *, slots: int = 8, queue_limit: int = 100) -> Iterator[tuple[Scheduler, Outlet]]:
    outlet = Outlet()
    made = Scheduler(model, READER.tokenizer, slots=slots, queue_limit=queue_limit, deliver=outlet.steps.put, failed=outlet.failures.put)
    made.start()
    try:
        yield made, outlet
    finally:
        made.close(PATIENCE)


def spec(prompt: str | Sequence[int] = "User: hi\nAssistant: ", **changes: Any) -> SequenceSpec:
    tokens = READER.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    values: dict[str, Any] = {
        "prompt": tokens,
        "sampling": SamplingParams(temperature=0.0),
        "max_tokens": 30,
        "min_tokens": 0,
        "stop_tokens": frozenset({2}),
        "stop_strings": (),
        "include_stop": False,
    }
    return SequenceSpec(**{**values, **changes})


def text(events: Sequence[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def alone(one: SequenceSpec) -> list[TokenEvent]:
    with scheduler() as (made, outlet):
        return outlet.finish(made.submit([one]))[0]


ASKED = ["What is FastDeploy?", "FastDeploy是什么\uff1f", "Hello", "Who are you?", "谢谢", "How do I stream?", "test", "你好"]


def prompt_of(question: str) -> str:
    return f"<|begin_of_sentence|>User: {question}\nAssistant: "


def test_eight_staggered_sequences_answer_as_each_does_alone() -> None:
    specs = [spec(prompt_of(question), max_tokens=40) for question in ASKED]
    expected = [[event.token for event in alone(one)] for one in specs]
    with scheduler() as (made, outlet):
        tickets = []
        for one in specs:
            tickets += made.submit([one])
            outlet.wait()
            outlet.wait()
        together = outlet.finish(tickets)
    assert [[event.token for event in events] for events in together] == expected


def test_more_sequences_than_slots_all_get_their_turn() -> None:
    with scheduler(slots=2) as (made, outlet):
        tickets = made.submit([spec(prompt_of(question)) for question in ASKED])
        assert made.waiting >= 0
        answers = outlet.finish(tickets)
    assert [text(events) for events in answers] == [text(alone(spec(prompt_of(question)))) for question in ASKED]


@given(st.lists(st.tuples(st.integers(1, 150), st.integers(1, 10), st.integers(0, 3)), min_size=1, max_size=5), st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_any_mix_of_lengths_joins_and_leaves_without_changing_an_answer(jobs: list[tuple[int, int, int]], slots: int) -> None:
    """Rule: batched = alone, whatever prompts are prefilled beside it and however many slots there are."""
    random = np.random.default_rng(0)
    specs = [spec(random.integers(3, VOCABULARY, length).tolist(), max_tokens=count) for length, count, _ in jobs]
    with scheduler(slots=slots) as (made, outlet):
        tickets = []
        for one, (_, _, pause) in zip(specs, jobs, strict=True):
            tickets += made.submit([one])
            for _ in range(pause if len(tickets) == 1 else 0):
                if not (outlet.events[tickets[0]] and outlet.events[tickets[0]][-1].finish):
                    outlet.wait()
        together = outlet.finish(tickets)
    for one, events in zip(specs, together, strict=True):
        assert [event.token for event in events] == [event.token for event in alone(one)]


def test_a_long_prompt_does_not_stop_an_answer_that_is_under_way() -> None:
    long_prompt = np.random.default_rng(1).integers(3, VOCABULARY, 1500).tolist()
    with scheduler() as (made, outlet):
        (answering,) = made.submit([spec(prompt_of("Hello"), max_tokens=400, min_tokens=400)])
        outlet.wait()
        (prompting,) = made.submit([spec(long_prompt, max_tokens=1)])
        before = len(outlet.events[answering])
        while not outlet.events[prompting]:
            outlet.wait()
        between = len(outlet.events[answering]) - before
    # 1500 prompt tokens in pieces of 64 are 24 steps, and each gave the other its token.
    assert between >= 1500 // 64


def test_a_prompt_fed_in_pieces_gives_the_logits_of_one_fed_whole() -> None:
    tokens = np.random.default_rng(2).integers(3, VOCABULARY, 700).tolist()
    whole = MODEL.forward([Chunk(cache=MODEL.new_cache(), tokens=tokens)])
    cache = MODEL.new_cache()
    pieces = [MODEL.forward([Chunk(cache=cache, tokens=tokens[first : first + 64])]) for first in range(0, 700, 64)]
    np.testing.assert_allclose(pieces[-1], whole, atol=1e-4)


def test_aborting_frees_the_slot_and_silences_the_sequence() -> None:
    with scheduler(slots=1) as (made, outlet):
        (endless,) = made.submit([spec(max_tokens=3000, min_tokens=3000)])
        outlet.wait()
        (waiting, second) = made.submit([spec(max_tokens=5), spec(max_tokens=5)])
        assert (made.running, made.waiting) == (1, 2)
        made.abort([endless, waiting])
        assert (made.running, made.waiting) == (0, 1)
        outlet.finish([second])
        assert not outlet.events[waiting]
        assert len(outlet.events[endless]) < 3000
        assert outlet.events[endless][-1].finish is None


def test_a_finished_sequence_may_be_aborted_again() -> None:
    with scheduler() as (made, outlet):
        tickets = made.submit([spec(max_tokens=2)])
        outlet.finish(tickets)
        made.abort(tickets)
        assert made.running == 0
        outlet.finish(made.submit([spec(max_tokens=2)]))


def test_the_queue_is_bounded_and_takes_all_or_nothing() -> None:
    with scheduler(slots=1, queue_limit=3) as (made, outlet):
        made.submit([spec(max_tokens=3000, min_tokens=3000)])
        outlet.wait()
        made.submit([spec(), spec()])
        with pytest.raises(Overloaded):
            made.submit([spec(), spec()])
        assert made.waiting == 2


def test_a_closed_scheduler_takes_nothing() -> None:
    with scheduler() as (made, _):
        made.close(PATIENCE)
        with pytest.raises(Overloaded):
            made.submit([spec()])


def test_a_model_that_raises_ends_every_sequence_with_an_error_and_says_so() -> None:
    with scheduler(slots=1) as (made, outlet):
        # An id outside the vocabulary never passes a request's checks; here it stands for a fault inside.
        broken, queued = made.submit([spec([VOCABULARY + 1]), spec()])
        assert isinstance(outlet.failures.get(timeout=PATIENCE), IndexError)
        for events in outlet.finish([broken, queued]):
            assert (events[0].finish, events[0].token, events[0].text) == ("error", None, "the model failed: IndexError")
        with pytest.raises(Overloaded):
            made.submit([spec()])


def test_logits_that_are_no_numbers_end_only_their_sequence(tmp_path: Path) -> None:
    model, reader = load(write_overflowing(tmp_path), served_name=None, max_model_len=None, threads=1, memory=None)
    reader.close()
    with scheduler(model) as (made, outlet):
        sound, broken = made.submit([spec([5, 5], max_tokens=5), spec([7, 7], max_tokens=5)])
        answers = outlet.finish([sound, broken])
    assert [events[-1].finish for events in answers] == ["length", "error"]


def test_what_one_sequence_did_not_foresee_ends_only_that_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    with scheduler() as (made, outlet):
        # Ids outside the vocabulary never pass the checks; here they stand for a fault in what belongs to one sequence.
        (sound,) = made.submit([spec(max_tokens=50, min_tokens=50)])
        outlet.wait()
        later, sooner = made.submit([spec(min_tokens=5, stop_tokens=frozenset({VOCABULARY})), spec(sampling=SamplingParams(seed=-1))])
        answers = outlet.finish([sound, later, sooner])
        assert made.running == 0
        assert outlet.failures.empty()
    assert [events[-1].finish for events in answers] == ["length", "error", "error"]
    assert [events[-1].text for events in answers[1:]] == ["the sequence failed: IndexError", "the sequence failed: ValueError"]
    assert "IndexError" in capsys.readouterr().err


def test_length_stop_token_and_stop_string_end_an_answer_each_with_its_reason() -> None:
    whole = alone(spec(prompt_of("What is FastDeploy?"), max_tokens=100))
    assert (whole[-1].finish, whole[-1].token, whole[-1].text) == ("stop", 2, "")
    cut = alone(spec(prompt_of("What is FastDeploy?"), max_tokens=4))
    assert (len(cut), cut[-1].finish) == (4, "length")
    third = whole[2].token
    assert third is not None
    by_token = alone(spec(prompt_of("What is FastDeploy?"), stop_tokens=frozenset({third})))
    assert (len(by_token), by_token[-1].finish, by_token[-1].text) == (3, "stop", "")
    middle = text(whole)[10:16]
    by_string = alone(spec(prompt_of("What is FastDeploy?"), max_tokens=100, stop_strings=[middle]))
    assert text(by_string) == text(whole)[: text(whole).index(middle)]
    assert by_string[-1].finish == "stop"
    shown = alone(spec(prompt_of("What is FastDeploy?"), max_tokens=100, stop_strings=[middle], include_stop=True))
    assert text(shown) == text(by_string) + middle


def test_text_held_back_for_a_stop_string_is_shown_when_the_answer_ends_without_it() -> None:
    whole = alone(spec(prompt_of("What is FastDeploy?"), max_tokens=6))
    almost = text(whole)[-2:] + "never"
    assert text(alone(spec(prompt_of("What is FastDeploy?"), max_tokens=6, stop_strings=[almost]))) == text(whole)
    ended = alone(spec(prompt_of("What is FastDeploy?"), max_tokens=100))
    almost = text(ended)[-2:] + "never"
    assert text(alone(spec(prompt_of("What is FastDeploy?"), max_tokens=100, stop_strings=[almost]))) == text(ended)


def test_min_tokens_holds_off_every_way_to_stop() -> None:
    whole = alone(spec(prompt_of("Hello"), max_tokens=100))
    first = whole[0].text
    events = alone(spec(prompt_of("Hello"), max_tokens=60, min_tokens=50, stop_strings=[first]))
    assert len(events) >= 50
    assert all(event.token != 2 for event in events[:50])
