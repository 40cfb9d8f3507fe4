"""Sources → pixels or failures, in order, within the budget.

    source ──► a place in work ──► fetch ──► decode ──► pixels, uint8 (224, 224, 3)
                    │                │          │
                Overloaded       OriginError  RequestError   (values, one for each source, not exceptions)

A source is an http(s) URL, or a `data:` URL that carries the image itself. Here is where everything waits
and where everything fails, so that nothing does once images share a batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedder.data_url import is_data_url, read_data_url
from embedder.decode import decode
from embedder.errors import EmbedderError, InternalError, Overloaded
from embedder.fetch import Fetcher

logger = logging.getLogger(__name__)

T = TypeVar("T")

Pixels: TypeAlias = NDArray[np.uint8]
Outcome: TypeAlias = Pixels | EmbedderError
"""What became of one source: uint8 (224, 224, 3), or why there are no pixels."""


class Intake:
    """Turns sources into pixels. One to a process; use it on one event loop."""

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        max_in_flight_images: int,
        max_image_bytes: int,
        max_image_pixels: int,
        decode_threads: int,
    ) -> None:
        self._fetcher = fetcher
        self._max_in_flight_images = max_in_flight_images
        self._max_image_bytes = max_image_bytes
        self._max_image_pixels = max_image_pixels
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._in_flight_images = 0

    async def start(self) -> None:
        await self._fetcher.start()

    async def close(self) -> None:
        await self._fetcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def admit(self, sources: Sequence[str]) -> list[Outcome]:
        """One outcome for each source, in their order.

        The sources' places in work are held until the calling task ends, however it ends: its pixels are
        in memory until its answer is written. So call it once in a task.
        Raises Overloaded, at once, when there are not enough places for all of them.
        """
        self._take_places(len(sources))
        if len(sources) == 1:
            return [await self._outcome(sources[0])]
        return list(await asyncio.gather(*map(self._outcome, sources)))

    def _take_places(self, count: int) -> None:
        taken = self._in_flight_images
        if taken + count > self._max_in_flight_images:
            raise Overloaded(
                f"{taken} images are in work and the limit is {self._max_in_flight_images}: "
                f"no room for {count} more now"
            )
        task = asyncio.current_task()
        assert task is not None, "admit runs in a task"  # noqa: S101 - a coroutine always does
        self._in_flight_images += count
        task.add_done_callback(lambda _: self._give_places_back(count))

    def _give_places_back(self, count: int) -> None:
        self._in_flight_images -= count

    async def _outcome(self, source: str) -> Outcome:
        try:
            if is_data_url(source):
                return await self._in_decoder(self._decode_data_url, source)
            return await self._in_decoder(self._decode, await self._fetcher.fetch(source))
        except EmbedderError as error:
            return error
        except Exception:  # a bug that one image met: its neighbours must not pay for it
            logger.exception("an image failed in a way that was not foreseen")
            return InternalError()

    async def _in_decoder(self, work: Callable[[T], Pixels], argument: T) -> Pixels:
        """The one crossing from the event loop to the decoding threads."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, argument)

    def _decode_data_url(self, url: str) -> Pixels:
        return self._decode(read_data_url(url, max_bytes=self._max_image_bytes))

    def _decode(self, data: bytes) -> Pixels:
        return decode(data, max_pixels=self._max_image_pixels)
