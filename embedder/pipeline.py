"""Sources → images or failures, in order, within the budget.

    source ─► a place in work ─► fetch ─► known? ─► room in memory ─► decode ─► Image, or its embedding
                   │               │                      │             │
              Overloaded      OriginError            Overloaded    RequestError   (values, one a source)

A source is an http(s) URL, or a `data:` URL that carries the image itself. Here is where everything waits
and where everything fails, so that nothing does once images share a batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from time import perf_counter
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedder import metrics
from embedder.cache import Embedding, EmbeddingCache
from embedder.errors import EmbedderError, InternalError, Overloaded, TooManyPixels, bare
from embedder.fetch.data_url import is_data_url, read_data_url
from embedder.fetch.fetcher import Fetcher
from embedder.images.decode import Picture, decode_picture, first_picture
from embedder.runtime.memory import DecodingMemory, HeldBytes, Hold
from embedder.runtime.threads import started_threads

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# A fetch that takes longer waits for its origin, and computes nothing meanwhile.
SLOW_FETCH_S = 0.25


@dataclass(frozen=True, eq=False)
class Image:
    """A decoded image that is to be encoded."""

    pixels: NDArray[np.uint8]
    """uint8 (224, 224, 3), RGB."""
    key: bytes | None
    """What its embedding will be kept under; None where embeddings are not kept."""


Outcome: TypeAlias = Image | Embedding | EmbedderError
"""What became of one source: an image, its embedding where that is known, or why there is neither."""


@dataclass(frozen=True, eq=False)
class _Postponed:
    """A picture that there is no room in memory to decode now."""

    picture: Picture
    key: bytes | None


@dataclass(eq=False)
class _Flight:
    """One fetch, and the requests that wait for it."""

    task: asyncio.Task[Outcome]
    waiting: int = field(default=0)


class Intake:
    """Turns sources into images. One to a process; use it on one event loop."""

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        cache: EmbeddingCache,
        held_bytes: HeldBytes,
        decoding_memory: DecodingMemory,
        max_in_flight_images: int,
        max_image_bytes: int,
        max_image_pixels: int,
        decode_threads: int,
    ) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._held_bytes = held_bytes
        self._decoding_memory = decoding_memory
        self._max_in_flight_images = max_in_flight_images
        self._max_image_bytes = max_image_bytes
        self._max_image_pixels = max_image_pixels
        self._decode_threads = decode_threads
        self._decoders: ThreadPoolExecutor
        self.in_flight_images = 0
        """From their admission until their answer is written."""
        self._fetching_since_s: dict[_Flight, float] = {}
        """When each fetch under way began, on the event loop's clock, in that order."""
        self._flights: dict[str, _Flight] = {}

    def busy_images(self) -> int:
        """How many are in work, without those whose origin keeps them waiting."""
        slow_s = asyncio.get_running_loop().time() - SLOW_FETCH_S
        slow = takewhile(lambda fetch: fetch[1] < slow_s, self._fetching_since_s.items())
        return self.in_flight_images - sum(flight.waiting for flight, _ in slow)

    async def start(self) -> None:
        self._decoders = started_threads(self._decode_threads, "decode")
        await self._fetcher.start()

    async def close(self) -> None:
        await self._fetcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def admit(self, sources: Sequence[str]) -> list[Outcome]:
        """One outcome for each source, in their order; the same `Image` for the same URL.

        The sources' places in work are held until the calling task ends, however it ends: its pixels are
        in memory until its answer is written. So call it once in a task.
        Raises Overloaded, at once, when there are not enough places for all of them.
        """
        self._take_places(len(sources))
        if len(sources) == 1:
            return [await self._outcome(sources[0])]
        return list(await asyncio.gather(*map(self._outcome, sources)))

    def remember(self, image: Image, embedding: Embedding) -> None:
        """Keep the `embedding` that the network made of `image`."""
        self._cache.put(image.key, embedding)

    def check_room(self, count: int) -> None:
        """Raises Overloaded when there are no places for `count` more images now."""
        taken = self.in_flight_images
        if taken + count > self._max_in_flight_images:
            raise Overloaded(
                f"{taken} images are in work and the limit is {self._max_in_flight_images}: "
                f"no room for {count} more now"
            )

    def _take_places(self, count: int) -> None:
        self.check_room(count)
        task = asyncio.current_task()
        assert task is not None, "admit runs in a task"  # noqa: S101 - a coroutine always does
        self.in_flight_images += count
        task.add_done_callback(lambda _: self._give_places_back(count))

    def _give_places_back(self, count: int) -> None:
        self.in_flight_images -= count

    async def _outcome(self, source: str) -> Outcome:
        if is_data_url(source):
            return await self._as_value(self._of_data_url, source)
        return await self._shared(source)

    async def _shared(self, url: str) -> Outcome:
        """The outcome for `url`, fetched once for all who ask while it is under way.

        Whoever goes away leaves it to the others; with the last one it ends.
        """
        flight = self._flights.get(url)
        if flight is None:
            task = asyncio.get_running_loop().create_task(self._as_value(self._of_url, url))
            flight = self._flights[url] = _Flight(task)
            task.add_done_callback(lambda _: self._land(url, flight))
        else:
            metrics.shared_fetches.inc()
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._land(url, flight)  # at once: nobody must join what is being cancelled
                flight.task.cancel()

    def _land(self, url: str, flight: _Flight) -> None:
        if self._flights.get(url) is flight:
            del self._flights[url]

    async def _as_value(self, work: Callable[[str, Hold], Awaitable[Outcome]], source: str) -> Outcome:
        try:
            with self._held_bytes.hold() as hold:
                return await work(source, hold)
        except EmbedderError as error:
            return bare(error)
        except MemoryError:  # what other images hold is about to come back
            return Overloaded("there is no memory for the image now")
        except Exception:  # a bug that one image met: its neighbours must not pay for it
            logger.exception("an image failed in a way that was not foreseen")
            return InternalError()

    async def _of_url(self, url: str, hold: Hold) -> Outcome:
        flight = self._flights[url]
        self._fetching_since_s[flight] = asyncio.get_running_loop().time()
        try:
            data = await self._fetcher.fetch(url, hold)
        finally:
            del self._fetching_since_s[flight]
        return await self._of_bytes(self._known_or_decoded, data)

    async def _of_data_url(self, url: str, hold: Hold) -> Outcome:
        hold.add(len(url))
        return await self._of_bytes(self._read_and_decoded, url)

    async def _of_bytes(self, work: Callable[[T, float], Outcome | _Postponed], argument: T) -> Outcome:
        arrived_s = perf_counter()
        # The one crossing from the event loop to the decoding threads, but for what has to wait for memory.
        outcome = await self._on_thread(work, argument, arrived_s)
        if not isinstance(outcome, _Postponed):
            return outcome
        size = outcome.picture.decoding_bytes
        await self._decoding_memory.take(size)
        pixels = await self._on_thread(
            _decoded, outcome.picture, arrived_s, then=lambda _: self._decoding_memory.give_back(size)
        )
        return Image(pixels, outcome.key)

    async def _on_thread(
        self,
        work: Callable[[T, float], R],
        argument: T,
        arrived_s: float,
        *,
        then: Callable[[Future[R]], None] = lambda _: None,
    ) -> R:
        """`work`, on a decoding thread; `then` when that is done, which may be after this is given up."""
        given = [argument]
        done = self._decoders.submit(lambda: work(given.pop(), arrived_s))
        done.add_done_callback(then)
        try:
            return await asyncio.wrap_future(done)
        finally:
            given.clear()  # what is given up stays in the pool's queue until its turn, and counts no more

    def _read_and_decoded(self, url: str, arrived_s: float) -> Outcome | _Postponed:
        return self._known_or_decoded(read_data_url(url, max_bytes=self._max_image_bytes), arrived_s)

    def _known_or_decoded(self, data: bytes, arrived_s: float) -> Outcome | _Postponed:
        key = self._cache.key(data)
        known = self._cache.get(key)
        if known is not None:
            metrics.cache_hits.inc()
            return known
        if key is not None:
            metrics.cache_misses.inc()
        picture = first_picture(data, max_pixels=self._max_image_pixels)
        self._check_memory(picture)
        if not self._decoding_memory.try_take(picture.decoding_bytes):
            return _Postponed(picture, key)
        try:
            return Image(_decoded(picture, arrived_s), key)
        finally:
            self._decoding_memory.give_back(picture.decoding_bytes)

    def _check_memory(self, picture: Picture) -> None:
        limit_bytes = self._decoding_memory.limit_bytes
        if picture.decoding_bytes > limit_bytes:
            limit_pixels = picture.pixels * limit_bytes // picture.decoding_bytes
            raise TooManyPixels(width=picture.width, height=picture.height, limit_pixels=limit_pixels)


def _decoded(picture: Picture, arrived_s: float) -> NDArray[np.uint8]:
    """The pixels of `picture`, which came at `arrived_s` on the clock of `perf_counter`."""
    metrics.decode_queue_stage.observe(perf_counter() - arrived_s)
    with metrics.decode_stage.time():
        return decode_picture(picture)
