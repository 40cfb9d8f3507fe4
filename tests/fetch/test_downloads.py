"""What a well-behaved origin gives, and what it is asked."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from tests.answers import CAT, DOG, OK, chunked, says, with_length
from tests.fetch.fetching import fetching
from tests.origin import Origin

pytestmark = pytest.mark.anyio


def packed(data: bytes, window_bits: int) -> bytes:
    """gzip (31), zlib (15)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    return packer.compress(data) + packer.flush()


async def test_an_image_comes_back_byte_for_byte(origin: Origin) -> None:
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert await fetcher.fetch(origin.url("/dog.png")) == DOG


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(with_length(CAT), id="content-length"),
        pytest.param(chunked(CAT[:10], CAT[10:5000], CAT[5000:], b""), id="chunked"),
        pytest.param(chunked(*(CAT[i : i + 1] for i in range(200)), CAT[200:], b""), id="one-byte-chunks"),
        pytest.param(OK + b"\r\n" + CAT, id="close-delimited"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + CAT, id="http-1.0"),
        pytest.param(OK + b"Transfer-Encoding: Chunked\r\n\r\n1;a=b\r\n\xff\r\n%x\r\n%b\r\n0\r\nA: b\r\n\r\n"
                     % (len(CAT) - 1, CAT[1:]), id="chunk-extension-and-trailer"),
        pytest.param(OK + b"Transfer-Encoding: chunked\n\n%x\r\n%b\n0\r\nA: \x01\n\n" % (len(CAT), CAT),
                     id="bare-line-feeds"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n%x  \r\n%b\r\n0\r\n\r\n" % (len(CAT), CAT),
                     id="blanks-behind-a-chunk's-size"),
        pytest.param(b"\r\n\n" + with_length(CAT, b"nonsense\r\n"), id="blank-lines-before-the-head"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + with_length(CAT), id="after-103"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + with_length(CAT), id="after-100"),
        pytest.param(with_length(CAT, b"Content-Encoding: identity\r\n"), id="content-encoding-identity"),
        *(
            pytest.param(with_length(CAT, b"Content-Encoding: %b\r\n" % coding), id=f"stored-as-{coding!r}")
            for coding in (b"", b"aws-chunked", b"utf-8", b"UTF-8", b"binary", b"none", b"identity, aws-chunked")
        ),
        *(
            pytest.param(with_length(packed(CAT, bits), b"Content-Encoding: %b\r\n" % coding), id=f"{coding!r}")
            for coding, bits in ((b"gzip", 31), (b"X-GZip", 31), (b"deflate", 15), (b"identity, gzip", 31))
        ),
        pytest.param(with_length(packed(CAT, 31) + b"behind", b"Content-Encoding: gzip\r\n"), id="behind-gzip"),
        pytest.param(with_length(CAT, b"Content-Length: %d\r\n" % len(CAT)), id="the-same-length-twice"),
        pytest.param(with_length(CAT, b"content-length:%d \r\n" % len(CAT) * 3), id="the-same-length-four-times"),
        pytest.param(with_length(CAT, b"X-Cache : HIT\r\nServer\t : a\r\n"), id="blanks-before-colons"),
        pytest.param(with_length(CAT, b"X-Long: " + b"img-src https://a.example; " * 340 + b"\r\n"), id="9-kB"),
        pytest.param(with_length(CAT, b"Link: " + b"<https://a.example/b.css>; " * 2200 + b"\r\n"), id="59-kB"),
        pytest.param(with_length(CAT, b"".join(b"X-%d: a\r\n" % n for n in range(990))), id="990-fields"),
        pytest.param(with_length(CAT).replace(b"200 OK", b"203 Non-Authoritative Information"), id="203"),
        pytest.param(with_length(CAT, b"Content-Range: bytes 0-%d/%d\r\n" % (len(CAT) - 1, len(CAT)))
                     .replace(b"200 OK", b"206 Partial Content"), id="206-of-all"),
        pytest.param(OK + b"Transfer-Encoding: identity\r\n\r\n" + CAT, id="transfer-encoding-identity"),
        *(
            pytest.param(OK + framing + b"\r\n" + chunked(CAT, b"").partition(b"\r\n\r\n")[2], id=f"{framing!r}")
            for framing in (
                b"Transfer-Encoding: chunked\r\n" * 2,
                b"Transfer-Encoding: chunked, Chunked\r\n",
                b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                b"Transfer-Encoding: identity, chunked\r\n",
            )
        ),
        *(
            pytest.param(OK + b"Content-Length: %b\r\n\r\n" % length + CAT, id=f"length-{length!r}")
            for length in (b"", b"undefined", b"-1", b"+20", b"20.0", b'"20"', b"0x20", b"20 bytes",
                           b"%d, %d" % (len(CAT), len(CAT)))
        ),
        *(
            pytest.param(with_length(CAT, b"Transfer-Encoding: %b\r\n" % coding), id=f"coding-{coding!r}")
            for coding in (b"", b"identity", b"none", b"binary")
        ),
        *(
            pytest.param(with_length(CAT, line + b"\r\n"), id=f"{line!r}")
            for line in (b"nonsense", b": empty", b"X Blank: a", b"X@A: b", b"X(A): b",
                         "X-\u00e9: a".encode(), b"A: b\rc",
                         b"A: b\r\n folded", b"A: b\r\n\tfolded\r\n  twice")
        ),
        *(
            pytest.param(with_length(CAT).replace(b"HTTP/1.1 200 OK", line), id=f"{line!r}")
            for line in (b"HTTP/1.2 200 OK", b"HTTP/1.1  200 OK", b"HTTP/2 200", b"http/1.1 200 ok", b"HTTP/1.1 200",
                         b"HTTP/1.1 201 Created", b"HTTP/1.1 202 Accepted", b"HTTP/1.1 226 IM Used", b"HTTP/1.1 299 x",
                         b"HTTP/1.1 206 Partial Content")
        ),
        *(
            pytest.param(with_length(CAT, b"Content-Range: %b\r\n" % part).replace(b"200 OK", b"206 Partial Content"),
                         id=f"{part!r}")
            for part in (b"bytes 0-%d/*" % (len(CAT) - 1), b"bytes=0-%d/%d" % (len(CAT) - 1, len(CAT)),
                         b"0-%d/%d" % (len(CAT) - 1, len(CAT)), b"bytes 0-%d/%d" % (len(CAT), len(CAT)), b"nonsense")
        ),
        *(
            pytest.param(with_length(CAT, b"Content-Encoding: %b\r\n" % coding), id=f"not-{coding!r}")
            for coding in (b"BR", b"zstd", b"compress", b"gzip, gzip")
        ),
        *(
            pytest.param(with_length(body, b"Content-Encoding: %b\r\n" % coding), id=name)
            for name, coding, body in (
                ("deflate-without-its-head", b"deflate", packed(CAT, -15)),
                ("gzip-of-two-members", b"gzip", packed(CAT[:5000], 31) + packed(CAT[5000:], 31)),
                ("gzip-without-its-end", b"gzip", packed(CAT, 31)[:-8]),
                ("gzip-without-half-its-end", b"gzip", packed(CAT, 31)[:-4]),
                ("zlib-without-its-end", b"deflate", packed(CAT, 15)[:-4]),
            )
        ),
    ],
)  # fmt: skip
async def test_every_framing_gives_the_same_bytes(origin: Origin, answer: bytes) -> None:
    origin.raw("/framed", says(answer))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/framed")) == CAT


@pytest.mark.parametrize("at", range(1, 120, 7))
async def test_a_head_may_come_in_pieces(origin: Origin, at: int) -> None:
    head = with_length(CAT, b"Content-Length: %d\r\nX-Cache : HIT\r\nnonsense\r\n" % len(CAT))
    origin.raw("/pieces", says(head[:at], head[at:], every_s=0.02))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/pieces")) == CAT
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


async def test_the_request_carries_exactly_the_fixed_headers(origin: Origin) -> None:
    async with fetching(origin) as fetcher:
        await fetcher.fetch(origin.url("/cat.jpg?a=%2F&b=c"))
    (request,) = origin.requests
    assert (request.method, request.path, request.version) == ("GET", "/cat.jpg?a=%2F&b=c", "HTTP/1.1")
    assert sorted(request.header_lines) == [
        # Not AVIF: a CDN that negotiates would take it, and it costs most.
        ("Accept", "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff,image/x-icon,*/*;q=0.1"),
        ("Accept-Encoding", "identity"),
        ("Host", f"127.0.0.1:{origin.port}"),
        ("User-Agent", "image-embedder/1.2.3"),
    ]


async def test_the_user_agent_carries_the_operators_contact(origin: Origin) -> None:
    async with fetching(origin, contact="https://example.org/bot") as fetcher:
        await fetcher.fetch(origin.url("/cat.jpg"))
    assert origin.requests[0].headers["user-agent"] == "image-embedder/1.2.3 (+https://example.org/bot)"


async def test_nothing_is_carried_from_one_request_to_the_next(origin: Origin) -> None:
    cookie = {"Set-Cookie": "session=1; Path=/", "Location": "/cat.jpg?secret"}
    origin.serve("/set", CAT, headers=cookie)
    origin.serve("/set-and-go", status=302, headers=cookie)
    # By name: a cookie jar keeps none of an address's.
    async with fetching(origin, names={"shop.test": [origin.host]}) as fetcher:
        for path in ("/set", "/set-and-go", "/cat.jpg"):
            await fetcher.fetch(origin.url(path, host="shop.test"))
    assert len(origin.requests) == 4
    assert {frozenset(request.headers) for request in origin.requests} == {
        frozenset({"accept", "accept-encoding", "host", "user-agent"})
    }


async def test_proxies_and_netrc_of_the_environment_change_nothing(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Origin() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with fetching(origin) as fetcher:
            assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert proxy.connections.accepted == 0
    assert "authorization" not in origin.requests[0].headers


async def test_the_content_type_does_not_matter(origin: Origin) -> None:
    origin.serve("/cat", CAT, headers={"Content-Type": "text/html; charset=utf-7"})
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/cat")) == CAT


async def test_an_image_that_arrives_byte_by_byte_is_recognised(origin: Origin) -> None:
    parts = [CAT[i : i + 1] for i in range(40)]
    origin.raw("/slow", says(with_length(b"", length=40), *parts, every_s=0.002))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/slow")) == CAT[:40]
