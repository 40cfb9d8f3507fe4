"""How much images in work may hold: counted, given back however they end, and waited for in turn."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedder.errors import Overloaded
from embedder.memory import MAX_QUEUE, DecodingMemory, HeldBytes, available_memory_bytes

pytestmark = pytest.mark.anyio


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def decode(memory: DecodingMemory, size: int = 10) -> str:
    await memory.take(size)
    await turns()
    memory.give_back(size)
    return "decoded"


# What there is


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_limit_counts(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("123456789\n")
    assert available_memory_bytes(tmp_path) == 123_456_789


@pytest.mark.parametrize("text", ["max", "9223372036854771712", "", "nonsense"])
def test_where_there_is_no_limit_the_machines_memory_counts(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.max").write_text(text)
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    assert available_memory_bytes(tmp_path) == pytest.approx(1024 * kilobytes, rel=0.01)


# Bytes that are held


def test_bytes_up_to_the_limit_are_held_and_one_more_is_not() -> None:
    held = HeldBytes(100)
    with held.hold() as one, held.hold() as other:
        one.add(60)
        other.add(40)
        with pytest.raises(Overloaded, match=r"hold 0\.0001 MB and the limit is 0\.0001 MB"):
            other.add(1)
        assert held.total_bytes == 100


def test_bytes_come_back_however_the_work_ends() -> None:
    held = HeldBytes(100)
    with held.hold() as hold:
        hold.add(30)
    with held.hold() as hold:
        hold.add(50)
        with pytest.raises(Overloaded):
            hold.add(51)
    assert held.total_bytes == 0


# Memory for decoding


def test_what_fits_is_taken_at_once_and_what_does_not_is_not() -> None:
    memory = DecodingMemory(100)
    assert memory.try_take(70)
    assert not memory.try_take(31)
    assert memory.try_take(30)
    memory.give_back(70)
    assert memory.try_take(70)


async def test_who_waits_gets_room_in_turn_and_nobody_passes() -> None:
    memory = DecodingMemory(100)
    assert memory.try_take(80)
    order = []

    async def decode(name: str, size: int) -> None:
        await memory.take(size)
        order.append(name)
        await turns()
        memory.give_back(size)

    large, small = (asyncio.ensure_future(decode(*who)) for who in (("large", 90), ("small", 10)))
    await turns()
    assert order == []
    assert not memory.try_take(10)  # there is room, but others came before
    memory.give_back(80)
    await asyncio.gather(large, small)
    assert order == ["large", "small"]
    assert memory.try_take(100)


async def test_room_given_back_by_another_thread_wakes_who_waits() -> None:
    memory = DecodingMemory(10)
    assert memory.try_take(10)

    waiting = asyncio.ensure_future(decode(memory))
    await turns()
    with ThreadPoolExecutor(1) as other:
        other.submit(memory.give_back, 10).result()
    await asyncio.wait_for(waiting, 5)


async def test_who_goes_away_while_waiting_leaves_the_room_to_others() -> None:
    memory = DecodingMemory(10)
    assert memory.try_take(10)

    gone, stays = asyncio.ensure_future(decode(memory)), asyncio.ensure_future(decode(memory))
    await turns()
    gone.cancel()
    await turns()
    memory.give_back(10)
    assert await asyncio.wait_for(stays, 5) == "decoded"
    assert memory.try_take(10)


async def test_who_goes_away_in_the_moment_of_his_turn_gives_the_room_back() -> None:
    memory = DecodingMemory(10)
    assert memory.try_take(10)

    gone = asyncio.ensure_future(decode(memory))
    await turns()
    memory.give_back(10)  # granted, but not yet told
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert memory.try_take(10)


async def test_too_many_who_wait_are_refused_at_once() -> None:
    memory = DecodingMemory(10)
    assert memory.try_take(10)

    waiting = [asyncio.ensure_future(decode(memory)) for _ in range(MAX_QUEUE)]
    await turns()
    with pytest.raises(Overloaded, match=f"{MAX_QUEUE} large images wait"):
        await decode(memory)
    memory.give_back(10)
    await asyncio.gather(*waiting)
    assert memory.try_take(10)
