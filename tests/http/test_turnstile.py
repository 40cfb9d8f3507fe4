"""What a crowd does to what is under way: nothing, on both event loops."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from starlette.types import Message, Receive, Scope, Send

from embedder.http.api_keys import APIKeys
from embedder.http.gate import Door
from embedder.http.turnstile import PER_TURN, Turnstile

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


class Turns:
    """Counts the event loop's while the `with` block runs."""

    now = 0

    def __enter__(self) -> Turns:
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()

    def _count(self) -> None:
        self.now += 1
        self._handle = asyncio.get_running_loop().call_soon(self._count)


async def test_a_crowd_gets_in_a_few_at_a_turn_and_in_order() -> None:
    turnstile = Turnstile(per_turn=4)
    entered: list[tuple[int, int]] = []

    async def enter(number: int) -> None:
        await turnstile.enter()
        entered.append((turns.now, number))

    with Turns() as turns:
        await asyncio.gather(*map(enter, range(41)))
    assert [number for _, number in entered] == list(range(41))
    at_a_turn = Counter(turn for turn, _ in entered)
    assert max(at_a_turn.values()) == 4
    assert len(at_a_turn) == 11  # and no turn is left out:
    assert max(at_a_turn) - min(at_a_turn) <= 11


async def test_one_that_comes_alone_does_not_wait() -> None:
    turnstile = Turnstile(per_turn=2)
    with Turns() as turns:
        for _ in range(10):
            before = turns.now
            await turnstile.enter()
            assert turns.now == before
            await asyncio.sleep(0)
            await asyncio.sleep(0)


async def test_after_a_crowd_the_event_loop_sleeps() -> None:
    turns = 0

    class Counted(Turnstile):
        def _turn(self) -> None:
            nonlocal turns
            turns += 1
            super()._turn()

    turnstile = Counted(per_turn=2)
    await asyncio.gather(*(turnstile.enter() for _ in range(9)))
    await asyncio.sleep(0.05)
    before = turns
    await asyncio.sleep(0.1)
    assert turns == before > 0


async def test_who_gives_up_takes_no_place() -> None:
    turnstile = Turnstile(per_turn=1)
    tasks = [asyncio.ensure_future(turnstile.enter()) for _ in range(50)]
    await asyncio.sleep(0)  # the first is in, and the others wait
    for task in tasks[1:-1]:
        task.cancel()
    with Turns() as turns:
        await tasks[-1]
        assert turns.now <= 4


@pytest.mark.parametrize("path", ["/embed", "/nothing-there", "/info"])
async def test_a_crowd_before_the_door_leaves_the_event_loop_to_others(path: str) -> None:
    count = 20 * PER_TURN
    answered: list[int] = []

    async def ask(path: str) -> None:
        scope: Scope = {"type": "http", "path": path, "method": "POST", "headers": []}
        await door(scope, nothing, send)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered.append(turns.now)

    door = Door(answer, keys=APIKeys([]), timeout_s=60)
    with Turns() as turns:
        await asyncio.gather(*(ask(path) for _ in range(count)))
    assert len(answered) == count
    assert max(Counter(answered).values()) <= PER_TURN


async def test_health_does_not_wait_behind_a_crowd() -> None:
    answered: list[str] = []

    async def ask(path: str) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append(path)

        scope: Scope = {
            "type": "http",
            "path": path,
            "method": "GET" if path == "/health" else "POST",
            "headers": [],
        }
        await door(scope, nothing, send)

    door = Door(answer, keys=APIKeys([]), timeout_s=60)
    await asyncio.gather(*(ask("/embed") for _ in range(20 * PER_TURN)), ask("/health"))
    assert answered.index("/health") <= PER_TURN


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
