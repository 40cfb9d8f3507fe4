"""Connections: how many there are, which are used again, and what is left of them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from embedder.errors import Draining, EmbedderError
from embedder.fetch.client import MAX_CONNECTIONS_PER_HOST
from tests.answers import CAT, DOG, HANGS, drop, hang, reset, says, with_length
from tests.fetch.fetching import (
    CAME,
    SHORT_S,
    Names,
    Rendezvous,
    black_holes,
    cancelled,
    fetching,
    open_sockets,
    outcome,
    until,
)
from tests.origin import Handler, Origin

pytestmark = pytest.mark.anyio


async def test_two_fetches_use_one_connection(origin: Origin) -> None:
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert await fetcher.fetch(origin.url("/dog.png")) == DOG
    assert origin.connections.accepted == 1


async def test_a_redirect_and_its_target_use_one_connection(origin: Origin) -> None:
    origin.redirect("/old", "/cat.jpg")
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/old")) == CAT
    assert origin.connections.accepted == 1


async def test_a_connection_made_for_one_name_serves_no_other(origin: Origin) -> None:
    names = {"one.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    async with fetching(origin, names=names) as fetcher:
        for name in ("one.test", "other.test", "one.test"):
            assert await fetcher.fetch(origin.url("/cat.jpg", host=name)) == CAT
    seen = [(request.headers["host"].split(":")[0], request.connection) for request in origin.requests]
    assert seen == [("one.test", 1), ("other.test", 2), ("one.test", 1)]


async def test_a_connection_that_the_origin_closed_while_idle_is_not_a_failure(origin: Origin) -> None:
    origin.raw("/once", says(with_length(CAT)))
    async with fetching(origin) as fetcher:
        for _ in range(3):
            assert await fetcher.fetch(origin.url("/once")) == CAT


@pytest.mark.parametrize("end", [drop, reset])
async def test_kept_connections_that_are_closed_as_they_are_used_again_are_not_a_failure(
    origin: Origin, end: Handler
) -> None:
    together = Rendezvous(20, with_length(CAT))

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await together(reader, writer)
        await reader.readuntil(b"\r\n\r\n")
        await end(reader, writer)

    origin.raw("/once", once)
    async with fetching(origin) as fetcher:
        fetches = (fetcher.fetch(origin.url("/once")) for _ in range(20))
        assert await asyncio.gather(*fetches) == [CAT] * 20
        assert await fetcher.fetch(origin.url("/once")) == CAT
    assert origin.connections.accepted == 20 + 1


async def test_a_host_that_holds_all_its_connections_delays_no_other(origin: Origin) -> None:
    with Origin() as hanging:
        hanging.raw("/hang", hang)
        async with fetching(origin, hanging) as fetcher:
            waiting = [
                asyncio.ensure_future(fetcher.fetch(hanging.url("/hang")))
                for _ in range(MAX_CONNECTIONS_PER_HOST + 100)
            ]
            await until(lambda: hanging.connections.open == MAX_CONNECTIONS_PER_HOST)
            assert await outcome(fetcher.fetch(origin.url("/cat.jpg"))) == CAME
            assert hanging.connections.accepted == MAX_CONNECTIONS_PER_HOST
            await cancelled(waiting)


async def test_all_hosts_together_get_no_more_than_max_connections(origin: Origin) -> None:
    origin.raw("/hang", hang)
    hosts = [f"{number}.test" for number in range(4)]
    names = {host: [origin.host] for host in hosts}
    async with fetching(origin, names=names, max_connections=3) as fetcher:
        *waiting, last = [
            asyncio.ensure_future(fetcher.fetch(origin.url("/hang", host=host))) for host in hosts
        ]
        await until(lambda: len(origin.requests) == 3)
        await asyncio.wait({last}, timeout=SHORT_S)
        assert origin.connections.accepted == 3
        await cancelled(waiting)
        await until(lambda: len(origin.requests) == 4)
        await cancelled([last])


async def test_no_more_connections_stay_idle_than_may_be_in_use(origin: Origin) -> None:
    hosts = [f"{number}.test" for number in range(20)]
    names = {host: [origin.host] for host in hosts}
    async with fetching(origin, names=names, max_connections=4) as fetcher:
        for host in hosts:
            assert await fetcher.fetch(origin.url("/cat.jpg", host=host)) == CAT
        await until(lambda: origin.connections.open == 4)
        for host in hosts[-4:]:  # of these connections none needs to be made again
            assert await fetcher.fetch(origin.url("/cat.jpg", host=host)) == CAT
        assert (origin.connections.open, origin.connections.accepted) == (4, len(hosts))


async def test_a_crowd_of_names_ends_no_idle_connection_that_was_used_in_between(origin: Origin) -> None:
    crowd = [f"{number}.test" for number in range(20)]
    names = {host: [origin.host] for host in [*crowd, "cdn.test"]}
    async with fetching(origin, names=names, max_connections=4) as fetcher:
        for host in crowd:  # it was there first
            await fetcher.fetch(origin.url("/dog.png", host=host))
        for host in crowd:
            await fetcher.fetch(origin.url("/cat.jpg", host="cdn.test"))
            await fetcher.fetch(origin.url("/dog.png", host=host))
    assert len({request.connection for request in origin.requests if request.path == "/cat.jpg"}) == 1


async def test_idle_connections_that_are_pushed_out_leave_those_in_use_alone(origin: Origin) -> None:
    entered, leave = threading.Event(), threading.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        entered.set()
        await until(leave.is_set)
        await says(with_length(CAT))(reader, writer)

    origin.raw("/wait", wait, keep_alive=True)
    crowd = [f"{number}.test" for number in range(10)]
    names = {host: [origin.host] for host in [*crowd, "slow.test"]}
    async with fetching(origin, names=names, max_connections=2) as fetcher:
        # Its connection was idle before, longer than all that come after it.
        await fetcher.fetch(origin.url("/cat.jpg", host="slow.test"))
        slow = asyncio.ensure_future(fetcher.fetch(origin.url("/wait", host="slow.test")))
        await until(entered.is_set)
        for host in crowd:
            assert await fetcher.fetch(origin.url("/cat.jpg", host=host)) == CAT
        leave.set()
        assert await slow == CAT
    first, second = (request for request in origin.requests if "slow.test" in request.headers["host"])
    assert first.connection == second.connection


@pytest.mark.parametrize("handler", [hang, HANGS["in the body"], HANGS["dripping chunks"]])
async def test_cancelled_fetches_give_everything_back(origin: Origin, handler: Handler) -> None:
    origin.raw("/hang", handler)
    origin.raw("/together", Rendezvous(MAX_CONNECTIONS_PER_HOST, with_length(CAT)))
    async with fetching(origin) as fetcher:
        sockets = open_sockets()
        fetches = [
            asyncio.ensure_future(fetcher.fetch(origin.url("/hang")))
            for _ in range(MAX_CONNECTIONS_PER_HOST + 20)
        ]
        await until(lambda: len(origin.requests) == MAX_CONNECTIONS_PER_HOST)
        await cancelled(fetches)
        await until(lambda: origin.connections.open == 0)
        await until(lambda: open_sockets() <= sockets)
        # All slots are there again: so many can meet at the origin.
        together = (fetcher.fetch(origin.url("/together")) for _ in range(MAX_CONNECTIONS_PER_HOST))
        assert await asyncio.gather(*together) == [CAT] * MAX_CONNECTIONS_PER_HOST


@pytest.mark.parametrize("stage", ["look-up", "connect"])
async def test_a_fetch_cancelled_before_it_is_connected_gives_everything_back(stage: str) -> None:
    with black_holes("127.0.0.1") as port:
        names = Names({"hole.test": ["127.0.0.1"], "never.test": None})
        sockets = open_sockets()
        host = {"look-up": "never.test", "connect": "hole.test"}[stage]
        async with fetching(ports=[port], names=names) as fetcher:
            fetches = [asyncio.ensure_future(fetcher.fetch(f"http://{host}:{port}/")) for _ in range(20)]
            begun = (lambda: names.calls) if stage == "look-up" else (lambda: open_sockets() >= sockets + 20)
            await until(begun)
            await cancelled(fetches)


async def test_close_leaves_no_fetch_running_beyond_its_deadline(origin: Origin) -> None:
    origin.raw("/hang", hang)
    origin.raw("/body", HANGS["in the body"])
    async with fetching(origin, names={"never.test": None}, timeout_s=2) as fetcher:
        urls = [origin.url("/hang")] * 40 + [origin.url("/body")] * 40 + [origin.url("/", host="never.test")]
        fetches = [asyncio.ensure_future(fetcher.fetch(url)) for url in urls]
        await until(lambda: len(origin.requests) == MAX_CONNECTIONS_PER_HOST)
        await fetcher.close()
        done, pending = await asyncio.wait(fetches, timeout=60)
        assert not pending
        # Those that waited for an address are cancelled.
        assert all(fetch.cancelled() or isinstance(fetch.exception(), EmbedderError) for fetch in done)


async def test_a_fetch_after_close_is_an_error_of_ours(origin: Origin) -> None:
    async with fetching(origin) as fetcher:
        await fetcher.close()
        with pytest.raises(Draining):
            await fetcher.fetch(origin.url("/cat.jpg"))
