"""How much images in work may hold: counted, given back however they end, and waited for in turn."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedder.errors import Overloaded
from embedder.runtime.memory import MAX_QUEUE, DecodingMemory, HeldBytes, available_memory_bytes
from tests.server import ROOT

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


# What a process may map

TRIES = """
import mmap, resource, sys
from embedder.runtime.memory import mappable_bytes

for limit, gigabytes in zip(sys.argv[1::2], sys.argv[2::2]):
    bytes = int(float(gigabytes) * 1e9)
    resource.setrlimit(getattr(resource, limit), (bytes, bytes))
left = mappable_bytes()
print(left)
for share in (0.95, 1.05):
    try:
        mmap.mmap(-1, int(share * left), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        print(error.strerror)
    else:
        print("mapped")
"""


@pytest.mark.parametrize(
    "limits",
    [
        ("RLIMIT_AS", "2"),
        ("RLIMIT_DATA", "2"),
        ("RLIMIT_AS", "2", "RLIMIT_DATA", "1"),
        ("RLIMIT_AS", "1", "RLIMIT_DATA", "2"),
    ],
)
def test_what_may_be_mapped_can_be_and_more_can_not(limits: tuple[str, ...]) -> None:
    left, *tried = run(TRIES, *limits)
    assert tried == ["mapped", "Cannot allocate memory"]
    assert 0 < int(left) < min(map(int, limits[1::2])) * 10**9


def test_what_is_mapped_already_does_not_count() -> None:
    program = """
import mmap, resource
from embedder.runtime.memory import mappable_bytes

resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))
before = mappable_bytes()
held = mmap.mmap(-1, 10**9, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # and never touched
print(before - mappable_bytes())
"""
    (difference,) = run(program)
    assert int(difference) == pytest.approx(10**9, rel=0.01)


def test_more_than_is_allowed_being_mapped_leaves_nothing() -> None:
    program = """
import resource
from embedder.runtime.memory import mappable_bytes

resource.setrlimit(resource.RLIMIT_AS, (1, 1))
print(mappable_bytes())
"""
    assert run(program) == ["0"]


def test_without_a_limit_there_is_no_number() -> None:
    assert run("from embedder.runtime.memory import mappable_bytes; print(mappable_bytes())") == ["None"]


def run(program: str, *arguments: str) -> list[str]:
    """The lines that `program` prints, in a process of its own: a limit can't be taken back."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


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


async def test_who_goes_away_from_the_front_lets_those_behind_pass_for_whom_there_is_room() -> None:
    memory = DecodingMemory(10)
    assert memory.try_take(5)

    large, small = asyncio.ensure_future(decode(memory, 10)), asyncio.ensure_future(decode(memory, 5))
    await turns()
    large.cancel()  # and nobody gives anything back
    assert await asyncio.wait_for(small, 5) == "decoded"


async def test_room_that_came_back_since_it_was_tried_is_taken_at_once() -> None:
    memory = DecodingMemory(10)
    assert memory.try_take(10)
    assert not memory.try_take(10)
    memory.give_back(10)
    assert await asyncio.wait_for(decode(memory), 5) == "decoded"


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
