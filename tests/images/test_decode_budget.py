"""Memory for decoding: given back however an image ends, FIFO, and small images go ahead of large ones."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedder.errors import Overloaded
from embedder.images.decode_budget import MAX_QUEUE, DecodeBudget

pytestmark = pytest.mark.anyio


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def waiting(budget: DecodeBudget, size: int) -> asyncio.Task[None]:
    """An image that waits, or has its memory already."""
    task = asyncio.ensure_future(budget.take(size))
    await turns()
    return task


def test_what_fits_is_taken_at_once_and_what_does_not_is_not() -> None:
    budget = DecodeBudget(100)
    assert budget.try_take(70)
    assert not budget.try_take(31)
    assert budget.try_take(30)
    budget.give_back(70)
    assert budget.try_take(70)


@pytest.mark.parametrize("size", [90, 5])
async def test_images_of_a_kind_get_memory_in_their_order(size: int) -> None:
    budget = DecodeBudget(100)
    assert budget.try_take(100)
    first, second = await waiting(budget, size), await waiting(budget, size)
    budget.give_back(size)
    assert not budget.try_take(size)  # there is room, but others came before
    await turns()
    assert first.done()
    assert not second.done()
    budget.give_back(size)
    await second


async def test_small_images_go_ahead_of_large_ones_that_wait() -> None:
    budget = DecodeBudget(444)
    assert budget.try_take(400)
    large = [await waiting(budget, 400) for _ in range(MAX_QUEUE)]
    for _ in range(1000):  # beside each of the large ones, 44 are free
        assert budget.try_take(40)
        budget.give_back(40)
    for one in large:
        budget.give_back(400)
        await one
        assert budget.try_take(40)
        budget.give_back(40)


async def test_small_images_that_wait_are_not_refused_because_large_ones_wait() -> None:
    budget = DecodeBudget(100)
    assert budget.try_take(100)
    large = [await waiting(budget, 100) for _ in range(MAX_QUEUE)]
    small = [await waiting(budget, 1) for _ in range(200)]
    with pytest.raises(Overloaded, match=f"{MAX_QUEUE} large images wait"):
        await budget.take(26)
    # Each large image lets a quarter of the budget of small ones go ahead.
    for round in range(1, MAX_QUEUE + 1):
        budget.give_back(100)
        await turns()
        assert sum(one.done() for one in small) == 25 * round
        assert sum(one.done() for one in large) == round - 1
        for _ in range(25):
            budget.give_back(1)
        await turns()
        assert sum(one.done() for one in large) == round
    budget.give_back(100)
    await turns()
    assert all(one.done() for one in small)


@pytest.mark.parametrize("size", [26, 60, 100])
@pytest.mark.parametrize("small", [1, 7, 25])
async def test_a_flood_of_small_images_holds_up_a_large_one_for_a_quarter_of_the_budget_at_most(
    size: int, small: int
) -> None:
    budget = DecodeBudget(100)
    in_use = [small] * (100 // small)
    assert all(budget.try_take(one) for one in in_use)
    large = await waiting(budget, size)
    ahead = 0
    while not large.done() and in_use:  # each that is decoded is followed by as many as may
        budget.give_back(in_use.pop())
        while budget.try_take(small):
            in_use.append(small)
            ahead += small
        await turns()
        assert ahead < 10_000, "the large image starves"
    assert large.done()
    assert ahead <= 25


async def test_memory_given_back_by_another_thread_wakes_who_waits() -> None:
    budget = DecodeBudget(10)
    assert budget.try_take(10)
    waits = await waiting(budget, 10)
    with ThreadPoolExecutor(1) as other:
        other.submit(budget.give_back, 10).result()
    await asyncio.wait_for(waits, 5)


async def test_memory_that_came_back_since_it_was_tried_is_taken_at_once() -> None:
    budget = DecodeBudget(10)
    assert budget.try_take(10)
    assert not budget.try_take(10)
    budget.give_back(10)
    await asyncio.wait_for(budget.take(10), 5)


@pytest.mark.parametrize("behind", [8, 5, 1])
async def test_an_image_that_is_cancelled_while_it_waits_leaves_its_turn_to_those_behind(behind: int) -> None:
    budget = DecodeBudget(10)
    assert budget.try_take(2)
    gone, stays = await waiting(budget, 10), await waiting(budget, behind)
    gone.cancel()  # and nobody gives anything back
    await asyncio.wait_for(stays, 5)
    budget.give_back(2)
    budget.give_back(behind)
    assert budget.try_take(10)


@pytest.mark.parametrize("size", [10, 2])
async def test_an_image_that_is_cancelled_in_the_moment_of_its_turn_gives_the_memory_back(size: int) -> None:
    budget = DecodeBudget(10)
    assert budget.try_take(10)
    gone = await waiting(budget, size)
    budget.give_back(10)  # granted, but not yet told
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert budget.try_take(10)


@pytest.mark.parametrize(("size", "kind"), [(10, "large "), (2, "")])
async def test_too_many_that_wait_are_refused_at_once(size: int, kind: str) -> None:
    budget = DecodeBudget(10)
    assert budget.try_take(10)
    count = MAX_QUEUE * 10 // size
    tasks = [await waiting(budget, size) for _ in range(count)]
    with pytest.raises(Overloaded, match=f"^{count} {kind}images wait to be decoded"):
        await budget.take(size)
    for task in tasks:
        task.cancel()
    await turns()
    budget.give_back(10)
    assert budget.try_take(10)
