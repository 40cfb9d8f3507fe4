"""What `make fuzz` feeds: each target takes any bytes, and raises when what happens is not documented."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes

from starlette.requests import Request
from yarl import URL

from embedder.engine import Engine
from embedder.errors import (
    BodyTooLarge,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    URLNotAllowed,
)
from embedder.fetch.data_url import read_data_url
from embedder.fetch.urls import URLPolicy
from embedder.http.bentoml_io import receive
from embedder.http.dialects import Dialect
from embedder.http.dialects.embed import Embed
from embedder.http.dialects.embed_batch import EmbedBatch
from embedder.http.exchange import Exchange
from embedder.pipeline import DecodedImage
from embedder.settings import Settings
from tests import networks, pictures
from tests.fetch.test_data_url import forgiving_base64
from tests.fetch.test_urls import CLOUDINARY, assert_everybody_reads
from tests.images import mutations

# Less than the service's, so that time goes into many files and not into large ones.
MAX_PIXELS = 2_000_000
MAX_DATA_BYTES = 200
MAX_BODY_BYTES = 20_000
MAX_URLS = 8


@dataclass(frozen=True)
class Target:
    run: Callable[[bytes], None]
    seeds: Mapping[str, bytes]
    """What to begin with, by name."""
    max_bytes: int
    share: float
    """Of the time."""
    images: bool = False
    """Whether its inputs are image files, which are then also damaged as such."""


def decode(data: bytes) -> None:
    mutations.outcome(data)


POLICY = URLPolicy()
BASES = (
    URL("https://example.org/a/b/c?d", encoded=True),
    URL("http://[2606:4700::1]:443/", encoded=True),
)


def urls(data: bytes) -> None:
    """The first line as a URL and as a redirect's Location; the second as one that follows the first."""
    text, _, location = data.decode("utf-8", "surrogateescape").partition("\n")
    bases = [*BASES]
    with suppress(URLNotAllowed):
        bases.append(POLICY.admit(text))
        assert_everybody_reads(bases[-1])
    for base, leads in ((BASES[0], text), *((base, location) for base in bases)):
        with suppress(URLNotAllowed):
            assert_everybody_reads(POLICY.follow(base, leads))


def data_url(data: bytes) -> None:
    """As a URL, and as what one carries."""
    text = data.decode("utf-8", "surrogateescape")
    _read(text)
    _read("data:;base64," + text)


def _read(text: str) -> None:
    try:
        carried = read_data_url(text, max_bytes=MAX_DATA_BYTES)
    except (URLNotAllowed, ImageTooLarge):
        return
    assert len(carried) <= MAX_DATA_BYTES
    head, _, body = re.sub("[\t\n\r]", "", text).partition("#")[0].partition(",")
    if re.search("; *base64 *$", head, re.IGNORECASE):
        assert carried == forgiving_base64(unquote(body))
    else:
        assert carried == unquote_to_bytes(body)


def body(data: bytes) -> None:
    """As the body of both routes, up to decoded images: each source an image or a documented error."""
    loop, engine = _started()
    for dialect in (Embed(), EmbedBatch(MAX_URLS)):
        loop.run_until_complete(_received(dialect, engine, data))
        loop.run_until_complete(asyncio.sleep(0))  # where what the request held is given back
        assert engine.pipeline.in_flight_images == 0
        assert engine.byte_budget.total_bytes == 0


@functools.cache
def _started() -> tuple[asyncio.AbstractEventLoop, Engine]:
    """All that a body meets before it is encoded."""
    settings = Settings(
        allowed_ports=frozenset(),  # so no URL is allowed: nothing here looks up a name or dials an address
        max_urls=MAX_URLS,
        max_body_bytes=MAX_BODY_BYTES,
        max_image_bytes=MAX_BODY_BYTES // 2,
        max_image_pixels=MAX_PIXELS,
        max_in_flight_images=2 * MAX_URLS,
        max_in_flight_bytes=10 * MAX_BODY_BYTES,
        max_decoding_bytes=100_000_000,
        cache_entries=0,
    )
    engine = Engine(settings)
    engine.spec = networks.spec()  # of no stored model: nothing is encoded
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.pipeline.start())
    return loop, engine


async def _received(dialect: Dialect, engine: Engine, data: bytes) -> None:
    chunks = [
        {"type": "http.request", "body": data[: len(data) // 2], "more_body": True},
        {"type": "http.request", "body": data[len(data) // 2 :], "more_body": False},
    ]

    async def pieces() -> dict[str, object]:
        return chunks.pop(0)

    exchange = Exchange([dialect], engine.metrics)
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    with exchange.resources:
        try:
            received = await receive(Request(exchange.enter(scope), pieces), exchange, engine)
        except (InvalidRequest, BodyTooLarge):
            return
        outcomes = received.outcomes
        assert len(outcomes) <= MAX_URLS
        for outcome in outcomes:
            assert isinstance(outcome, DecodedImage) or outcome.error is not None, repr(outcome)
            assert isinstance(outcome, DecodedImage) or not isinstance(outcome.error, InternalError), "a bug"


_DATA_URL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_URLS = [
    *CLOUDINARY,
    "http://example.org",
    "HTTPS://EXAMPLE.org.:443/a%20b?c=d&e#f",
    "http://bücher.example/é?ü=1#x",
    "http://xn--bcher-kva.example:80//a/../b",
    "http://93.184.216.34/x",
    "https://[2606:4700:4700::1111]:443/",
    "http://[::ffff:127.0.0.1]/",
    "http://[fe80::1%25eth0]/",
    "http://0x7f.1/",
    "http://2130706433/",
    "http://017700000001/",
    "http://user:pass@example.org/",
    "http://example.org\\@10.0.0.1/",
    "ftp://example.org/",
    "//example.org/a\n//10.0.0.1/",
    "http://example.org/a/b?c\n../d;e=f?g#h",
    "http://example.org/\n?x=1",
]
_DATA_URLS = [
    _DATA_URL,
    _DATA_URL.replace("image/gif", "").upper(),
    _DATA_URL.replace("+", "%2B").replace("/", "%2f").replace("=", "%3d") + "==",
    "data:text/plain;charset=utf-8;base64,QQ%3D%3D",
    "data:;base64, Q Q\t=\n=%0a%20",
    "data:,plain",
]
_BODIES = [
    {"url": _DATA_URL},
    {
        "url": "https://res.cloudinary.com/demo/image/upload/sample.jpg",
        "more": [1, -2.5e300, True, None, "\0"],
    },
    {"urls": [_DATA_URL, "http://10.0.0.1/", _DATA_URL, ""]},
    {"urls": [], "url": None},
    {"urls": [["x"], {}], "url": {"url": "é\U0001f600"}},
    {"urls": ["x"] * (MAX_URLS + 1)},
    [],
    "x",
]


def _numbered(texts: list[str]) -> dict[str, bytes]:
    return {f"{number:02d}": text.encode() for number, text in enumerate(texts)}


TARGETS: dict[str, Target] = {
    "decode": Target(decode, pictures.samples(), max_bytes=65_536, share=0.5, images=True),
    "urls": Target(urls, _numbered(_URLS), max_bytes=2_200, share=0.2),
    "data_url": Target(data_url, _numbered(_DATA_URLS), max_bytes=600, share=0.1),
    "body": Target(
        body,
        _numbered([json.dumps(content) for content in _BODIES]),
        max_bytes=MAX_BODY_BYTES + 2,
        share=0.2,
    ),
}
