from __future__ import annotations

import asyncio
import random

import pytest

from handler.errors import Unavailable
from handler.gate import Gate

pytestmark = pytest.mark.anyio


async def stay(gate: Gate, inside: asyncio.Event, leave: asyncio.Event) -> str:
    try:
        with gate.admitted():
            inside.set()
            await leave.wait()
    except Unavailable as error:
        return f"{error.status} {error.code}"
    return "done"


async def test_a_place_is_free_again_however_its_holder_left() -> None:
    gate, leave = Gate(1, 60), asyncio.Event()
    for _ in range(3):
        inside = asyncio.Event()
        guest = asyncio.create_task(stay(gate, inside, leave))
        await inside.wait()
        assert await stay(gate, asyncio.Event(), leave) == "429 too_many_requests"
        guest.cancel()
        with pytest.raises(asyncio.CancelledError):
            await guest
    leave.set()
    assert await stay(gate, asyncio.Event(), leave) == "done"


async def test_who_stays_too_long_is_ended_and_may_go_on_after_it() -> None:
    gate = Gate(1, 0.05)
    with pytest.raises(Unavailable, match="HTTP_REQUEST_TIMEOUT") as caught, gate.admitted():
        await asyncio.sleep(30)
    assert (caught.value.status, caught.value.type) == (504, "timeout_error")
    await asyncio.wait_for(asyncio.sleep(0.1), 5)  # the task is not left half cancelled


async def test_draining_lets_nobody_in_waits_for_those_inside_and_ends_them_when_the_time_is_over() -> None:
    gate, inside, leave = Gate(9, 60), asyncio.Event(), asyncio.Event()
    guests = [asyncio.create_task(stay(gate, inside, leave)) for _ in range(3)]
    await inside.wait()
    draining = asyncio.create_task(gate.drain(60))
    await asyncio.sleep(0)
    assert await stay(gate, asyncio.Event(), leave) == "503 shutting_down"
    leave.set()
    await asyncio.wait_for(draining, 5)
    assert await asyncio.gather(*guests) == ["done"] * 3

    gate, inside, leave = Gate(9, 60), asyncio.Event(), asyncio.Event()
    guests = [asyncio.create_task(stay(gate, inside, leave)) for _ in range(3)]
    await inside.wait()
    await asyncio.wait_for(gate.drain(0.05), 5)
    assert await asyncio.gather(*guests) == ["503 shutting_down"] * 3
    await asyncio.wait_for(gate.drain(60), 5)


@pytest.mark.parametrize("seed", range(20))
async def test_after_any_mixture_of_ends_all_places_are_free(seed: int) -> None:
    """Rule: a gate that nobody is inside of drains at once, and no more than its number were ever inside."""
    dice, gate, inside = random.Random(seed), Gate(5, 0.03), 0

    async def guest() -> None:
        nonlocal inside
        await asyncio.sleep(dice.random() / 20)
        try:
            with gate.admitted():
                inside += 1
                assert inside <= 5
                try:
                    await asyncio.sleep(dice.random() / 20)
                finally:
                    inside -= 1
        except Unavailable:
            pass

    guests = [asyncio.create_task(guest()) for _ in range(30)]
    for one in dice.sample(guests, 10):
        asyncio.get_running_loop().call_later(dice.random() / 10, one.cancel)
    await asyncio.gather(*guests, return_exceptions=True)
    assert not [one for one in guests if not one.cancelled() and one.exception()]
    await asyncio.wait_for(gate.drain(60), 1)
