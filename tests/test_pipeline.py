"""Sources in, outcomes out: places in work, one fetch for many, embeddings that are known, bytes and memory."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import signal
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network

import numpy as np
import PIL.Image
import pytest
from prometheus_client import CollectorRegistry

from embedder.cache import EmbeddingCache
from embedder.errors import (
    BadImage,
    FetchFailed,
    FetchTimeout,
    ImageTooLarge,
    InvalidRequest,
    Overloaded,
    RequestError,
    UnsupportedFormat,
)
from embedder.fetch.addresses import AddressPolicy
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.renditions import Renditions
from embedder.fetch.urls import URLPolicy
from embedder.images import decoders
from embedder.images.decoders import Decoders, Room
from embedder.images.formats import ON
from embedder.metrics.measures import Metrics
from embedder.model.spec import Preprocessing
from embedder.pipeline import DecodedImage, Outcome, Pipeline, Source
from embedder.result import Result
from embedder.runtime.byte_budget import ByteBudget
from tests import pictures
from tests.images.hostile_child import ordered
from tests.images.test_decoders import HOSTILE
from tests.origin import Origin
from tests.pictures import data_url

pytestmark = pytest.mark.anyio

GEOMETRY = Preprocessing(resize=256, crop=224)


@asynccontextmanager
async def started(
    origin: Origin,
    *,
    cache_entries: int = 0,
    max_in_flight_images: int = 8,
    timeout_s: float = 5,
    byte_budget: ByteBudget | None = None,
    room: Room = Room(2, 400_000_000, 60, 1_000_000),  # noqa: B008 - frozen
    metrics: Metrics | None = None,
    program: str = decoders.PROGRAM,
) -> AsyncIterator[Pipeline]:
    urls = URLPolicy(
        allowed_ports=frozenset({origin.port}), addresses=AddressPolicy((ip_network("127.0.0.0/8"),))
    )
    metrics = metrics or Metrics()
    pipeline = Pipeline(
        Fetcher(
            urls,
            metrics=metrics,
            version="0",
            max_bytes=1_000_000,
            timeout_s=timeout_s,
            max_redirects=3,
            formats=ON,
        ),
        Decoders(GEOMETRY, room=room, formats=ON, max_file_bytes=1_000_000, metrics=metrics, program=program),
        renditions=Renditions((), crop=224),
        cache=EmbeddingCache(cache_entries),
        byte_budget=byte_budget or ByteBudget(10_000_000),
        metrics=metrics,
        max_in_flight_images=max_in_flight_images,
        max_image_bytes=1_000_000,
    )
    await pipeline.start()
    try:
        yield pipeline
    finally:
        await pipeline.close()


class Gate:
    """An origin's handler that answers with `body` when the test opens it, and counts who asked."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._loop: asyncio.AbstractEventLoop | None = None
        self._test_loop = asyncio.get_running_loop()
        self.asked = 0
        self._departed = asyncio.Event()
        self._arrived = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        self._loop = asyncio.get_running_loop()
        self._opened = asyncio.Event()
        self._test_loop.call_soon_threadsafe(self._arrived.set)
        gone = asyncio.ensure_future(reader.read())
        opened = asyncio.ensure_future(self._opened.wait())
        await asyncio.wait({gone, opened}, return_when=asyncio.FIRST_COMPLETED)
        if opened.done():
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._body) + self._body)
            await writer.drain()
        else:
            with suppress(RuntimeError):  # the test is over, and its loop closed
                self._test_loop.call_soon_threadsafe(self._departed.set)
        for task in (gone, opened):
            task.cancel()

    async def arrival(self) -> None:
        await asyncio.wait_for(self._arrived.wait(), 10)
        self._arrived.clear()

    async def departure(self) -> None:
        await asyncio.wait_for(self._departed.wait(), 10)

    def open(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._opened.set)


async def ask(pipeline: Pipeline, *sources: Source) -> list[Outcome]:
    """What becomes of `sources`, as for one request."""
    with pipeline.places(len(sources)):
        return await pipeline.outcomes(sources)


def error(outcome: Outcome) -> BaseException | None:
    return outcome.error if isinstance(outcome, Result) else None


async def test_outcomes_stand_in_the_order_of_their_sources(origin: Origin, photo: bytes) -> None:
    origin.serve("/photo.jpg", photo)
    origin.serve("/none.jpg", b"", status=404)
    async with started(origin) as pipeline:
        urls = [origin.url("/none.jpg"), origin.url("/photo.jpg"), data_url(b"no image"), data_url(photo)]
        failed, fetched, unsupported, carried = await ask(pipeline, *urls)
    assert isinstance(error(failed), FetchFailed)
    assert isinstance(error(unsupported), UnsupportedFormat)
    assert isinstance(fetched, DecodedImage)
    assert isinstance(carried, DecodedImage)
    assert np.array_equal(fetched.pixels, carried.pixels)


async def test_all_places_may_be_taken_and_one_more_is_refused_at_once(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    async with started(origin, max_in_flight_images=3) as pipeline:
        three = asyncio.ensure_future(ask(pipeline, *[origin.url("/gate.jpg")] * 3))
        await gate.arrival()
        with pytest.raises(Overloaded, match="3 images are in work and the limit is 3"):
            await ask(pipeline, data_url(photo))
        gate.open()
        assert len(await three) == 3
        assert isinstance((await ask(pipeline, *[data_url(photo)] * 3))[0], DecodedImage)


async def test_an_image_that_waits_for_a_slow_origin_is_in_work_but_not_busy(
    origin: Origin, photo: bytes
) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    async with started(origin) as pipeline:
        # However many wait for it, in one request or in several.
        slow = [asyncio.ensure_future(ask(pipeline, *[origin.url("/gate.jpg")] * count)) for count in (1, 2)]
        await gate.arrival()
        while pipeline.busy_images():  # noqa: ASYNC110 - no event tells when a fetch counts as slow
            await asyncio.sleep(0.01)
        assert pipeline.in_flight_images == 3
        gate.open()
        assert [type((await images)[0]) for images in slow] == [DecodedImage, DecodedImage]
        assert (pipeline.busy_images(), pipeline.in_flight_images) == (0, 0)


async def test_places_come_back_when_a_request_is_cancelled(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    async with started(origin, max_in_flight_images=1) as pipeline:
        gone = asyncio.create_task(ask(pipeline, origin.url("/gate.jpg")))
        await gate.arrival()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert isinstance((await ask(pipeline, data_url(photo)))[0], DecodedImage)


async def test_the_same_url_is_fetched_once_for_all_who_ask_meanwhile(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    url = origin.url("/gate.jpg")
    async with started(origin) as pipeline:
        first = asyncio.ensure_future(ask(pipeline, url))
        await gate.arrival()
        others = asyncio.ensure_future(ask(pipeline, url, url))
        await asyncio.sleep(0)
        gate.open()
        ((image,), (second, third)) = await asyncio.gather(first, others)
        assert image is second is third
        assert gate.asked == 1
        # Afterwards it is fetched again: this is not a cache of URLs.
        again = asyncio.ensure_future(ask(pipeline, url))
        await gate.arrival()
        gate.open()
        await again
        assert gate.asked == 2


async def test_who_waits_for_a_shared_fetch_survives_that_its_first_asker_goes(
    origin: Origin, photo: bytes
) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    url = origin.url("/gate.jpg")
    async with started(origin) as pipeline:
        first = asyncio.create_task(ask(pipeline, url))
        await gate.arrival()
        second = asyncio.create_task(ask(pipeline, url))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.open()
        assert isinstance((await second)[0], DecodedImage)
        assert gate.asked == 1


async def test_a_shared_fetch_ends_when_all_who_wait_for_it_are_gone(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    url = origin.url("/gate.jpg")
    async with started(origin, timeout_s=60) as pipeline:  # for longer than is waited here
        tasks = [asyncio.create_task(ask(pipeline, url)) for _ in range(2)]
        await gate.arrival()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await gate.departure()


async def test_who_asks_in_the_moment_when_all_others_leave_is_not_cancelled_with_them(
    origin: Origin, photo: bytes
) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    url = origin.url("/gate.jpg")
    async with started(origin) as pipeline:
        gone = asyncio.create_task(ask(pipeline, url))
        await gate.arrival()
        gone.cancel()
        stays = asyncio.ensure_future(ask(pipeline, url))
        await gate.arrival()
        gate.open()
        assert isinstance((await stays)[0], DecodedImage)


async def test_a_failed_fetch_is_shared_too_and_then_forgotten(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    url = origin.url("/gate.jpg")
    async with started(origin, timeout_s=0.3) as pipeline:
        outcomes = await ask(pipeline, url, url)
        assert [type(error(outcome)) for outcome in outcomes] == [FetchTimeout, FetchTimeout]
        origin.serve("/gate.jpg", photo)
        assert isinstance((await ask(pipeline, url))[0], DecodedImage)


async def test_bytes_whose_embedding_is_known_are_not_decoded_again(origin: Origin, photo: bytes) -> None:
    origin.serve("/photo.jpg", photo)
    embedding = np.linspace(0, 1, 512, dtype=np.float32)
    async with started(origin, cache_entries=2) as pipeline:
        (image,) = await ask(pipeline, data_url(photo))
        assert isinstance(image, DecodedImage)
        pipeline.remember(image, embedding)
        # By another way and under another name: it is the bytes that count.
        (known,) = await ask(pipeline, origin.url("/photo.jpg"))
        assert isinstance(known, Result)
        assert np.array_equal(known.embedding, embedding)  # type: ignore[arg-type]
        assert (known.width, known.height, known.format, known.bytes) == (451, 300, "JPEG", len(photo))
        assert known.sha256 == hashlib.sha256(photo).hexdigest()


async def test_nothing_is_kept_with_0_entries(origin: Origin, photo: bytes) -> None:
    async with started(origin, cache_entries=0) as pipeline:
        (image,) = await ask(pipeline, data_url(photo))
        assert isinstance(image, DecodedImage)
        pipeline.remember(image, np.zeros(512, dtype=np.float32))
        assert isinstance((await ask(pipeline, data_url(photo)))[0], DecodedImage)


async def test_bytes_are_held_while_an_image_is_in_work_and_no_longer(origin: Origin, photo: bytes) -> None:
    held = ByteBudget(10_000_000)
    gate = Gate(photo)
    origin.raw("/held.jpg", gate)
    origin.serve("/photo.jpg", photo)
    async with started(origin, byte_budget=held) as pipeline:
        (image,) = await ask(pipeline, origin.url("/photo.jpg"))
        assert isinstance(image, DecodedImage)
        assert held.total_bytes == 0
        waiting = asyncio.ensure_future(ask(pipeline, origin.url("/held.jpg")))
        await gate.arrival()
        waiting.cancel()
        await gate.departure()
        assert held.total_bytes == 0


LARGE = 900_000


async def allocated_bytes(made: Callable[[], Awaitable[object]]) -> int:
    """How much more memory is taken after `made`, while its result is kept."""
    await made()  # once for what is only made once
    gc.collect()
    tracemalloc.start()
    try:
        kept = await made()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] if kept is not None else 0
    finally:
        tracemalloc.stop()


async def test_the_error_of_an_image_does_not_keep_the_image(origin: Origin, photo: bytes) -> None:
    damaged = photo[:1000] + bytes(LARGE)
    origin.serve("/damaged.jpg", damaged)
    origin.serve("/too-large.jpg", photo + bytes(1_000_000))
    origin.serve("/foreign.svg", b"<svg>" + bytes(LARGE))
    urls = [origin.url(path) for path in ("/damaged.jpg", "/too-large.jpg", "/foreign.svg")]
    async with started(origin) as pipeline:

        async def outcomes() -> object:
            outcomes = await ask(pipeline, *urls, data_url(damaged), data_url(b"x" * LARGE))
            assert all(isinstance(error(outcome), RequestError) for outcome in outcomes)
            return outcomes

        assert await allocated_bytes(outcomes) < LARGE // 2


async def test_what_is_given_up_before_its_turn_is_not_kept(origin: Origin, photo: bytes) -> None:
    async with started(origin, program=HOSTILE) as pipeline:
        held = [asyncio.create_task(ask(pipeline, ordered("wait"))) for _ in range(2)]
        await asyncio.sleep(0)

        async def given_up() -> object:
            urls = [data_url(photo + bytes([number]) * (LARGE // 2)) for number in range(5)]
            task = asyncio.create_task(ask(pipeline, *urls))
            async with asyncio.timeout(20):
                while len(pipeline.decoders._waiting) < len(urls):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(10):  # turns of the loop, in which what was cancelled ends
                await asyncio.sleep(0)
            return ()

        assert await allocated_bytes(given_up) < LARGE // 2
        for task in held:
            task.cancel()


async def test_an_image_that_there_is_no_room_for_is_refused_and_leaves_room_for_others(
    origin: Origin, photo: bytes
) -> None:
    origin.serve("/photo.jpg", photo)
    origin.serve("/large.jpg", photo + bytes(500_000))
    async with started(origin, byte_budget=ByteBudget(len(photo) + 400_000)) as pipeline:
        (refused,) = await ask(pipeline, origin.url("/large.jpg"))
        (image,) = await ask(pipeline, origin.url("/photo.jpg"))
        (carried,) = await ask(pipeline, data_url(photo))
    assert isinstance(error(refused), Overloaded)
    assert isinstance(image, DecodedImage)
    assert isinstance(carried, DecodedImage)


@pytest.mark.parametrize("spare", [0, -1])
@pytest.mark.parametrize("form", [bytes, data_url])
async def test_what_a_source_carries_is_counted(
    origin: Origin, photo: bytes, form: Callable[[bytes], str | bytes], spare: int
) -> None:
    source = form(photo)
    async with started(origin, byte_budget=ByteBudget(len(source) + spare)) as pipeline:
        (found,) = await ask(pipeline, source)
    assert isinstance(found, DecodedImage) if spare == 0 else isinstance(error(found), Overloaded)


async def test_bytes_are_an_image_up_to_the_limit(origin: Origin, photo: bytes) -> None:
    padded = photo + bytes(1_000_000 - len(photo))
    async with started(origin) as pipeline:
        fits, too_large = await ask(pipeline, padded, padded + b"0")
    assert isinstance(fits, DecodedImage)
    assert isinstance(error(too_large), ImageTooLarge)


async def test_what_is_neither_a_url_nor_bytes_is_an_error_of_its_own(origin: Origin, photo: bytes) -> None:
    async with started(origin) as pipeline:
        nothing, image = await ask(pipeline, None, photo)  # type: ignore[arg-type]  # as a table's column has it
    assert isinstance(error(nothing), InvalidRequest)
    assert isinstance(image, DecodedImage)


async def test_the_size_is_that_of_the_upright_picture(origin: Origin) -> None:
    exif = PIL.Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    turned = pictures.encoded(PIL.Image.new("RGB", (60, 40)), "JPEG", exif=exif)
    async with started(origin) as pipeline:
        (image,) = await ask(pipeline, turned)
    assert isinstance(image, DecodedImage)
    assert (image.source.width, image.source.height) == (40, 60)


async def test_each_stage_is_counted_once_for_each_image(origin: Origin, photo: bytes) -> None:
    registry = CollectorRegistry()
    async with started(origin, metrics=Metrics(registry)) as pipeline:
        assert all(isinstance(image, DecodedImage) for image in await ask(pipeline, *[photo] * 5))
    name = "embedder_stage_duration_seconds_count"
    for stage in ("decode_queue", "decode"):
        assert registry.get_sample_value(name, {"stage": stage}) == 5


async def test_a_picture_that_waits_for_its_turn_is_held_once(origin: Origin) -> None:
    noise = [
        pictures.encoded(
            PIL.Image.frombytes("RGB", (300, 300), np.random.default_rng(n).bytes(270_000)), "PNG"
        )
        for n in range(3)
    ]
    for number, file in enumerate(noise):
        origin.serve(f"/noise-{number}.png", file)
    held = ByteBudget(10_000_000)
    async with started(origin, byte_budget=held, program=HOSTILE) as pipeline:
        await ask(pipeline, *noise)  # once for what is only made once
        holders = [asyncio.create_task(ask(pipeline, ordered("wait"))) for _ in range(2)]
        await asyncio.sleep(0)
        gc.collect()
        tracemalloc.start()
        try:
            waiting = asyncio.create_task(ask(pipeline, *(origin.url(f"/noise-{n}.png") for n in range(3))))
            async with asyncio.timeout(20):
                while held.total_bytes < sum(map(len, noise)):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
                # What is counted is what is held, but for the origin's own.
                while tracemalloc.get_traced_memory()[0] > held.total_bytes * 1.3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            tracemalloc.stop()
        for process in pipeline.decoders.process_ids:
            os.kill(process, signal.SIGKILL)
        assert all(isinstance(outcome, DecodedImage) for outcome in await waiting)
        for task in holders:
            assert isinstance(error((await task)[0]), BadImage)


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = EmbeddingCache(2)
    known = [Result(np.full(512, n, dtype=np.float32)) for n in range(3)]
    cache.put("0", known[0])
    cache.put("1", known[1])
    assert cache.get("0") is known[0]  # used: now the second is the oldest
    cache.put("2", known[2])
    assert [cache.get(key) for key in "012"] == [known[0], None, known[2]]


async def test_a_known_embedding_does_not_keep_its_batch(origin: Origin, photo: bytes) -> None:
    async with started(origin, cache_entries=1) as pipeline:
        (image,) = await ask(pipeline, photo)
        assert isinstance(image, DecodedImage)
        pipeline.remember(image, np.zeros((32, 512), dtype=np.float32)[0])
        (known,) = await ask(pipeline, photo)
    assert isinstance(known, Result)
    assert known.embedding is not None
    assert known.embedding.base is None


async def test_a_file_is_hashed_where_somebody_asks(origin: Origin, photo: bytes) -> None:
    padded = photo + bytes(700_000)  # hashed on a thread
    async with started(origin, cache_entries=0) as pipeline:
        with pipeline.places(2):
            for hashed in (False, True):
                for file, outcome in zip(
                    (photo, padded), await pipeline.outcomes([photo, padded], hashed=hashed), strict=True
                ):
                    assert isinstance(outcome, DecodedImage)
                    assert outcome.source.sha256 == (hashlib.sha256(file).hexdigest() if hashed else None)


@pytest.mark.parametrize("around", [" {} ", "{}\r\n", "\t{}", "\u00a0{}\u2028"])
async def test_blanks_around_a_url_are_nothing(origin: Origin, photo: bytes, around: str) -> None:
    origin.serve("/photo.jpg", photo)
    async with started(origin) as pipeline:
        for url in (origin.url("/photo.jpg"), data_url(photo)):
            assert isinstance((await ask(pipeline, around.format(url)))[0], DecodedImage)
