"""Sources in, outcomes out: places in work, one fetch for many, embeddings that are known."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network

import numpy as np
import PIL.Image
import pytest
from prometheus_client import REGISTRY

from embedder.cache import EmbeddingCache
from embedder.errors import (
    FetchFailed,
    FetchTimeout,
    Overloaded,
    RequestError,
    TooManyPixels,
    UnsupportedFormat,
)
from embedder.fetch.addresses import AddressPolicy
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.urls import URLPolicy
from embedder.images.decode import first_picture
from embedder.pipeline import Image, Intake
from embedder.runtime.memory import MAX_QUEUE, DecodingMemory, HeldBytes
from tests import pictures
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import ROOT

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def intake(
    origin: Origin,
    *,
    cache_entries: int = 0,
    max_in_flight_images: int = 8,
    timeout_s: float = 5,
    held_bytes: HeldBytes | None = None,
    decoding_memory: DecodingMemory | None = None,
) -> AsyncIterator[Intake]:
    urls = URLPolicy(
        allowed_ports=frozenset({origin.port}), addresses=AddressPolicy((ip_network("127.0.0.0/8"),))
    )
    intake = Intake(
        Fetcher(urls, max_bytes=1_000_000, timeout_s=timeout_s, max_redirects=3),
        cache=EmbeddingCache(cache_entries),
        held_bytes=held_bytes or HeldBytes(10_000_000),
        decoding_memory=decoding_memory or DecodingMemory(100_000_000),
        max_in_flight_images=max_in_flight_images,
        max_image_bytes=1_000_000,
        max_image_pixels=1_000_000,
        decode_threads=2,
    )
    await intake.start()
    try:
        yield intake
    finally:
        await intake.close()


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


async def in_task(intake: Intake, *sources: str) -> list[object]:
    """`admit`, in a task of its own as each request has."""
    return await asyncio.get_running_loop().create_task(_admit(intake, sources))


async def _admit(intake: Intake, sources: tuple[str, ...]) -> list[object]:
    return list(await intake.admit(sources))


async def test_outcomes_stand_in_the_order_of_their_sources(origin: Origin, photo: bytes) -> None:
    origin.serve("/photo.jpg", photo)
    origin.serve("/none.jpg", b"", status=404)
    async with intake(origin) as desk:
        urls = [origin.url("/none.jpg"), origin.url("/photo.jpg"), data_url(b"no image"), data_url(photo)]
        failed, fetched, unsupported, carried = await in_task(desk, *urls)
    assert isinstance(failed, FetchFailed)
    assert isinstance(unsupported, UnsupportedFormat)
    assert isinstance(fetched, Image)
    assert isinstance(carried, Image)
    assert np.array_equal(fetched.pixels, carried.pixels)


async def test_all_places_may_be_taken_and_one_more_is_refused_at_once(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    async with intake(origin, max_in_flight_images=3) as desk:
        three = asyncio.ensure_future(in_task(desk, *[origin.url("/gate.jpg")] * 3))
        await gate.arrival()
        with pytest.raises(Overloaded, match="3 images are in work and the limit is 3"):
            await in_task(desk, data_url(photo))
        gate.open()
        assert len(await three) == 3
        assert isinstance((await in_task(desk, *[data_url(photo)] * 3))[0], Image)


async def test_an_image_that_waits_for_a_slow_origin_is_in_work_but_not_busy(
    origin: Origin, photo: bytes
) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    async with intake(origin) as desk:
        # However many wait for it, in one request or in several.
        slow = [asyncio.ensure_future(in_task(desk, *[origin.url("/gate.jpg")] * count)) for count in (1, 2)]
        await gate.arrival()
        while desk.busy_images():  # noqa: ASYNC110 - no event tells when a fetch counts as slow
            await asyncio.sleep(0.01)
        assert desk.in_flight_images == 3
        gate.open()
        assert [type((await images)[0]) for images in slow] == [Image, Image]
        assert (desk.busy_images(), desk.in_flight_images) == (0, 0)


async def test_places_come_back_when_a_request_is_cancelled(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    async with intake(origin, max_in_flight_images=1) as desk:
        gone = asyncio.get_running_loop().create_task(_admit(desk, (origin.url("/gate.jpg"),)))
        await gate.arrival()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert isinstance((await in_task(desk, data_url(photo)))[0], Image)


async def test_the_same_url_is_fetched_once_for_all_who_ask_meanwhile(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    url = origin.url("/gate.jpg")
    async with intake(origin) as desk:
        first = asyncio.ensure_future(in_task(desk, url))
        await gate.arrival()
        others = asyncio.ensure_future(in_task(desk, url, url))
        await asyncio.sleep(0)
        gate.open()
        ((image,), (second, third)) = await asyncio.gather(first, others)
        assert image is second is third
        assert gate.asked == 1
        # Afterwards it is fetched again: this is not a cache of URLs.
        again = asyncio.ensure_future(in_task(desk, url))
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
    async with intake(origin) as desk:
        first = asyncio.get_running_loop().create_task(_admit(desk, (url,)))
        await gate.arrival()
        second = asyncio.get_running_loop().create_task(_admit(desk, (url,)))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.open()
        assert isinstance((await second)[0], Image)
        assert gate.asked == 1


async def test_a_shared_fetch_ends_when_all_who_wait_for_it_are_gone(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    url = origin.url("/gate.jpg")
    async with intake(origin, timeout_s=60) as desk:  # for longer than is waited here
        tasks = [asyncio.get_running_loop().create_task(_admit(desk, (url,))) for _ in range(2)]
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
    async with intake(origin) as desk:
        gone = asyncio.get_running_loop().create_task(_admit(desk, (url,)))
        await gate.arrival()
        gone.cancel()
        stays = asyncio.ensure_future(in_task(desk, url))
        await gate.arrival()
        gate.open()
        assert isinstance((await stays)[0], Image)


async def test_a_failed_fetch_is_shared_too_and_then_forgotten(origin: Origin, photo: bytes) -> None:
    gate = Gate(photo)
    origin.raw("/gate.jpg", gate)
    url = origin.url("/gate.jpg")
    async with intake(origin, timeout_s=0.3) as desk:
        outcomes = await in_task(desk, url, url)
        assert [type(outcome) for outcome in outcomes] == [FetchTimeout, FetchTimeout]
        origin.serve("/gate.jpg", photo)
        assert isinstance((await in_task(desk, url))[0], Image)


async def test_bytes_whose_embedding_is_known_are_not_decoded_again(origin: Origin, photo: bytes) -> None:
    origin.serve("/photo.jpg", photo)
    embedding = np.linspace(0, 1, 512, dtype=np.float32)
    async with intake(origin, cache_entries=2) as desk:
        (image,) = await in_task(desk, data_url(photo))
        assert isinstance(image, Image)
        desk.remember(image, embedding)
        # By another way and under another name: it is the bytes that count.
        (known,) = await in_task(desk, origin.url("/photo.jpg"))
        assert np.array_equal(known, embedding)  # type: ignore[arg-type]


async def test_nothing_is_kept_with_0_entries(origin: Origin, photo: bytes) -> None:
    async with intake(origin, cache_entries=0) as desk:
        (image,) = await in_task(desk, data_url(photo))
        assert isinstance(image, Image)
        desk.remember(image, np.zeros(512, dtype=np.float32))
        assert isinstance((await in_task(desk, data_url(photo)))[0], Image)


async def test_bytes_are_held_while_an_image_is_in_work_and_no_longer(origin: Origin, photo: bytes) -> None:
    held = HeldBytes(10_000_000)
    gate = Gate(photo)
    origin.raw("/held.jpg", gate)
    origin.serve("/photo.jpg", photo)
    async with intake(origin, held_bytes=held) as desk:
        (image,) = await in_task(desk, origin.url("/photo.jpg"))
        assert isinstance(image, Image)
        assert held.total_bytes == 0
        waiting = asyncio.ensure_future(in_task(desk, origin.url("/held.jpg")))
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
    async with intake(origin) as desk:

        async def outcomes() -> object:
            outcomes = await in_task(desk, *urls, data_url(damaged), data_url(b"x" * LARGE))
            assert all(isinstance(outcome, RequestError) for outcome in outcomes)
            return outcomes

        assert await allocated_bytes(outcomes) < LARGE // 2


async def test_what_is_given_up_before_its_turn_is_not_kept(origin: Origin, photo: bytes) -> None:
    busy, taken = threading.Event(), threading.Barrier(3)
    async with intake(origin) as desk:
        queue = desk._decoders._work_queue

        def keep_busy() -> None:
            taken.wait(10)
            busy.wait(60)

        for _ in range(2):
            desk._decoders.submit(keep_busy)
        taken.wait(10)

        async def given_up() -> object:
            urls = [data_url(photo + bytes([number]) * (LARGE // 2)) for number in range(8)]
            task = asyncio.get_running_loop().create_task(_admit(desk, tuple(urls)))
            queued = queue.qsize() + len(urls)
            while queue.qsize() < queued:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(10):  # turns of the loop, in which what was cancelled ends
                await asyncio.sleep(0)
            assert desk.in_flight_images == 0
            return ()

        try:
            assert await allocated_bytes(given_up) < LARGE // 2
        finally:
            busy.set()


async def test_an_image_that_there_is_no_room_for_is_refused_and_leaves_room_for_others(
    origin: Origin, photo: bytes
) -> None:
    origin.serve("/photo.jpg", photo)
    origin.serve("/large.jpg", photo + bytes(500_000))
    async with intake(origin, held_bytes=HeldBytes(len(photo) + 400_000)) as desk:
        (refused,) = await in_task(desk, origin.url("/large.jpg"))
        (image,) = await in_task(desk, origin.url("/photo.jpg"))
        (carried,) = await in_task(desk, data_url(photo))
    assert isinstance(refused, Overloaded)
    assert isinstance(image, Image)
    assert isinstance(carried, Image)


@pytest.mark.parametrize(("spare", "outcome"), [(0, Image), (-1, Overloaded)])
async def test_what_a_data_url_carries_is_counted(
    origin: Origin, photo: bytes, spare: int, outcome: type
) -> None:
    url = data_url(photo)
    async with intake(origin, held_bytes=HeldBytes(len(url) + spare)) as desk:
        (found,) = await in_task(desk, url)
    assert type(found) is outcome


async def test_what_does_not_fit_into_memory_beside_others_is_decoded_after_them(
    origin: Origin, photo: bytes
) -> None:
    pictures = [photo[:2] + b"\xff\xfe\x00\x03%c" % number + photo[2:] for number in range(1 + MAX_QUEUE)]
    memory = DecodingMemory(first_picture(photo, max_pixels=1_000_000).decoding_bytes)  # of one of them
    before = {stage: count(stage) for stage in ("decode_queue", "decode")}
    async with intake(origin, decoding_memory=memory) as desk:
        images = await in_task(desk, *map(data_url, pictures))
    assert all(isinstance(image, Image) for image in images)
    assert memory.try_take(memory.limit_bytes)  # everything was given back
    # And counted once, whether it waited or not.
    assert {stage: count(stage) - before[stage] for stage in before} == dict.fromkeys(before, len(pictures))


def count(stage: str) -> float:
    value = REGISTRY.get_sample_value("embedder_stage_duration_seconds_count", {"stage": stage})
    assert value is not None
    return value


async def test_what_can_never_fit_is_refused_with_the_pixels_that_would(origin: Origin, photo: bytes) -> None:
    memory = DecodingMemory(first_picture(photo, max_pixels=1_000_000).decoding_bytes - 4)
    async with intake(origin, decoding_memory=memory) as desk:
        (refused,) = await in_task(desk, data_url(photo))
    assert isinstance(refused, TooManyPixels)
    assert refused.limit_pixels == 451 * 300 - 1


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = EmbeddingCache(2)
    keys = [cache.key(bytes([n])) for n in range(3)]
    one, two, three = (np.full(512, n, dtype=np.float32) for n in range(3))
    cache.put(keys[0], one)
    cache.put(keys[1], two)
    assert cache.get(keys[0]) is not None  # used: now the second is the oldest
    cache.put(keys[2], three)
    assert len(cache) == 2
    assert cache.get(keys[1]) is None
    assert np.array_equal(cache.get(keys[0]), one)  # type: ignore[arg-type]


def test_an_entry_does_not_keep_its_batch_alive() -> None:
    cache, batch = EmbeddingCache(1), np.zeros((32, 512), dtype=np.float32)
    cache.put(b"key", batch[0])
    entry = cache.get(b"key")
    assert entry is not None
    assert entry.base is None


STARVED = """
import asyncio, base64, resource, sys
from embedder.fetch.addresses import AddressPolicy
from embedder.cache import EmbeddingCache
from embedder.fetch.fetcher import Fetcher
from embedder.pipeline import Intake
from embedder.runtime.memory import DecodingMemory, HeldBytes, mappable_bytes, spare_address_space
from embedder.fetch.urls import URLPolicy

async def main(large, small):
    urls = URLPolicy(allowed_ports=frozenset({80}), addresses=AddressPolicy(()))
    intake = Intake(
        Fetcher(urls, max_bytes=10**7, timeout_s=5, max_redirects=0), cache=EmbeddingCache(0),
        held_bytes=HeldBytes(10**8), decoding_memory=DecodingMemory(10**9), max_in_flight_images=8,
        max_image_bytes=10**7, max_image_pixels=5 * 10**7, decode_threads=2,
    )
    await intake.start()
    resource.setrlimit(resource.RLIMIT_AS, (10**10 - mappable_bytes() + 60_000_000, 10**10))
    for outcome in await intake.admit([large, small]):
        print(type(outcome).__name__, outcome if isinstance(outcome, Exception) else "")
    await intake.close()

resource.setrlimit(resource.RLIMIT_AS, (10**10, 10**10))
spare_address_space()
asyncio.run(main(*sys.stdin.read().split()))
"""


def test_an_image_for_which_there_is_no_memory_is_refused_and_its_neighbour_is_not(photo: bytes) -> None:
    large = pictures.encoded(PIL.Image.new("RGBA", (5000, 5000)), "PNG", compress_level=1)  # 100 MB of pixels
    done = subprocess.run(
        [sys.executable, "-c", STARVED],
        cwd=ROOT,
        input=f"{data_url(large)} {data_url(photo)}",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["Overloaded there is no memory for the image now", "Image "]
