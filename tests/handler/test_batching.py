from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.batching import Batcher, BatchSize, tokens_in
from handler.settings import BatchLimits
from tests.strategies import SETTINGS

LIMITS = st.builds(
    lambda least, more, growth: BatchLimits(minimum=least, maximum=least + more, growth=growth),
    st.integers(1, 20),
    st.integers(0, 100),
    st.floats(1, 5),
)


def token(number: int = 0, size: int = 0) -> bytes:
    """A frame that counts as one token."""
    return b'data: {"choices":[{"index":0,"text":"%d%b"}]}\n\n' % (number, b"x" * size)


NO_TOKEN = b": nothing\n\n"


def batcher(limits: BatchLimits | None, **bounds: int) -> Batcher:
    return Batcher(limits, lambda: None, lambda: None, **bounds)


async def all_batches(of: Batcher) -> list[bytes]:
    found = []
    while batch := await of.take():
        found.append(batch)
    return found


@SETTINGS
@given(LIMITS, st.integers(1, 60))
def test_the_bound_grows_by_the_factor_from_minimum_to_maximum(limits: BatchLimits, steps: int) -> None:
    """Rule: "`BatchSize` grows from min to max by the factor, per request, bounded, exactly as configured." """
    size, found = BatchSize(limits), []
    for step in range(steps):
        found.append(size.current)
        exact = min(limits.minimum * limits.growth**step, limits.maximum)
        assert exact - 1 - 1e-6 * exact < size.current <= exact * (1 + 1e-6)
        size.grow()
    assert found == sorted(found)
    assert found[0] == limits.minimum
    assert found[-1] <= limits.maximum


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        (BatchLimits(minimum=1, maximum=50, growth=3.0), [1, 3, 9, 27, 50, 50]),
        (BatchLimits(minimum=1, maximum=4, growth=1.3), [1, 1, 1, 2, 2, 3, 4, 4]),
        (BatchLimits(minimum=5, maximum=5, growth=2.0), [5, 5, 5]),
        (BatchLimits(minimum=2, maximum=100, growth=1.0), [2, 2, 2]),
    ],
)
def test_the_bounds_are_those_that_were_configured(limits: BatchLimits, sizes: list[int]) -> None:
    size = BatchSize(limits)
    found = []
    for _ in sizes:
        found.append(size.current)
        size.grow()
    assert found == sizes


@SETTINGS
@given(st.none() | LIMITS, st.lists(st.lists(st.booleans(), min_size=1, max_size=5), max_size=20))
def test_batches_joined_are_what_was_put_in_order(limits: BatchLimits | None, runs: list[list[bool]]) -> None:
    """Rule: "Nothing is swallowed." """
    frames = [[token(at) if one else NO_TOKEN for at, one in enumerate(run)] for run in runs]

    async def run() -> list[bytes]:
        made = batcher(limits)
        for one in frames:
            made.put(b"".join(one))
        made.close()
        return await all_batches(made)

    batches = asyncio.run(run())
    assert b"".join(batches) == b"".join(frame for one in frames for frame in one)
    if limits is None:
        assert len(batches) == bool(frames), "without bounds all that waits leaves together"
        return
    size, left = BatchSize(limits), b"".join(frame for one in frames for frame in one)
    for batch in batches:
        tokens, left = tokens_in(batch), left[len(batch) :]
        assert tokens <= size.current
        following = left[: left.find(b"\n\n") + 2]
        assert not left or tokens + tokens_in(following) > size.current, "one more frame would have fitted"
        if tokens:
            size.grow()


def test_the_first_frame_leaves_at_once_and_what_comes_during_its_trip_leaves_together() -> None:
    async def run() -> list[bytes]:
        made, found, trip = batcher(None), list[bytes](), asyncio.Event()
        left = asyncio.Event()

        async def consume() -> None:
            while batch := await made.take():
                found.append(batch)
                left.set()
                await trip.wait()

        consumer = asyncio.create_task(consume())
        made.put(token(1))
        await asyncio.wait_for(left.wait(), 5)
        for number in (2, 3, 4):
            made.put(token(number))
        made.close()
        trip.set()
        await consumer
        return found

    assert asyncio.run(run()) == [token(1), token(2) + token(3) + token(4)]


def test_a_waiting_consumer_gets_a_frame_without_delay_whatever_the_minimum() -> None:
    async def run() -> bytes:
        made = batcher(BatchLimits(minimum=50, maximum=50, growth=1.0))
        taking = asyncio.create_task(made.take())
        await asyncio.sleep(0)
        made.put(token())
        return await asyncio.wait_for(taking, 5)

    assert asyncio.run(run()) == token()


def test_an_error_comes_after_the_last_frame_and_stays() -> None:
    async def run() -> None:
        made = batcher(None)
        made.put(b"whole")
        made.close(RuntimeError("broke"))
        made.close()
        made.put(b"too late")
        assert await made.take() == b"whole"
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broke"):
                await made.take()

    asyncio.run(run())


def test_the_end_is_an_empty_batch_every_time() -> None:
    async def run() -> None:
        made = batcher(BatchLimits())
        taking = asyncio.create_task(made.take())
        await asyncio.sleep(0)
        made.close()
        assert await taking == b""
        assert await made.take() == b""

    asyncio.run(run())


@pytest.mark.parametrize("limits", [None, BatchLimits(minimum=50, maximum=50, growth=1.0)])
def test_a_batch_stays_under_the_bytes_that_one_piece_may_have(limits: BatchLimits | None) -> None:
    async def run() -> list[int]:
        made = batcher(limits, max_bytes=100)
        for size in (58, 38, 1, 298, 5):
            made.put(b"x" * size + b"\n\n")
        made.close()
        return [len(batch) for batch in await all_batches(made)]

    assert asyncio.run(run()) == [100, 3, 300, 7]


def test_the_producer_is_paused_from_one_byte_over_the_bound_until_the_consumer_is_at_it_again() -> None:
    async def run() -> None:
        said = list[str]()
        made = Batcher(
            BatchLimits(minimum=1, maximum=1, growth=1.0), lambda: said.append("pause"), lambda: said.append("resume"), max_waiting=300
        )
        for _ in range(3):  # the count is right every time round
            said.clear()
            one = token(size=150 - len(token()))
            made.put(one)
            made.put(one)
            assert not said, "300 bytes are at the bound, not over it"
            made.put(b"x\n\n")
            made.put(b"y\n\n")
            assert said == ["pause"], "it is told once"
            assert await made.take() == one
            assert said == ["pause", "resume"]
            assert await made.take() == one + b"x\n\ny\n\n"

    asyncio.run(run())


def test_the_frame_that_opens_a_chat_answer_is_no_token() -> None:
    opening = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    quoted = b'data: {"choices":[{"index":0,"delta":{"content":"\\"role\\":\\"assistant\\""}}]}\n\n'
    assert [tokens_in(run) for run in (opening, token(), opening + token() + token(), quoted, NO_TOKEN, b"")] == [0, 1, 2, 1, 0, 0]
