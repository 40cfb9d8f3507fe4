"""What `make fuzz` feeds: each target takes any bytes, and raises when what happens is not documented."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.requests import Request
from yarl import URL

from embedder.cache import EmbeddingCache
from embedder.errors import (
    BodyTooLarge,
    EmbedderError,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    URLNotAllowed,
)
from embedder.fetch.data_url import read_data_url
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.urls import URLPolicy
from embedder.http.bentoml_io import RouteRequest, Wiring, wired
from embedder.http.dialects.embed import EmbedRequest
from embedder.http.dialects.embed_batch import EmbedBatchRequest
from embedder.pipeline import Image, Intake
from embedder.runtime.memory import DecodingMemory, HeldBytes
from tests import pictures
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
    mutations.outcome(data, max_pixels=MAX_PIXELS)


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
    assert carried == forgiving_base64(unquote(text.partition(",")[2]))


def body(data: bytes) -> None:
    """As the body of both routes, up to decoded images: each source an image or a documented error."""
    service = _service()
    for route in service.routes:
        service.loop.run_until_complete(_admitted(service, route, data))
        service.loop.run_until_complete(asyncio.sleep(0))  # where what the request held is given back
        assert service.intake.in_flight_images == 0
        assert service.held_bytes.total_bytes == 0


@dataclass(frozen=True)
class _Service:
    """The parts of the service that a body meets before BentoML's batcher."""

    loop: asyncio.AbstractEventLoop
    intake: Intake
    held_bytes: HeldBytes
    routes: tuple[type[RouteRequest], ...]


@functools.cache
def _service() -> _Service:
    held_bytes = HeldBytes(10 * MAX_BODY_BYTES)
    intake = Intake(
        # No port, so no URL is allowed: nothing here looks up a name or dials an address.
        Fetcher(URLPolicy(allowed_ports=frozenset()), max_bytes=1, timeout_s=1, max_redirects=0),
        cache=EmbeddingCache(0),
        held_bytes=held_bytes,
        decoding_memory=DecodingMemory(100_000_000),
        max_in_flight_images=2 * MAX_URLS,
        max_image_bytes=MAX_BODY_BYTES // 2,
        max_image_pixels=MAX_PIXELS,
        decode_threads=1,
    )
    wiring = Wiring(
        intake=intake,
        held_bytes=held_bytes,
        max_body_bytes=MAX_BODY_BYTES,
        max_urls=MAX_URLS,
        model_tag=lambda: "fuzz:1",
    )
    routes = (wired(EmbedRequest, wiring), wired(EmbedBatchRequest, wiring))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(intake.start())
    return _Service(loop, intake, held_bytes, routes)


async def _admitted(service: _Service, route: type[RouteRequest], data: bytes) -> None:
    chunks = [
        {"type": "http.request", "body": data[: len(data) // 2], "more_body": True},
        {"type": "http.request", "body": data[len(data) // 2 :], "more_body": False},
    ]

    async def receive() -> dict[str, object]:
        return chunks.pop(0)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    admission = await route.from_http_request(Request(scope, receive), None)
    if isinstance(admission.outcomes, EmbedderError):
        assert isinstance(admission.outcomes, InvalidRequest | BodyTooLarge), repr(admission.outcomes)
        return
    assert len(admission.outcomes) <= MAX_URLS
    for outcome in admission.outcomes:
        assert isinstance(outcome, Image | EmbedderError), repr(outcome)
        assert not isinstance(outcome, InternalError), "an image failed in a way that was not foreseen"
    assert admission.pixels.shape == (len(admission.images), 224, 224, 3)


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
