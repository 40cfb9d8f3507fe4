"""One source → its pixels, its known embedding, or its error.

    source ─► a place in work ─► fetch ─► known? ─► room in memory ─► decode ─► DecodedImage, or Result
                   │               │                      │             │
              Overloaded      OriginError            Overloaded    RequestError      (values, one a source)

A source is an http(s) URL, a `data:` URL that carries the image itself, or the bytes of an image file.
Everything waits here and everything fails here, so that nothing does once images share a batch.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from time import perf_counter
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedder.cache import Embedding, EmbeddingCache, KnownImage
from embedder.errors import (
    EmbedderError,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    Overloaded,
    TooManyPixels,
    bare,
)
from embedder.fetch.data_url import is_data_url, read_data_url
from embedder.fetch.fetcher import Fetcher
from embedder.images.containers import Picture, first_picture
from embedder.images.decode import decode_picture
from embedder.images.decode_budget import DecodeBudget
from embedder.metrics.measures import Metrics
from embedder.model.spec import Preprocessing
from embedder.runtime.byte_budget import ByteBudget, Lease
from embedder.runtime.threads import started_threads

logger = logging.getLogger(__name__)

R = TypeVar("R")

# A fetch that takes longer waits for its origin, and computes nothing meanwhile.
SLOW_FETCH_S = 0.25

Source: TypeAlias = str | bytes
"""A URL, or the bytes of an image file."""


@dataclass(frozen=True, eq=False)
class Result:
    """What became of one source: an embedding or an error."""

    embedding: Embedding | None = None
    """float32 (dimension,), of norm 1."""
    error: EmbedderError | None = None
    width: int | None = None
    """`width` and `height` are the source's, in pixels, upright. None, as what follows, beside an error."""
    height: int | None = None
    format: str | None = None
    """JPEG, PNG, WEBP or GIF."""
    bytes: int | None = None
    """The size of the file."""
    sha256: str | None = None
    """Of the file, in hexadecimal; None where the engine does not hash what it does not keep."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds, of what was done: fetch, decode_queue, decode, encode (with the wait for a batch)."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image that is still to be encoded."""

    pixels: NDArray[np.uint8]
    """uint8 (crop, crop, 3), RGB."""
    width: int
    height: int
    format: str
    bytes: int
    sha256: str | None
    timings: Mapping[str, float]

    def result(self, embedding: Embedding, *, encode_s: float | None = None) -> Result:
        timings = {**self.timings} if encode_s is None else {**self.timings, "encode": encode_s}
        return Result(embedding, None, self.width, self.height, self.format, self.bytes, self.sha256, timings)


Outcome: TypeAlias = DecodedImage | Result


@dataclass(frozen=True, eq=False)
class _File:
    """An image's file that has arrived."""

    data: bytes
    arrived_s: float
    """On the clock of `perf_counter`."""
    timings: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Undecoded:
    """A picture on its way to be decoded. The file that it came in is let go."""

    picture: Picture
    file_bytes: int
    sha256: str | None
    arrived_s: float
    timings: dict[str, float]


@dataclass(eq=False)
class _Flight:
    """One fetch, and how many wait for it."""

    task: asyncio.Task[Outcome]
    waiting: int = 0


class Pipeline:
    """Turns sources into pixels. One to a process; use it on one event loop."""

    def __init__(
        self,
        fetcher: Fetcher,
        preprocessing: Preprocessing,
        *,
        cache: EmbeddingCache,
        byte_budget: ByteBudget,
        decode_budget: DecodeBudget,
        metrics: Metrics,
        max_in_flight_images: int,
        max_image_bytes: int,
        max_image_pixels: int,
        decode_threads: int,
        hash_files: bool = False,
    ) -> None:
        """`hash_files` has every `Result` say its file's sha256, also where nothing is kept: 0.7 ms a MB."""
        self._fetcher = fetcher
        self._preprocessing = preprocessing
        self._cache = cache
        self._byte_budget = byte_budget
        self._decode_budget = decode_budget
        self._metrics = metrics
        self._max_in_flight_images = max_in_flight_images
        self._max_image_bytes = max_image_bytes
        self._max_image_pixels = max_image_pixels
        self._decode_threads = decode_threads
        self._hash_files = hash_files or cache.max_entries > 0
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
        await self._fetcher.start()
        self._decoders = started_threads(self._decode_threads, "decode")

    async def close(self) -> None:
        await self._fetcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Holds places in work for `count` images. Raises Overloaded when there are not that many now."""
        self.check_room(count)
        self.in_flight_images += count
        try:
            yield
        finally:
            self.in_flight_images -= count

    async def outcomes(self, sources: Sequence[Source]) -> list[Outcome]:
        """One outcome for each source, in their order; the same `DecodedImage` for the same URL.

        Hold their `places` until what becomes of them is out of memory.
        """
        if len(sources) == 1:
            return [await self._outcome(sources[0])]
        return list(await asyncio.gather(*map(self._outcome, sources)))

    def remember(self, image: DecodedImage, embedding: Embedding) -> None:
        """Keep the `embedding` that the network made of `image`."""
        if image.sha256 is not None and self._cache.max_entries:
            known = KnownImage(embedding.copy(), image.width, image.height, image.format)
            self._cache.put(image.sha256, known)

    def check_room(self, count: int) -> None:
        """Raises Overloaded when there are no places for `count` more images now."""
        taken = self.in_flight_images
        if taken + count > self._max_in_flight_images:
            raise Overloaded(
                f"{taken} images are in work and the limit is {self._max_in_flight_images}: "
                f"no room for {count} more now"
            )

    async def _outcome(self, source: Source) -> Outcome:
        if isinstance(source, bytes):
            return await self._as_value(lambda lease: self._of_bytes(source, lease))
        if not isinstance(source, str):  # as a column of a table may have it
            return Result(error=InvalidRequest("the source is neither a URL nor the bytes of a file"))
        if is_data_url(source):
            return await self._as_value(lambda lease: self._of_data_url(source, lease))
        return await self._of_shared_url(source)

    async def _of_shared_url(self, url: str) -> Outcome:
        """The outcome for `url`, fetched once for all that ask while the fetch is under way.

        It ends when the last of them is cancelled.
        """
        flight = self._flights.get(url)
        if flight is None:
            task = asyncio.get_running_loop().create_task(
                self._as_value(lambda lease: self._of_url(url, lease))
            )
            flight = self._flights[url] = _Flight(task)
            task.add_done_callback(lambda _: self._forget(url, flight))
        else:
            self._metrics.shared_fetches.inc()
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._forget(url, flight)  # at once: nobody must join what is being cancelled
                flight.task.cancel()

    def _forget(self, url: str, flight: _Flight) -> None:
        if self._flights.get(url) is flight:
            del self._flights[url]

    async def _as_value(self, work: Callable[[Lease], Awaitable[Outcome]]) -> Outcome:
        try:
            with self._byte_budget.lease() as lease:
                return await work(lease)
        except EmbedderError as error:
            return Result(error=bare(error))
        except MemoryError:  # what other images hold is about to be freed
            return Result(error=Overloaded("there is no memory for the image now"))
        except Exception:  # a bug that one image met: its neighbours must not pay for it
            logger.exception("an image failed in a way that was not foreseen")
            return Result(error=InternalError())

    async def _of_url(self, url: str, lease: Lease) -> Outcome:
        flight = self._flights[url]
        began_s = perf_counter()
        self._fetching_since_s[flight] = asyncio.get_running_loop().time()
        try:
            data = [await self._fetcher.fetch(url, lease)]
        finally:
            del self._fetching_since_s[flight]
        arrived_s = perf_counter()
        timings = {"fetch": arrived_s - began_s}
        return await self._decoded(lambda: _File(data.pop(), arrived_s, timings))

    async def _of_data_url(self, url: str, lease: Lease) -> Outcome:
        lease.add(len(url))
        arrived_s, limit = perf_counter(), self._max_image_bytes
        return await self._decoded(lambda: _File(read_data_url(url, max_bytes=limit), arrived_s, {}))

    async def _of_bytes(self, data: bytes, lease: Lease) -> Outcome:
        lease.add(len(data))
        if len(data) > self._max_image_bytes:
            raise ImageTooLarge(limit_bytes=self._max_image_bytes, actual_bytes=len(data))
        arrived_s = perf_counter()
        return await self._decoded(lambda: _File(data, arrived_s, {}))

    async def _decoded(self, file: Callable[[], _File]) -> Outcome:
        """The outcome for what `file` gives, which is called once, on a decoding thread.

        Nothing keeps the file here: a picture that waits for memory holds its own copy, and no other.
        """
        # The one crossing from the event loop to the decoding threads, but for what has to wait for memory.
        outcome = await self._on_thread(lambda: self._known_or_decoded(file()))
        if not isinstance(outcome, _Undecoded):
            return outcome
        size = outcome.picture.decoding_bytes
        await self._decode_budget.take(size)
        return await self._on_thread(
            lambda: self._image(outcome), then=lambda _: self._decode_budget.give_back(size)
        )

    async def _on_thread(
        self, work: Callable[[], R], *, then: Callable[[Future[R]], None] = lambda _: None
    ) -> R:
        """`work`, on a decoding thread; `then` when that is done, which may be after this is given up."""
        given = [work]
        done = self._decoders.submit(lambda: given.pop()())
        done.add_done_callback(then)
        try:
            return await asyncio.wrap_future(done)
        finally:
            given.clear()  # work that is given up stays in the pool's queue until its turn, without its file

    def _known_or_decoded(self, file: _File) -> Outcome | _Undecoded:
        # No faster, weaker hash: with collisions that can be made, somebody could plant embeddings.
        sha256 = hashlib.sha256(file.data).hexdigest() if self._hash_files else None
        if sha256 is not None and self._cache.max_entries:
            known = self._cache.get(sha256)
            if known is not None:
                self._metrics.cache_hits.inc()
                return Result(
                    known.embedding,
                    None,
                    known.width,
                    known.height,
                    known.format,
                    len(file.data),
                    sha256,
                    file.timings,
                )
            self._metrics.cache_misses.inc()
        picture = first_picture(file.data, self._preprocessing, max_pixels=self._max_image_pixels)
        self._check_memory(picture)
        undecoded = _Undecoded(picture, len(file.data), sha256, file.arrived_s, file.timings)
        if not self._decode_budget.try_take(picture.decoding_bytes):
            return undecoded
        try:
            return self._image(undecoded)
        finally:
            self._decode_budget.give_back(picture.decoding_bytes)

    def _check_memory(self, picture: Picture) -> None:
        limit_bytes = self._decode_budget.limit_bytes
        if picture.decoding_bytes > limit_bytes:
            limit_pixels = picture.pixels * limit_bytes // picture.decoding_bytes
            raise TooManyPixels(width=picture.width, height=picture.height, limit_pixels=limit_pixels)

    def _image(self, undecoded: _Undecoded) -> DecodedImage:
        picture = undecoded.picture
        queued_s = perf_counter() - undecoded.arrived_s
        self._metrics.decode_queue_stage.observe(queued_s)
        began_s = perf_counter()
        with self._metrics.decode_stage.time():
            pixels = decode_picture(picture, self._preprocessing)
        timings = {**undecoded.timings, "decode_queue": queued_s, "decode": perf_counter() - began_s}
        width, height = picture.upright_size
        return DecodedImage(
            pixels, width, height, picture.format, undecoded.file_bytes, undecoded.sha256, timings
        )
