"""What is no answer, or more than one: it fails its own fetch, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import gzip

import pytest

from embedder.errors import FetchFailed, ImageTooLarge, UnsupportedFormat
from tests.answers import BAD_CHUNKS, CAT, DOG, NOT_HTTP, OK, chunked, hang, reset, says, with_length
from tests.fetch.fetching import BROKEN, fetching, outcome, until
from tests.origin import Handler, Origin

SMALL = CAT[:100]
BEGINNINGS = {"one letter": b"H", "half a head": b"HTTP/1.1 200 OK\r\nX-Its: ", "no head": b"x"}

pytestmark = pytest.mark.anyio


async def test_every_final_status_but_success_and_redirects_fails_with_its_number(origin: Origin) -> None:
    statuses = [204, 205, *sorted(set(range(300, 600)) - {301, 302, 303, 307, 308})]
    for status in statuses:
        bare = status in (204, 304)
        origin.serve(f"/{status}", b"" if bare else CAT, status=status, headers={"WWW-Authenticate": "Basic"})
    async with fetching(origin) as fetcher:
        for status in statuses:
            got = await outcome(fetcher.fetch(origin.url(f"/{status}")))
            assert got == (FetchFailed, "fetch_failed", f"the image's server answered {status}")
    assert len(origin.requests) == len(statuses)


async def test_switching_protocols_fails_with_its_number(origin: Origin) -> None:
    origin.raw(
        "/101", says(b"HTTP/1.1 101 Go\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + CAT, then=hang)
    )
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/101")))
        assert got == (FetchFailed, "fetch_failed", "the image's server answered 101")
        await until(lambda: origin.connections.open == 0)


@pytest.mark.parametrize("answer", [with_length(b""), chunked(b""), OK + b"\r\n"])
async def test_200_without_a_body_is_no_image(origin: Origin, answer: bytes) -> None:
    origin.raw("/empty", says(answer))
    async with fetching(origin) as fetcher:
        with pytest.raises((UnsupportedFormat, FetchFailed)):
            await fetcher.fetch(origin.url("/empty"))


@pytest.mark.parametrize("handler", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_an_answer_that_is_broken_or_not_http_is_a_failure(origin: Origin, handler: Handler) -> None:
    origin.raw("/broken", handler)
    async with fetching(origin) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/broken"))) == BROKEN
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


@pytest.mark.parametrize("bad", BAD_CHUNKS)
async def test_a_bad_chunk_that_comes_later_is_a_failure_at_once(origin: Origin, bad: bytes) -> None:
    origin.raw("/broken", says(chunked(CAT), bad, every_s=0.05))
    async with fetching(origin) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/broken"))) == BROKEN


async def test_a_body_without_a_length_that_ends_in_a_reset_is_a_failure(origin: Origin) -> None:
    origin.raw("/cut", says(OK + b"\r\n" + CAT, every_s=0.05, then=reset))
    async with fetching(origin) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/cut"))) == BROKEN


@pytest.mark.parametrize(
    "encoding",
    ["gzip", "BR", "identity, gzip", "zstd", "gzip, gzip", "compress", "deflate"],
)
async def test_a_compression_that_is_not_known_or_is_none_is_refused(origin: Origin, encoding: str) -> None:
    body = CAT if encoding in ("gzip", "identity, gzip", "deflate") else b"\x8b\x07\x80" + CAT
    origin.serve("/encoded", body, headers={"Content-Encoding": encoding})
    async with fetching(origin) as fetcher:
        kind, _, text = await outcome(fetcher.fetch(origin.url("/encoded")))
    assert kind is FetchFailed
    assert "compressed its answer" in text


async def test_what_was_compressed_is_limited_unpacked(origin: Origin) -> None:
    one = gzip.compress(CAT + bytes(50_000_000), 9)
    many = gzip.compress(CAT) + gzip.compress(bytes(100_000)) * 500
    for path, bomb in (("/one", one), ("/many", many)):
        origin.serve(path, bomb, headers={"Content-Encoding": "gzip"})
    async with fetching(origin) as fetcher:
        for path in ("/one", "/many"):
            assert (await outcome(fetcher.fetch(origin.url(path))))[0] is ImageTooLarge


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "chunked, gzip", "xchunked", "chunked;q=1"])
async def test_a_transfer_encoding_but_chunks_is_refused(origin: Origin, coding: str) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CAT), CAT) if "chunked" in coding else CAT
    origin.raw("/coded", says(OK + f"Transfer-Encoding: {coding}\r\n\r\n".encode() + body))
    async with fetching(origin) as fetcher:
        kind, code, _ = await outcome(fetcher.fetch(origin.url("/coded")))
    assert (kind, code) == (FetchFailed, "fetch_failed")


async def test_a_second_content_encoding_header_is_refused_too(origin: Origin) -> None:
    headers = b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"
    origin.raw("/encoded", says(with_length(b"\x8b" + CAT, headers)))
    async with fetching(origin) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/encoded"))))[0] is FetchFailed


async def test_a_body_longer_than_its_length_is_cut_there_or_refused(origin: Origin) -> None:
    origin.raw("/long", says(with_length(CAT, length=5000)))
    async with fetching(origin) as fetcher:
        with contextlib.suppress(FetchFailed):
            assert await fetcher.fetch(origin.url("/long")) == CAT[:5000]
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


async def test_a_second_answer_in_one_packet_answers_nobody(origin: Origin) -> None:
    origin.raw("/twice", says(with_length(CAT) + with_length(DOG), then=hang))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/twice")) == CAT
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


async def test_a_second_answer_behind_a_body_that_was_read_with_pauses_answers_nobody(origin: Origin) -> None:
    # More than a socket gives at once.
    body = CAT + bytes(1_600_000)
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    origin.raw("/twice", says(chunked(*pieces, b"") + with_length(DOG), then=hang))
    async with fetching(origin, max_bytes=2_000_000) as fetcher:
        for _ in range(20):
            assert await fetcher.fetch(origin.url("/twice")) == body
            assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(with_length(CAT), CAT, id="length"),
        pytest.param(with_length(SMALL), SMALL, id="small"),
        pytest.param(chunked(CAT, b""), CAT, id="chunks"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + with_length(SMALL), SMALL, id="interim"),
    ],
)
async def test_what_begins_behind_an_answer_is_never_part_of_the_next(
    origin: Origin, answer: bytes, body: bytes, beginning: bytes
) -> None:
    rests = []

    async def and_the_rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer + beginning)
        rests.append(await reader.read(1))  # of a next request: nothing when the connection was cut
        if rests[-1]:
            writer.write(with_length(DOG).removeprefix(beginning))

    origin.raw("/more", and_the_rest)
    async with fetching(origin) as fetcher:
        for _ in range(3):
            assert await fetcher.fetch(origin.url("/more")) == body
            assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        await until(lambda: len(rests) == 3)
    assert rests == [b""] * 3


@pytest.mark.parametrize(
    "rest", [b"x", b"HTTP/1.1 1", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9], ids=["byte", "head", "heads"]
)
async def test_what_comes_late_on_a_kept_connection_fails_no_other_fetch(origin: Origin, rest: bytes) -> None:
    late = asyncio.get_running_loop().create_future()

    async def and_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(with_length(CAT))
        request = await reader.read(1)
        writer.write(rest)
        await asyncio.sleep(0)
        late.get_loop().call_soon_threadsafe(late.set_result, request)

    origin.raw("/later", and_later)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/later")) == CAT
        assert await fetcher.fetch(origin.url("/dog.png")) == DOG
        assert await late == b"G"  # it was the request for the dog that it answered


async def test_the_same_on_a_new_connection_is_the_origins_answer(origin: Origin) -> None:
    origin.raw("/broken", says(b"x"))
    async with fetching(origin) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/broken"))))[0] is FetchFailed
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert (await outcome(fetcher.fetch(origin.url("/broken"))))[0] is FetchFailed
    # The last one was asked for on the kept connection first.
    assert len([request for request in origin.requests if request.path == "/broken"]) == 3


async def test_an_answer_on_an_idle_connection_answers_nobody(origin: Origin) -> None:
    late = asyncio.get_running_loop().create_future()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(with_length(CAT), every_s=0.05)(reader, writer)
        await says(with_length(DOG), every_s=0.05)(reader, writer)
        late.get_loop().call_soon_threadsafe(late.set_result, None)

    origin.raw("/twice", twice, keep_alive=True)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/twice")) == CAT
        await late
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert await fetcher.fetch(origin.url("/dog.png")) == DOG


@pytest.mark.parametrize("every_s", [0.0, 0.05], ids=["at once", "later"])
@pytest.mark.parametrize("status", ["000", "099", "101", "204", "404"])
async def test_an_answer_behind_one_without_a_body_answers_nobody(
    origin: Origin, status: str, every_s: float
) -> None:
    over = asyncio.get_running_loop().create_future()
    first = f"HTTP/1.1 {status} Status\r\nContent-Length: 0\r\n\r\n".encode()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if every_s:
            await says(first, with_length(DOG), every_s=every_s)(reader, writer)
        else:
            await says(first + with_length(DOG))(reader, writer)
        over.get_loop().call_soon_threadsafe(over.set_result, None)

    origin.raw("/twice", twice, keep_alive=True)
    async with fetching(origin) as fetcher:
        kind, code, _ = await outcome(fetcher.fetch(origin.url("/twice")))
        assert (kind, code) == (FetchFailed, "fetch_failed")
        await over
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
