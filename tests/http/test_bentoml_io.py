"""What a request holds while its images are in work."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from ipaddress import ip_network

import pytest
from starlette.requests import Request
from starlette.types import Message

from embedder.cache import EmbeddingCache
from embedder.errors import EmbedderError, Overloaded, UnsupportedFormat
from embedder.fetch.addresses import AddressPolicy
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.urls import URLPolicy
from embedder.http.bentoml_io import Wiring, wired
from embedder.http.dialects.embed import EmbedRequest
from embedder.http.dialects.embed_batch import EmbedBatchRequest
from embedder.pipeline import Intake
from embedder.runtime.memory import DecodingMemory, HeldBytes
from tests.answers import Held, with_length
from tests.origin import Origin

pytestmark = pytest.mark.anyio


def wiring(origin: Origin, held_bytes: HeldBytes) -> Wiring:
    urls = URLPolicy(
        allowed_ports=frozenset({origin.port}), addresses=AddressPolicy((ip_network("127.0.0.0/8"),))
    )
    intake = Intake(
        Fetcher(urls, max_bytes=1_000_000, timeout_s=30, max_redirects=3),
        cache=EmbeddingCache(0),
        held_bytes=held_bytes,
        decoding_memory=DecodingMemory(100_000_000),
        max_in_flight_images=8,
        max_image_bytes=1_000_000,
        max_image_pixels=1_000_000,
        decode_threads=1,
    )
    return Wiring(
        intake=intake,
        held_bytes=held_bytes,
        max_body_bytes=32_000_000,
        max_urls=64,
        model_tag=lambda: "model:1",
    )


def request(body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "path": "/embed", "headers": []}, receive)


async def test_what_is_in_a_body_beside_its_urls_is_not_kept(origin: Origin) -> None:
    held = Held(with_length(b"no image"))
    origin.raw("/beside.jpg", held)
    value: object = 0
    for _ in range(500):
        value = {"a": value}
    # Of each of them Python makes 40 times its text.
    text = json.dumps({"url": origin.url("/beside.jpg"), "beside": [value] * 250}).encode()
    parts = wiring(origin, HeldBytes(100_000_000))
    await parts.intake.start()
    try:
        tracemalloc.start()
        task = asyncio.ensure_future(wired(EmbedRequest, parts).from_http_request(request(text), object()))
        assert await asyncio.to_thread(held.arrived.acquire, timeout=10)
        gc.collect()
        assert parts.held_bytes.total_bytes == len(text)
        assert tracemalloc.get_traced_memory()[0] < 2 * len(text)
        held.release()
        admission = await task
        assert not isinstance(admission.outcomes, EmbedderError)
        assert isinstance(admission.outcomes[0], UnsupportedFormat)
    finally:
        tracemalloc.stop()
        await parts.intake.close()


async def test_a_client_that_leaves_as_its_body_ends_is_not_served(origin: Origin) -> None:
    async def receive() -> Message:
        task.cancel()  # as the door does then
        return {"type": "http.request", "body": b'{"url": "data:,x"}', "more_body": False}

    left = Request({"type": "http", "method": "POST", "path": "/embed", "headers": []}, receive)
    parts = wiring(origin, HeldBytes(1000))
    await parts.intake.start()
    task = asyncio.ensure_future(wired(EmbedRequest, parts).from_http_request(left, object()))
    with pytest.raises(asyncio.CancelledError):
        await task
    await parts.intake.close()


@pytest.mark.parametrize(("spare", "refused"), [(0, False), (-1, True)])
async def test_texts_that_are_not_ascii_count_with_the_memory_that_they_take(
    origin: Origin, spare: int, refused: bool
) -> None:
    wide = "x" * 100_000 + "\N{GRINNING FACE}"  # each character takes four bytes
    text = json.dumps({"urls": ["data:,x", wide]}, ensure_ascii=False).encode()
    parts = wiring(origin, HeldBytes(len(text) + 3 * len(wide) + len("data:,x") + spare))
    await parts.intake.start()
    try:
        admission = await wired(EmbedBatchRequest, parts).from_http_request(request(text), object())
        assert not isinstance(admission.outcomes, EmbedderError)
        assert isinstance(admission.outcomes[0], Overloaded) is refused
    finally:
        await parts.intake.close()
