"""One source → its pixels, its known embedding, or its error.

    source ─► a place in work ─► fetch ─► known? ─► a decoder's turn ─► DecodedImage, or Result
                   │               │                      │
              Overloaded      OriginError         RequestError, Overloaded    (values, one a source)

A source is an http(s) URL, a `data:` URL that carries the image itself, or an image's file: bytes, or base64.
Everything waits here and everything fails here, so that nothing does once images share a batch.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from time import perf_counter
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedder.cache import EmbeddingCache
from embedder.errors import (
    BadImage,
    EmbedderError,
    FetchFailed,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    Overloaded,
    UnsupportedFormat,
    bare,
)
from embedder.fetch.data_url import Base64, is_data_url, read_base64, read_data_url
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.renditions import REFUSALS, Rendition, Renditions, original_bytes
from embedder.images.decoders import Decoders, File
from embedder.metrics.measures import Metrics
from embedder.result import Embedding, Result
from embedder.runtime.byte_budget import ByteBudget, Lease
from embedder.runtime.threads import started_threads

logger = logging.getLogger(__name__)

R = TypeVar("R")

# A fetch that takes longer waits for its origin, and computes nothing meanwhile.
SLOW_FETCH_S = 0.25
# More of a file or text is read on a thread. It takes 0.2 ms.
INLINE_BYTES = 262_144

Source: TypeAlias = str | bytes | Base64 | EmbedderError
"""A URL, or an image's file."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image that is still to be encoded."""

    pixels: NDArray[np.uint8]
    """uint8 (crop, crop, 3), RGB."""
    source: Result
    """What is known of it."""

    def result(self, embedding: Embedding, *, encode_s: float | None = None) -> Result:
        timings = self.source.timings if encode_s is None else {**self.source.timings, "encode": encode_s}
        return replace(self.source, embedding=embedding, timings=timings)


Outcome: TypeAlias = DecodedImage | Result


class _How(NamedTuple):
    hashed: bool
    decoding: asyncio.Semaphore | None


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
        decoders: Decoders,
        *,
        renditions: Renditions,
        cache: EmbeddingCache,
        byte_budget: ByteBudget,
        metrics: Metrics,
        max_in_flight_images: int,
        max_image_bytes: int,
    ) -> None:
        self._fetcher = fetcher
        self.decoders = decoders
        self._renditions = renditions
        self._cache = cache
        self._byte_budget = byte_budget
        self._metrics = metrics
        self._max_in_flight_images = max_in_flight_images
        self._max_image_bytes = max_image_bytes
        self._readers: ThreadPoolExecutor
        self.in_flight_images = 0
        """From their admission until their answer is written."""
        self._fetching_since_s: dict[_Flight, float] = {}
        """When each fetch under way began, on the event loop's clock, in that order."""
        self._flights: dict[tuple[str, bool], _Flight] = {}
        """By URL, and whether the file is hashed."""

    def busy_images(self) -> int:
        """How many are in work, without those whose origin keeps them waiting."""
        slow_s = asyncio.get_running_loop().time() - SLOW_FETCH_S
        slow = takewhile(lambda fetch: fetch[1] < slow_s, self._fetching_since_s.items())
        return self.in_flight_images - sum(flight.waiting for flight, _ in slow)

    async def start(self) -> None:
        self._readers = started_threads(2, "read")
        await self._fetcher.start()
        try:
            await self.decoders.start()
        except BaseException:
            await self._fetcher.close()
            self._readers.shutdown(wait=False)
            raise

    async def close(self) -> None:
        await self._fetcher.close()
        await self.decoders.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def places(self, count: int, *, beside: int = 0) -> Iterator[None]:
        """Holds places in work for `count` images. Raises Overloaded when not so many and `beside` are free now."""
        self.check_room(count + beside)
        self.in_flight_images += count
        try:
            yield
        finally:
            self.in_flight_images -= count

    async def outcomes(
        self, sources: Sequence[Source], *, hashed: bool = False, decoding: asyncio.Semaphore | None = None
    ) -> list[Outcome]:
        """One outcome for each source, in their order; the same `DecodedImage` for the same URL.

        Each has its file's sha256 where it is `hashed`, or where embeddings are kept by it. That takes 0.7 ms a MB.

        They are decoded in the `decoding` turns of whoever asks, if it has any.

        Hold their `places` until what becomes of them is out of memory.
        """
        how = _How(hashed, decoding)
        if len(sources) == 1:
            return [await self._outcome(sources[0], how)]
        return list(await asyncio.gather(*(self._outcome(source, how) for source in sources)))

    def remember(self, image: DecodedImage, embedding: Embedding) -> None:
        """Keep the `embedding` that the network made of `image`."""
        sha256 = image.source.sha256
        if sha256 is not None and self._cache.max_entries:
            self._cache.put(sha256, replace(image.source, embedding=embedding.copy(), timings={}))

    def check_room(self, count: int) -> None:
        """Raises Overloaded when there are no places for `count` more images now."""
        taken = self.in_flight_images
        if taken + count > self._max_in_flight_images:
            raise Overloaded(
                f"{taken} images are in work and the limit is {self._max_in_flight_images}: "
                f"no room for {count} more now"
            )

    async def _outcome(self, source: Source, how: _How) -> Outcome:
        if isinstance(source, bytes):
            return await self._as_value(lambda lease: self._of_bytes(source, how, lease))
        if isinstance(source, Base64):
            return await self._as_value(lambda lease: self._of_text(source.text, read_base64, how, lease))
        if isinstance(source, EmbedderError):
            return Result(error=source)
        if not isinstance(source, str):  # as a column of a table may have it
            return Result(error=InvalidRequest("the source is neither a URL nor the bytes of a file"))
        url = source.strip()
        if is_data_url(url):
            return await self._as_value(lambda lease: self._of_text(url, read_data_url, how, lease))
        return await self._of_shared_url(url, how)

    async def _of_shared_url(self, url: str, how: _How) -> Outcome:
        """The outcome for `url`, fetched once for all that ask while the fetch is under way.

        It ends when the last of them is cancelled.
        """
        key = url, how.hashed
        flight = self._flights.get(key)
        if flight is None:
            task = asyncio.get_running_loop().create_task(
                self._as_value(lambda lease: self._of_url(url, how, lease))
            )
            flight = self._flights[key] = _Flight(task)
            task.add_done_callback(lambda _: self._forget(key, flight))
        else:
            self._metrics.shared_fetches.inc()
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._forget(key, flight)  # at once: nobody must join what is being cancelled
                flight.task.cancel()

    def _forget(self, key: tuple[str, bool], flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

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

    async def _of_url(self, url: str, how: _How, lease: Lease) -> Outcome:
        flight = self._flights[url, how.hashed]
        rendition = self._renditions.of(url)
        if rendition is None:
            return await self._downloaded(flight, partial(self._fetcher.fetch, url, lease), how)
        began_s = asyncio.get_running_loop().time()  # one deadline for both
        fetch = partial(self._fetcher.fetch, lease=lease, began_s=began_s)
        outcome, refused = await self._of_rendition(flight, rendition, fetch, how)
        if outcome is None:
            outcome = await self._downloaded(flight, partial(fetch, url), how)
            if refused:
                self._renditions.refused(rendition)
        return outcome

    async def _of_rendition(
        self, flight: _Flight, rendition: Rendition, fetch: Callable[..., Awaitable[bytes]], how: _How
    ) -> tuple[Outcome | None, bool]:
        """Its outcome; or None where the original is to be fetched, and whether that is to be remembered."""
        original: list[int | None] = []
        read = partial(fetch, rendition.url, head=lambda headers: original.append(original_bytes(headers)))
        try:
            outcome = await self._downloaded(flight, read, how, rendition=True)
        except (BadImage, UnsupportedFormat):
            self._metrics.rendition_fallbacks.labels("undecodable").inc()
            return None, True
        except FetchFailed as error:
            if error.http_status not in REFUSALS:
                raise
            self._metrics.rendition_fallbacks.labels("refused").inc()
            return None, error.http_status in rendition.remembered
        picture = outcome.source if isinstance(outcome, DecodedImage) else outcome
        if not rendition.is_enough(picture.width or 0, picture.height or 0):
            self._metrics.rendition_fallbacks.labels("small").inc()
            return None, False
        self._metrics.renditions.inc()
        self._metrics.rendition_bytes_saved.inc(max(0, (original[-1] or 0) - (picture.bytes or 0)))
        return outcome, False

    async def _downloaded(
        self,
        flight: _Flight,
        fetch: Callable[[], Awaitable[bytes]],
        how: _How,
        *,
        rendition: bool = False,
    ) -> Outcome:
        began_s = perf_counter()
        self._fetching_since_s[flight] = asyncio.get_running_loop().time()
        try:
            file = File(await fetch())
        finally:
            del self._fetching_since_s[flight]
        return await self._decoded(file, how, {"fetch": perf_counter() - began_s}, rendition=rendition)

    async def _of_text(self, text: str, read: Callable[..., bytes], how: _How, lease: Lease) -> Outcome:
        lease.add(len(text))
        data = await self._read(lambda: read(text, max_bytes=self._max_image_bytes), len(text))
        return await self._decoded(File(data), how, {})

    async def _of_bytes(self, data: bytes, how: _How, lease: Lease) -> Outcome:
        lease.add(len(data))
        if len(data) > self._max_image_bytes:
            raise ImageTooLarge(limit_bytes=self._max_image_bytes, actual_bytes=len(data))
        return await self._decoded(File(data), how, {})

    async def _decoded(
        self, file: File, how: _How, timings: dict[str, float], *, rendition: bool = False
    ) -> Outcome:
        size, sha256 = len(file.data), None
        if how.hashed or self._cache.max_entries:
            # No faster, weaker hash: with collisions that can be made, somebody could plant embeddings.
            sha256 = await self._read(lambda: hashlib.sha256(file.data).hexdigest(), size)
            if self._cache.max_entries:
                known = self._cache.get(sha256)
                if known is not None:
                    self._metrics.cache_hits.inc()
                    return replace(known, rendition=rendition, timings=timings)
                self._metrics.cache_misses.inc()
        asked_s = perf_counter()
        async with how.decoding or nullcontext():
            turn_s = perf_counter() - asked_s
            picture = await self.decoders.decode(file)
        timings |= {"decode_queue": turn_s + picture.waited_s, "decode": picture.took_s}
        source = Result(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            bytes=size,
            sha256=sha256,
            rendition=rendition,
            timings=timings,
        )
        return DecodedImage(picture.pixels, source)

    async def _read(self, work: Callable[[], R], size: int) -> R:
        """`work`, which reads `size` bytes."""
        if size <= INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)
