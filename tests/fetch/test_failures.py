"""What operators learn of a download that failed, and clients do not: a counter, and a line of the log."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Iterator

import pytest

from embedder.errors import EmbedderError, FetchFailed
from embedder.fetch.fetcher import Fetcher
from embedder.metrics.measures import FETCH_FAILURES, Metrics
from embedder.runtime.byte_budget import ByteBudget
from tests.answers import CAT, HTML, hang, says, with_length
from tests.fetch.certificates import Certificates, tls_origin
from tests.fetch.fetching import (
    PUBLIC,
    SHORT_S,
    UNREACHABLE,
    Answers,
    Dialler,
    black_holes,
    cancelled,
    failures,
    fetching,
    outcome,
    until,
)
from tests.origin import Origin

pytestmark = pytest.mark.anyio


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the fetcher logs."""
    caplog.set_level(logging.DEBUG, logger="embedder.fetch")
    told: list[str] = []

    def tell(record: logging.LogRecord) -> bool:
        told.append(record.getMessage())
        return True

    caplog.handler.addFilter(tell)
    yield told
    caplog.handler.removeFilter(tell)


def full(family: int, kind: int, protocol: int) -> socket.socket:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_every_reason_is_counted_once(
    origin: Origin, certificates: Certificates, metrics: Metrics
) -> None:
    origin.raw("/hang", hang)
    origin.raw("/broken", says(b"x"))
    origin.raw("/html", says(with_length(HTML)))
    origin.redirect("/away", "ftp://example.org/")
    names: Answers = {"unknown.test": OSError(None, "Domain name not found"), "inside.test": ["10.0.0.7"]}
    seen: dict[str, float] = {}

    async def fails(fetcher: Fetcher, url: str, reason: str) -> None:
        with pytest.raises(EmbedderError):
            await fetcher.fetch(url)
        seen[reason] = seen.get(reason, 0) + 1
        assert failures(metrics) == seen

    with tls_origin(certificates.good) as secure, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: it refuses, and nobody else can take the port
        port = closed.getsockname()[1]
        async with fetching(origin, secure, ports=[port], names=names, metrics=metrics) as fetcher:
            await fails(fetcher, origin.url("/", host="unknown.test"), "name")
            await fails(fetcher, origin.url("/", host="inside.test"), "address")
            await fails(fetcher, f"http://127.0.0.1:{port}/", "connection")
            await fails(fetcher, secure.url("/cat.jpg"), "tls")  # of an authority that is not trusted
            await fails(fetcher, f"https://127.0.0.1:{origin.port}/", "tls")
            await fails(fetcher, origin.url("/404"), "status")
            await fails(fetcher, origin.url("/away"), "redirect")
            await fails(fetcher, origin.url("/broken"), "answer")
            await fails(fetcher, origin.url("/html"), "format")
            await fails(fetcher, "http://10.0.0.7/", "url")
            assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        with black_holes("127.0.0.1") as port:
            async with fetching(ports=[port], connect_timeout_s=SHORT_S, metrics=metrics) as fetcher:
                await fails(fetcher, f"http://127.0.0.1:{port}/", "connect_timeout")
        async with fetching(origin, max_bytes=100, timeout_s=SHORT_S, metrics=metrics) as fetcher:
            await fails(fetcher, origin.url("/cat.jpg"), "too_large")
            await fails(fetcher, origin.url("/hang"), "timeout")
        async with fetching(origin, dialler=full, metrics=metrics) as fetcher:
            await fails(fetcher, origin.url("/cat.jpg"), "busy")
    assert set(seen) == set(FETCH_FAILURES)


async def test_what_has_no_room_and_what_comes_after_close_count_as_busy(
    origin: Origin, metrics: Metrics
) -> None:
    async with fetching(origin, metrics=metrics) as fetcher:
        with ByteBudget(100).lease() as lease, pytest.raises(EmbedderError):
            await fetcher.fetch(origin.url("/cat.jpg"), lease)
        await fetcher.close()
        with pytest.raises(EmbedderError):
            await fetcher.fetch(origin.url("/cat.jpg"))
    assert failures(metrics) == {"busy": 2}


async def test_a_fetch_that_is_cancelled_is_no_failure(
    origin: Origin, metrics: Metrics, lines: list[str]
) -> None:
    origin.raw("/hang", hang)
    async with fetching(origin, metrics=metrics) as fetcher:
        fetch = asyncio.ensure_future(fetcher.fetch(origin.url("/hang")))
        await until(lambda: origin.requests)
        await cancelled([fetch])
    assert (failures(metrics), lines) == ({}, [])


async def test_operators_are_told_the_cause_that_clients_are_not(metrics: Metrics, lines: list[str]) -> None:
    names: Answers = {
        "unknown.test": OSError(None, "Domain name not found"),
        "slow.test": TimeoutError("the name server"),
        "inside.test": [PUBLIC, "10.0.0.7"],
        "closed.test": [PUBLIC],
    }
    async with fetching(networks=(), ports=[80], names=names, dialler=Dialler(), metrics=metrics) as fetcher:
        got = {name: await outcome(fetcher.fetch(f"http://{name}/a/b.jpg?token=secret")) for name in names}
    assert got == dict.fromkeys(names, UNREACHABLE)
    assert lines == [
        "download failed: name: 'http://unknown.test/a/b.jpg': 'Domain name not found'",
        "download failed: name: 'http://slow.test/a/b.jpg': "
        "\"the look-up failed: TimeoutError('the name server')\"",
        "download failed: address: 'http://inside.test/a/b.jpg': "
        '"10.0.0.7 is not public, not allowed, or this machine\'s own"',
        "download failed: connection: 'http://closed.test/a/b.jpg': 'Connection refused'",
    ]


async def test_the_line_names_the_hop_that_failed(origin: Origin, lines: list[str]) -> None:
    origin.redirect("/old?a=secret", "/new?b=secret")
    origin.redirect("/old", "/new?b=secret")
    origin.serve("/new", status=404)
    async with fetching(origin) as fetcher:
        await outcome(fetcher.fetch(origin.url("/old?a=secret#secret")))
    url = origin.url("/new")
    assert lines == [f'download failed: status: {url!r}: "the image\'s server answered 404"']


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@example.org/", "http://user:se/secret@example.org/",
        "http:\\\\user:secret@example.org/", "user:secret@example.org", "http://example.org:22/?secret",
        "http://example.org/\r\nsecret",
    ],
)  # fmt: skip
async def test_of_a_url_that_is_refused_the_line_shows_only_why(url: str, lines: list[str]) -> None:
    async with fetching() as fetcher:
        _, _, text = await outcome(fetcher.fetch(url))
    assert lines == [f"download failed: url: 'a URL that is not allowed': {text!a}"]
    assert "secret" not in lines[0]


@pytest.mark.parametrize(
    "location", ["http://a\u0085b\u2028.test/\x1b[31m", "http://" + "h" * 3000 + ".test/"]
)
async def test_what_origins_and_resolvers_write_can_neither_forge_a_line_nor_fill_the_log(
    origin: Origin, location: str, lines: list[str]
) -> None:
    origin.redirect("/" + "p" * 1000, location)
    names = {"forged.test": OSError(None, "x\n2026-01-01 CRITICAL forged\u2028" + "y" * 3000)}
    async with fetching(origin, names=names) as fetcher:
        await outcome(fetcher.fetch(origin.url("/" + "p" * 1000)))
        await outcome(fetcher.fetch(origin.url("/", host="forged.test")))
    assert len(lines) == 2
    assert all(line.isascii() and line.isprintable() and len(line) < 600 for line in lines)


async def test_a_query_that_an_origin_or_the_library_repeats_is_not_logged(
    origin: Origin, lines: list[str]
) -> None:
    origin.raw("/broken", says(b"HTTP/1.1 200 OK\r\nsecret\r\n\r\n"))
    origin.raw("/hang", hang)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        await outcome(fetcher.fetch(origin.url("/broken?secret")))
        await outcome(fetcher.fetch(origin.url("/hang?secret")))
    with black_holes("127.0.0.1") as port:
        async with fetching(ports=[port], connect_timeout_s=SHORT_S) as fetcher:
            await outcome(fetcher.fetch(f"http://127.0.0.1:{port}/?secret"))
    assert len(lines) == 3
    assert "secret" not in "".join(lines)


@pytest.mark.parametrize(
    ("headers", "come_back_s"),
    [
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:27:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 -0000"}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({}, None),
    ],
)
async def test_an_error_has_what_the_origin_answered_and_when_it_wants_to_be_asked_again(
    origin: Origin, headers: dict[str, str], come_back_s: float | None
) -> None:
    origin.serve("/busy.jpg", b"", status=429, headers=headers)
    async with fetching(origin) as fetcher:
        with pytest.raises(FetchFailed) as failed:
            await fetcher.fetch(origin.url("/busy.jpg"))
    error = failed.value
    assert (error.reason, error.host, error.http_status) == ("status", "127.0.0.1", 429)
    assert error.come_back_s == come_back_s
