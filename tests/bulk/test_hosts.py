"""Whose turn it is."""

from __future__ import annotations

import asyncio

import pytest

from bulk.hosts import MAX_PAUSE_S, Turns, host_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Shop.example/a.jpg", "shop.example"),
        ("http://user:secret@shop.example:8080/a@b", "shop.example:8080"),
        ("HTTPS://[::1]/", "[::1]"),
        ("data:image/gif;base64,AA", ""),
        ("photos/a.jpg", ""),
        ("http://[::1/", ""),
    ],
)
async def test_the_host_of_a_url(url: str, host: str) -> None:
    assert host_of(url) == host


async def test_hosts_take_turns_and_none_has_more_than_its_share() -> None:
    turns: Turns[int] = Turns(2)
    for row in range(6):
        turns.add("a", row)
    for row in range(6, 8):
        turns.add("b", row)
    begun = [turns.next() for _ in range(5)]
    assert begun == [("a", 0), ("b", 6), ("a", 1), ("b", 7), None]
    assert turns.waiting == 4
    turns.done("a")
    assert [turns.next(), turns.next()] == [("a", 2), None]


async def test_what_has_no_host_is_not_bounded() -> None:
    turns: Turns[int] = Turns(1)
    for row in range(3):
        turns.add("", row)
    assert [turns.next() for _ in range(4)] == [("", 0), ("", 1), ("", 2), None]


async def test_a_host_that_asks_for_it_is_left_alone_and_its_row_comes_again_first() -> None:
    turns: Turns[int] = Turns(4)
    turns.add("a", 0)
    turns.add("a", 1)
    turns.add("b", 2)
    assert turns.next() == ("a", 0)
    assert turns.pause("a", 0.01)
    turns.add("a", 0, first=True)
    turns.done("a")
    assert [turns.next(), turns.next()] == [("b", 2), None]
    turns.changed.clear()
    await asyncio.wait_for(turns.changed.wait(), 30)
    assert [turns.next(), turns.next()] == [("a", 0), ("a", 1)]


async def test_a_host_that_asks_for_too_long_is_not_waited_for() -> None:
    turns: Turns[int] = Turns(4)
    turns.add("a", 0)
    turns.add("a", 1)
    turns.next()
    assert not turns.pause("a", MAX_PAUSE_S + 1)
    assert turns.next() == ("a", 1)
