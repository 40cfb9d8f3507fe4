"""What a request holds while its images are in work."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive

from embedder.engine import Engine, Result
from embedder.errors import Overloaded, UnsupportedFormat
from embedder.http.bentoml_io import Received, receive
from embedder.http.dialects import Dialect
from embedder.http.dialects.embed import Embed
from embedder.http.dialects.embed_batch import EmbedBatch
from embedder.http.exchange import Exchange
from embedder.metrics.measures import Metrics
from embedder.model.spec import ModelSpec, Preprocessing
from embedder.settings import Settings
from tests.answers import Held, with_length
from tests.origin import Origin

pytestmark = pytest.mark.anyio
SPEC = ModelSpec("model:1", "resnet18", 512, Preprocessing(256, 224), "fp32", True, "", "model.onnx", None)


@asynccontextmanager
async def engine(origin: Origin, **settings: int) -> AsyncIterator[Engine]:
    """Without a network: no image gets that far here."""
    made = Engine(
        Settings(
            allowed_ports=frozenset({origin.port}),
            allowed_networks=(ip_network("127.0.0.0/8"),),
            fetch_timeout_s=40,
            cache_entries=0,
            **settings,  # type: ignore[arg-type]  # whole numbers
        )
    )
    made.spec = SPEC
    await made.pipeline.start()
    try:
        yield made
    finally:
        await made.pipeline.close()


async def received(
    dialect: Dialect, engine: Engine, body: bytes, receiving: Receive | None = None
) -> Received:
    """A request with `body`, when its images would go to the batcher."""
    exchange = Exchange([dialect], Metrics())

    async def whole_body() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = exchange.enter({"type": "http", "method": "POST", "path": dialect.paths[0], "headers": []})
    return await receive(Request(scope, receiving or whole_body), exchange, engine)


def error(received: Received) -> object:
    outcome = received.outcomes[0]
    assert isinstance(outcome, Result)
    return outcome.error


async def test_what_is_in_a_body_beside_its_urls_is_not_kept(origin: Origin) -> None:
    held = Held(with_length(b"no image"))
    origin.raw("/beside.jpg", held)
    value: object = 0
    for _ in range(500):
        value = {"a": value}
    # Parsed, it takes 40 times the memory of its text.
    text = json.dumps({"url": origin.url("/beside.jpg"), "beside": [value] * 250}).encode()
    async with engine(origin) as made:
        tracemalloc.start()
        try:
            task = asyncio.create_task(received(Embed(), made, text))
            assert await asyncio.to_thread(held.arrived.acquire, timeout=60)
            gc.collect()
            assert made.byte_budget.total_bytes == len(text)
            assert tracemalloc.get_traced_memory()[0] < 2 * len(text)
        finally:
            tracemalloc.stop()
            held.release()
        assert isinstance(error(await task), UnsupportedFormat)


async def test_an_image_in_a_body_is_not_kept_once_it_is_decoded(origin: Origin) -> None:
    text = json.dumps({"url": "data:;base64," + "A" * 10_000_000}).encode()
    async with engine(origin) as made:
        tracemalloc.start()
        try:
            found = await received(Embed(), made, text)
            gc.collect()
            async with asyncio.timeout(20):  # the thread that read it has it for a moment longer
                while tracemalloc.get_traced_memory()[0] > len(text) / 10:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
        finally:
            tracemalloc.stop()
        assert isinstance(error(found), UnsupportedFormat)
        assert made.byte_budget.total_bytes == 0


async def test_a_client_that_leaves_as_its_body_ends_is_not_served(origin: Origin) -> None:
    async def leaving() -> Message:
        task.cancel()  # as the gate does then
        return {"type": "http.request", "body": b'{"url": "data:,x"}', "more_body": False}

    async with engine(origin) as made:
        task = asyncio.create_task(received(Embed(), made, b"", leaving))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.byte_budget.total_bytes == 0


@pytest.mark.parametrize(("spare", "refused"), [(0, False), (-1, True)])
async def test_texts_that_are_not_ascii_count_with_the_memory_that_they_take(
    origin: Origin, spare: int, refused: bool
) -> None:
    wide = "x" * 1_000_000 + "\N{GRINNING FACE}"  # each character takes four bytes
    text = json.dumps({"urls": ["data:,x", wide]}, ensure_ascii=False).encode()
    taken = len(text) + 3 * len(wide) + len("data:,x")
    limits = {"max_body_bytes": 1_100_000, "max_image_bytes": 1_000_000}
    async with engine(origin, max_in_flight_bytes=taken + spare, **limits) as made:
        found = await received(EmbedBatch(2), made, text)
    assert isinstance(error(found), Overloaded) is refused
