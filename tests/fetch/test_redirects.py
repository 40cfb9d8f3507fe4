"""Redirects: where they lead, how many, and what they may not lead to."""

from __future__ import annotations

import pytest

from embedder.errors import FetchFailed, FetchTimeout
from tests.answers import CAT, Flood, says, with_length
from tests.fetch.fetching import (
    BUFFERED_BYTES,
    FORBIDDEN,
    PUBLIC,
    SHORT_S,
    UNREACHABLE,
    Dialler,
    fetching,
    outcome,
    until,
)
from tests.origin import Origin

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(origin: Origin, status: int) -> None:
    origin.redirect("/old", "/cat.jpg", status=status)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/old")) == CAT
    assert [request.method for request in origin.requests] == ["GET", "GET"]


@pytest.mark.parametrize("status", [300, 304, 305, 306])
async def test_other_3xx_are_failures(origin: Origin, status: int) -> None:
    origin.redirect("/old", "/cat.jpg", status=status)
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/old")))
    assert got == (FetchFailed, "fetch_failed", f"the image's server answered {status}")
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/cat.jpg", "/cat.jpg"), ("cat.jpg", "/a/cat.jpg"), ("../cat.jpg", "/cat.jpg"),
        ("../../../cat.jpg", "/cat.jpg"), ("?size=1", "/a/old?size=1"),
        ("//127.0.0.1:{port}/cat.jpg", "/cat.jpg"), ("http://127.0.0.1:{port}/cat.jpg", "/cat.jpg"),
        ("HTTP://127.0.0.1:{port}/cat.jpg#fragment", "/cat.jpg"),
        ("/cat%2F.jpg?a=%20&b=+", "/cat%2F.jpg?a=%20&b=+"), ("/ö.jpg", "/%C3%B6.jpg"),
        ("/cat.jpg%0d%0aX-Injected:%201", "/cat.jpg%0d%0aX-Injected:%201"),
    ],
)  # fmt: skip
async def test_locations_lead_where_they_say(origin: Origin, location: str, path: str) -> None:
    origin.redirect("/a/old", location.format(port=origin.port))
    for known in ("/a/cat.jpg", "/cat%2F.jpg", "/%C3%B6.jpg", "/cat.jpg%0d%0aX-Injected:%201"):
        origin.serve(known, CAT)
    async with fetching(origin) as fetcher:
        if path == "/a/old?size=1":
            assert (await outcome(fetcher.fetch(origin.url("/a/old"))))[0] is FetchFailed
        else:
            assert await fetcher.fetch(origin.url("/a/old")) == CAT
    assert origin.requests[1].path == path
    assert "x-injected" not in origin.requests[1].headers


@pytest.mark.parametrize(
    "location",
    [
        # `test_urls.py` has all kinds of what may not be fetched.
        "file:///etc/passwd", "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
        *(f"http://[{host}]:{{port}}/" if ":" in host else f"//{host}:{{port}}/" for host in FORBIDDEN[1:]),
        "http://127.1:{port}/cat.jpg", "http://127.0.0.1:22/cat.jpg",
        "http://user:secret@127.0.0.1:{port}/cat.jpg", "http://127.0.0.1:{port}\\@10.0.0.7/cat.jpg",
        "http:///cat.jpg", "///cat.jpg",
        "/cat.jpg\t", "/cat\u0085.jpg", "//exam ple.org/cat.jpg", "/" + "a" * 8192,
    ],
    ids=lambda location: ascii(location)[1:40],
)  # fmt: skip
async def test_a_redirect_to_what_may_not_be_fetched_is_refused(origin: Origin, location: str) -> None:
    # OWS around a header's value is not part of it: the tab must stand inside.
    origin.redirect("/old", location.replace("{port}", str(origin.port)).replace("\t", "\tx"))
    dialler = Dialler(origin)
    async with fetching(origin, dialler=dialler) as fetcher:
        kind, code, text = await outcome(fetcher.fetch(origin.url("/old")))
        assert (kind, code) == (FetchFailed, "fetch_failed")
        assert text.startswith("the image's server redirects to a URL that is not allowed: ")
        assert len(text) < 300
        assert text.isprintable()
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
    assert [request.path for request in origin.requests] == ["/old", "/cat.jpg"]
    assert dialler.elsewhere == []


@pytest.mark.parametrize("answer", [FORBIDDEN, [PUBLIC, "10.0.0.7"], []], ids=",".join)
async def test_a_redirect_to_a_forbidden_name_looks_unreachable(origin: Origin, answer: list[str]) -> None:
    origin.redirect("/old", origin.url("/cat.jpg", host="inside.test"))
    names = {"outside.test": [PUBLIC], "inside.test": answer}
    dialler = Dialler(origin, stands_for=PUBLIC)
    async with fetching(origin, networks=(), names=names, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/old", host="outside.test"))) == UNREACHABLE
    assert dialler.dialled == [(PUBLIC, origin.port)]


async def test_a_redirect_without_a_location_is_a_failure(origin: Origin) -> None:
    origin.serve("/old", status=302)
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/old")))
    assert got == (FetchFailed, "fetch_failed", "the image's server answered 302 without a Location")


@pytest.mark.parametrize("second", ["/dog.png", "/cat.jpg#", ""])
async def test_a_redirect_with_two_different_locations_is_a_failure(origin: Origin, second: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\nLocation: {second}\r\nContent-Length: 0\r\n\r\n"
    origin.raw("/old", says(head.encode()))
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/old")))
    assert got == (FetchFailed, "fetch_failed", "the image's server answered 302 with different Locations")
    assert len(origin.requests) == 1


async def test_a_location_that_is_sent_twice_is_one(origin: Origin) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\nlocation:  /cat.jpg\r\nContent-Length: 0\r\n\r\n"
    origin.raw("/old", says(head))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/old")) == CAT


@pytest.mark.parametrize("location", ["", "/old", "#", "?"])
async def test_a_redirect_to_itself_ends(origin: Origin, location: str) -> None:
    origin.redirect("/old", location)
    async with fetching(origin) as fetcher:
        kind, code, _ = await outcome(fetcher.fetch(origin.url("/old")))
    assert (kind, code) == (FetchFailed, "fetch_failed")
    assert len(origin.requests) <= 4


@pytest.mark.parametrize("max_redirects", [0, 1, 3])
async def test_as_many_redirects_as_allowed_pass_and_one_more_fails(
    origin: Origin, max_redirects: int
) -> None:
    origin.serve("/0", CAT)
    for hop in range(1, 6):
        origin.redirect(f"/{hop}", f"/{hop - 1}")
    async with fetching(origin, max_redirects=max_redirects) as fetcher:
        assert await fetcher.fetch(origin.url(f"/{max_redirects}")) == CAT
        got = await outcome(fetcher.fetch(origin.url(f"/{max_redirects + 1}")))
    text = f"the image's server redirects more than {max_redirects} times"
    assert got == (FetchFailed, "fetch_failed", text)


async def test_a_redirect_and_its_target_share_one_deadline(origin: Origin) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /new\r\nContent-Length: 0\r\n\r\n"
    for path, answer in (("/old", head), ("/new", with_length(CAT))):  # each takes less than the deadline
        origin.raw(path, says(b"", every_s=SHORT_S * 0.75, then=says(answer)), keep_alive=True)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/old")))
    assert got == (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")


async def test_the_body_of_a_redirect_is_not_read(origin: Origin) -> None:
    flood = Flood(b"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\n\r\n", bytes(65536))
    origin.raw("/old", flood)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/old")) == CAT
        await until(lambda: flood.over)
    assert flood.sent_bytes < BUFFERED_BYTES


async def test_text_behind_a_redirect_without_a_length_does_not_spoil_it(origin: Origin) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\nContent-Length: 0\r\n\r\n"
    origin.raw("/moved", says(head + b"<html>Found.</html>"))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/moved")) == CAT
