from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.batching import Batcher, BatchSize
from handler.settings import BatchLimits
from tests.strategies import SETTINGS

LIMITS = st.builds(
    lambda least, more, growth: BatchLimits(minimum=least, maximum=least + more, growth=growth),
    st.integers(1, 20),
    st.integers(0, 100),
    st.floats(1, 5),
)


def drain(batcher: Batcher) -> list[list[bytes]]:
    async def all_batches() -> list[list[bytes]]:
        found = []
        while batch := await batcher.take():
            found.append(batch)
        return found

    return asyncio.run(all_batches())


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
@given(LIMITS, st.lists(st.tuples(st.binary(min_size=1, max_size=8), st.integers(0, 3)), max_size=80))
def test_batches_joined_are_what_was_put_in_order(limits: BatchLimits, frames: list[tuple[bytes, int]]) -> None:
    """Rule: "Nothing is swallowed." """

    async def run() -> list[list[bytes]]:
        batcher = Batcher(limits)
        for frame, tokens in frames:
            batcher.put(frame, tokens)
        batcher.close()
        found = []
        while batch := await batcher.take():
            found.append(batch)
        return found

    batches = asyncio.run(run())
    assert [frame for batch in batches for frame in batch] == [frame for frame, _ in frames]
    weights = [tokens for _, tokens in frames]
    size, at = BatchSize(limits), 0
    for batch in batches:
        tokens = sum(weights[at : at + len(batch)])
        at += len(batch)
        assert tokens <= size.current or len(batch) == 1
        # full: one more frame would not have fitted, or there was none
        assert at == len(frames) or tokens + weights[at] > size.current
        if tokens:
            size.grow()


def test_the_first_frame_leaves_at_once_and_what_comes_during_its_trip_leaves_together() -> None:
    async def run() -> list[list[bytes]]:
        batcher, found, trip = Batcher(BatchLimits(minimum=1, maximum=50, growth=3.0)), [], asyncio.Event()
        left = asyncio.Event()

        async def consume() -> None:
            while batch := await batcher.take():
                found.append(batch)
                left.set()
                await trip.wait()

        consumer = asyncio.create_task(consume())
        batcher.put(b"1")
        await asyncio.wait_for(left.wait(), 1)
        for frame in (b"2", b"3", b"4"):
            batcher.put(frame)
        batcher.close()
        trip.set()
        await consumer
        return found

    assert asyncio.run(run()) == [[b"1"], [b"2", b"3", b"4"]]


def test_a_waiting_consumer_gets_a_frame_without_delay_whatever_the_minimum() -> None:
    async def run() -> list[bytes]:
        batcher = Batcher(BatchLimits(minimum=50, maximum=50, growth=1.0))
        taking = asyncio.create_task(batcher.take())
        await asyncio.sleep(0)
        batcher.put(b"only")
        return await asyncio.wait_for(taking, 1)

    assert asyncio.run(run()) == [b"only"]


def test_an_error_comes_after_the_last_frame_and_stays() -> None:
    async def run() -> None:
        batcher = Batcher(BatchLimits())
        batcher.put(b"whole")
        batcher.close(RuntimeError("broke"))
        batcher.close()
        batcher.put(b"too late")
        assert await batcher.take() == [b"whole"]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broke"):
                await batcher.take()

    asyncio.run(run())


def test_the_end_is_an_empty_batch_every_time() -> None:
    async def run() -> None:
        batcher = Batcher(BatchLimits())
        taking = asyncio.create_task(batcher.take())
        await asyncio.sleep(0)
        batcher.close()
        assert await taking == []
        assert await batcher.take() == []

    asyncio.run(run())


def test_a_batch_stays_under_the_bytes_that_one_piece_may_have() -> None:
    async def run() -> list[list[int]]:
        batcher = Batcher(BatchLimits(minimum=50, maximum=50, growth=1.0), max_bytes=100)
        for size in (60, 40, 1, 300, 5):
            batcher.put(b"x" * size)
        batcher.close()
        found = []
        while batch := await batcher.take():
            found.append([len(frame) for frame in batch])
        return found

    assert asyncio.run(run()) == [[60, 40], [1], [300], [5]]


def test_the_producer_waits_while_too_much_waits_for_the_consumer() -> None:
    async def run() -> None:
        batcher = Batcher(BatchLimits(minimum=1, maximum=1, growth=1.0), max_waiting=10)
        await asyncio.wait_for(batcher.room(), 1)
        batcher.put(b"x" * 6)
        batcher.put(b"x" * 6)
        waiting = asyncio.create_task(batcher.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await batcher.take() == [b"x" * 6]
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


def test_a_producer_that_waits_is_let_go_when_the_stream_is_closed() -> None:
    async def run() -> None:
        batcher = Batcher(BatchLimits(), max_waiting=1)
        batcher.put(b"xx")
        waiting = asyncio.create_task(batcher.room())
        await asyncio.sleep(0)
        batcher.close()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


def test_the_producer_waits_from_one_byte_over_the_bound_until_the_consumer_is_at_it_again() -> None:
    async def run() -> None:
        batcher = Batcher(BatchLimits(minimum=1, maximum=1, growth=1.0), max_waiting=10)
        for _ in range(3):  # the count is right every time round
            batcher.put(b"x" * 6)
            batcher.put(b"x" * 4)
            assert batcher._room.is_set(), "10 bytes are at the bound, not over it"
            batcher.put(b"x" * 1)
            assert not batcher._room.is_set()
            assert await batcher.take() == [b"x" * 6]
            assert batcher._room.is_set()
            batcher.put(b"x" * 5)
            assert batcher._room.is_set()
            batcher.put(b"x")
            assert not batcher._room.is_set()
            assert await batcher.take() == [b"x" * 4]
            assert await batcher.take() == [b"x"]
            assert await batcher.take() == [b"x" * 5]
            assert await batcher.take() == [b"x"]

    asyncio.run(run())
