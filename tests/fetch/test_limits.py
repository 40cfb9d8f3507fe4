"""Bytes, heads, time: what an origin can cost, and that it costs no other fetch anything."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from embedder.errors import FetchFailed, FetchTimeout, ImageTooLarge, UnsupportedFormat
from embedder.fetch.client import MAX_CONNECTIONS_PER_HOST
from embedder.images.formats import HEAD_BYTES
from tests.answers import (
    BUSYWORK,
    CAT,
    ENDLESS_BODIES,
    ENDLESS_HEADS,
    HANGS,
    HEADER_FLOODS,
    HTML,
    OK,
    Flood,
    chunked,
    hang,
    says,
    with_length,
)
from tests.fetch.fetching import (
    BROKEN,
    BUFFERED_BYTES,
    CAME,
    HEAD_TOO_LONG,
    SHORT_S,
    black_holes,
    fetching,
    outcome,
    until,
)
from tests.origin import Handler, Origin

pytestmark = pytest.mark.anyio

LATE = (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")
NO_CONNECTION = (
    FetchTimeout,
    "fetch_timeout",
    "no connection to the image's server came about within 0.4 s",
)


async def test_a_body_of_exactly_the_limit_passes_in_every_framing(origin: Origin) -> None:
    body = CAT[:5000]
    origin.raw("/length", says(with_length(body)))
    origin.raw("/chunked", says(chunked(body, b"")))
    origin.raw("/close", says(OK + b"\r\n" + body))
    async with fetching(origin, max_bytes=5000) as fetcher:
        for path in ("/length", "/chunked", "/close"):
            assert await fetcher.fetch(origin.url(path)) == body


async def test_a_length_one_byte_over_the_limit_is_refused_without_the_body(origin: Origin) -> None:
    origin.raw("/over", says(with_length(b"", length=5001), then=hang))
    async with fetching(origin, max_bytes=5000) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/over")))
        assert got == (ImageTooLarge, "image_too_large", "the image is 0.005001 MB; the limit is 0.005 MB")
        await until(lambda: origin.connections.open == 0)


@pytest.mark.parametrize("answer", [chunked(CAT[:5001]), OK + b"\r\n" + CAT[:5001]], ids=["chunked", "close"])
async def test_a_body_one_byte_over_the_limit_is_refused_as_it_comes(origin: Origin, answer: bytes) -> None:
    origin.raw("/over", says(answer, then=hang))
    async with fetching(origin, max_bytes=5000) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/over"))))[0] is ImageTooLarge
        await until(lambda: origin.connections.open == 0)


@pytest.mark.parametrize(("head", "piece"), ENDLESS_BODIES.values(), ids=ENDLESS_BODIES)
async def test_an_endless_body_is_cut_off_at_the_limit(origin: Origin, head: bytes, piece: bytes) -> None:
    flood = Flood(head, piece)
    origin.raw("/endless", flood)
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/endless")))
        await until(lambda: flood.over)
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
    assert got == (ImageTooLarge, "image_too_large", "the image is more than that; the limit is 0.1 MB")
    assert flood.sent_bytes < BUFFERED_BYTES


async def test_the_first_bytes_of_what_is_no_image_are_enough(origin: Origin) -> None:
    origin.raw("/page.jpg", says(with_length((HTML * 9)[:HEAD_BYTES], length=90_000), then=hang))
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/page.jpg")))
    assert got == (UnsupportedFormat, "unsupported_format", got[2])
    assert got[2].startswith("the server sent a web page; taken are JPEG, PNG")


@pytest.mark.parametrize("body", [b"", CAT[:2], HTML[:15]])
async def test_a_body_shorter_than_any_image_is_refused(origin: Origin, body: bytes) -> None:
    origin.serve("/short", body)
    async with fetching(origin) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/short"))))[0] is UnsupportedFormat


async def test_a_short_body_that_begins_like_an_image_is_one(origin: Origin) -> None:
    origin.serve("/short", CAT[:16])
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/short")) == CAT[:16]


@pytest.mark.parametrize("answer", HEADER_FLOODS.values(), ids=HEADER_FLOODS)
async def test_a_header_flood_is_a_failure(origin: Origin, answer: bytes) -> None:
    origin.raw("/flood", says(answer + CAT, then=hang))
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/flood")))
        assert got == HEAD_TOO_LONG
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


@pytest.mark.parametrize(("head", "piece"), ENDLESS_HEADS.values(), ids=ENDLESS_HEADS)
async def test_an_endless_head_is_cut_off(origin: Origin, head: bytes, piece: bytes) -> None:
    flood = Flood(head, piece)
    origin.raw("/endless", flood)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/endless")))
        assert got[0] in (FetchFailed, FetchTimeout)
        await until(lambda: flood.over)
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


@pytest.mark.parametrize(("head", "piece"), BUSYWORK.values(), ids=BUSYWORK)
async def test_busywork_ends_by_the_deadline_and_lets_others_through(
    origin: Origin, head: bytes, piece: bytes
) -> None:
    flood = Flood(head, piece)
    with Origin() as busy:
        busy.raw("/busy", flood)
        async with fetching(origin, busy, timeout_s=2, max_bytes=10_000_000) as fetcher:
            busywork = asyncio.ensure_future(outcome(fetcher.fetch(busy.url("/busy"))))
            await until(lambda: flood.sent_bytes > 0)
            while not busywork.done():
                got = await outcome(fetcher.fetch(origin.url("/cat.jpg")))
                assert got == CAME
            got = await busywork
            assert got[0] in (FetchFailed, FetchTimeout)
            await until(lambda: flood.over)


@pytest.mark.parametrize("count", [15, 16])
async def test_fifteen_interim_answers_before_the_real_one_pass_and_sixteen_do_not(
    origin: Origin, count: int
) -> None:
    origin.raw("/hints", says(b"HTTP/1.1 103 Early Hints\r\n\r\n" * count + with_length(CAT)))
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/hints")))
    assert got == (CAME if count == 15 else BROKEN)


@pytest.mark.parametrize("name", ["one-byte chunks", "chunk extension"])
async def test_tiny_chunks_are_cut_off_before_the_deadline(origin: Origin, name: str) -> None:
    flood = Flood(*BUSYWORK[name])
    origin.raw("/busy", flood)
    async with fetching(origin, max_bytes=10_000_000) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/busy")))
        assert got == BROKEN
        await until(lambda: flood.over)
    assert flood.sent_bytes < BUFFERED_BYTES


async def test_a_large_body_in_chunks_of_a_hundred_bytes_is_not_too_tiny(origin: Origin) -> None:
    body = CAT + bytes(2_000_000)
    pieces = [body[start : start + 112] for start in range(0, len(body), 112)]
    origin.raw("/small", says(chunked(*pieces, b"")))
    async with fetching(origin, max_bytes=len(body)) as fetcher:
        assert await fetcher.fetch(origin.url("/small")) == body


async def test_large_images_one_after_the_other_on_one_connection_are_not_too_much(origin: Origin) -> None:
    # What is not body is counted for each answer, and 200 kB are more than may be.
    bodies = {f"/large{number}": CAT + bytes([number]) * 200_000 for number in range(3)}
    for path, body in bodies.items():
        origin.serve(path, body)
    async with fetching(origin, max_bytes=300_000) as fetcher:
        for path, body in bodies.items():
            assert await fetcher.fetch(origin.url(path)) == body
    assert origin.connections.accepted == 1


@pytest.mark.parametrize("handler", HANGS.values(), ids=HANGS)
async def test_an_origin_that_hangs_or_drips_costs_the_deadline_and_no_more(
    origin: Origin, handler: Handler
) -> None:
    origin.raw("/slow", handler)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/slow")))
        assert got == LATE
        await until(lambda: origin.connections.open == 0)
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


async def test_the_deadline_covers_waiting_for_a_connection(origin: Origin) -> None:
    origin.raw("/hang", hang)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        fetches = [outcome(fetcher.fetch(origin.url("/hang"))) for _ in range(MAX_CONNECTIONS_PER_HOST + 5)]
        for got in await asyncio.gather(*fetches):
            assert got == LATE
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


async def test_a_black_hole_costs_the_connect_timeout_not_the_deadline() -> None:
    with black_holes("127.0.0.1") as port:
        async with fetching(ports=[port], connect_timeout_s=SHORT_S) as fetcher:
            got = await outcome(fetcher.fetch(f"http://127.0.0.1:{port}/cat.jpg"))
    assert got == NO_CONNECTION


async def test_a_black_hole_costs_no_more_than_a_short_deadline() -> None:
    with black_holes("127.0.0.1") as port:
        async with fetching(ports=[port], timeout_s=SHORT_S) as fetcher:
            got = await outcome(fetcher.fetch(f"http://127.0.0.1:{port}/cat.jpg"))
    assert got == LATE


async def test_a_name_of_several_black_holes_costs_the_connect_timeout_not_the_deadline() -> None:
    hosts = [f"127.0.0.{i}" for i in range(1, 9)]  # one after the other they would take 3.2 s
    with black_holes(*hosts) as port:
        names = {"holes.test": hosts}
        async with fetching(ports=[port], names=names, timeout_s=3, connect_timeout_s=SHORT_S) as fetcher:
            assert await outcome(fetcher.fetch(f"http://holes.test:{port}/cat.jpg")) == NO_CONNECTION


async def test_the_second_address_is_used_when_the_first_is_a_black_hole(origin: Origin) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.2", origin.port), backlog=0))
        stack.enter_context(socket.create_connection(listener.getsockname()))
        names = {"two.test": ["127.0.0.2", "127.0.0.1"]}
        async with fetching(origin, names=names) as fetcher:
            assert await fetcher.fetch(origin.url("/cat.jpg", host="two.test")) == CAT


async def test_a_tls_handshake_that_hangs_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with fetching(ports=[port], timeout_s=SHORT_S) as fetcher:
            got = await outcome(fetcher.fetch(f"https://127.0.0.1:{port}/cat.jpg"))
    assert got == LATE
