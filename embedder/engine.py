"""Settings and a stored model → embeddings, without HTTP and without a BentoML server.

sources ─► pipeline: fetch, decode ─► batcher ─► encoder ─► results

async with Engine(Settings()) as engine:
    results = await engine.embed(["https://example.org/a.jpg", image_bytes])
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from embedder import __version__
from embedder.cache import EmbeddingCache
from embedder.errors import EmbedderError, InternalError, Overloaded, StartError, megabytes
from embedder.fetch.addresses import AddressPolicy
from embedder.fetch.data_url import Base64
from embedder.fetch.dialling import check_own_addresses_are_known
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.renditions import Renditions
from embedder.fetch.urls import URLPolicy
from embedder.images.decoders import Decoders, Room
from embedder.images.formats import FORMATS, ON, Format, named
from embedder.metrics.measures import Metrics
from embedder.model import openvino_runtime
from embedder.model.batching import Array, Batcher, Lane, together
from embedder.model.encoder import Embeddings, Encoder, Pixels
from embedder.model.spec import ModelSpec
from embedder.model.store import EmbeddingModel
from embedder.pipeline import DecodedImage, Pipeline, Source
from embedder.result import Result
from embedder.runtime.byte_budget import ByteBudget
from embedder.runtime.cores import Cores
from embedder.runtime.cpu import available_cores
from embedder.runtime.memory import mappable_bytes
from embedder.runtime.threads import started_threads
from embedder.settings import Settings, later_mapped_bytes

__all__ = ["Base64", "Engine", "Result", "Source", "StartError"]

logger = logging.getLogger(__name__)

RETRY_S = 1.0
# An image that finds no room is tried again: the images that have the room are done in seconds.
MAX_TRIES = 60
MIN_BF16_COSINE = 0.995
"""Below this, between bf16 and fp32, no network is served in bf16."""
_MAX_LATENCY_S = 600.0


SHARED_WINDOW = 32
"""How many of a request's images are in work at once where it has many: enough to hide the time of downloads."""


@dataclass(frozen=True)
class _Share:
    """What a caller of `stream` may have at once. As it is made, all there is."""

    decoding: asyncio.Semaphore | None = None
    encoding: AbstractAsyncContextManager[None] = field(default_factory=nullcontext)
    beside: int = 0
    """How many places it leaves to others."""


class Engine:
    """Makes embeddings. One to a process; start it, use it and close it on one event loop.

    `check` and `start` are what changes the process: an environment variable keeps ONNX Runtime from reporting
    its use, and threads are started.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics | None = None,
        cores_file: Path | None = None,
    ) -> None:
        """Without `metrics` nothing is counted where somebody could read it.

        `cores_file` is where the processes of one server tell each other which cores they use.
        """
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.model = EmbeddingModel(settings.model)
        self.byte_budget = ByteBudget(settings.max_in_flight_bytes)
        cores = available_cores()
        # One image can't keep more than a few cores busy.
        self._threads_alone = max(settings.threads, min(cores, 4))
        self._batches = max(1, cores // settings.threads)
        self._cores = Cores(self._batches, file=cores_file)
        # One for each batch that may be under way, and one for the image that tries a failed network again.
        self._encode_threads = cores + 1
        self.lane = Lane(self._cores, self.metrics)
        self._submit = Batcher(
            self.lane, max_batch_size=settings.max_batch_size, max_latency_s=_MAX_LATENCY_S
        )(self._infer)
        self._encoders: ThreadPoolExecutor
        self._retrying: asyncio.Task[None]

    @cached_property
    def spec(self) -> ModelSpec:
        """The model's. Raises BentoMLException, in one sentence, where there is none that can be served."""
        return replace(self.model.spec(self.settings.precision), renditions=self.settings.renditions)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(
            self.spec,
            threads=self.settings.threads,
            threads_alone=self._threads_alone,
            batches=self._batches,
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        settings = self.settings
        fetcher = Fetcher(
            URLPolicy(
                allowed_hosts=settings.allowed_hosts,
                allowed_ports=settings.allowed_ports,
                addresses=AddressPolicy(settings.allowed_networks),
            ),
            metrics=self.metrics,
            max_bytes=settings.max_image_bytes,
            timeout_s=settings.fetch_timeout_s,
            connect_timeout_s=settings.connect_timeout_s,
            max_redirects=settings.max_redirects,
            max_connections=settings.max_in_flight_images,
            version=__version__,
            contact=settings.contact,
            proxy=settings.proxy,
            formats=self.formats,
        )
        decoders = Decoders(
            self.spec.preprocessing,
            room=Room(
                settings.decoders,
                settings.max_decoding_bytes,
                settings.decode_timeout_s,
                settings.max_image_pixels,
            ),
            formats=self.formats,
            max_file_bytes=settings.max_image_bytes,
            metrics=self.metrics,
        )
        return Pipeline(
            fetcher,
            decoders,
            renditions=self.renditions,
            cache=EmbeddingCache(settings.cache_entries),
            byte_budget=self.byte_budget,
            metrics=self.metrics,
            max_in_flight_images=settings.max_in_flight_images,
            max_image_bytes=settings.max_image_bytes,
        )

    @cached_property
    def formats(self) -> tuple[Format, ...]:
        """Those that are decoded. Raises StartError for a name that is none."""
        if not self.settings.formats:
            return ON
        known = {format.name.lower() for format in FORMATS}
        unknown = [name for name in self.settings.formats if name not in known]
        if unknown:
            raise StartError(f"EMBEDDER_FORMATS names {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return named(name.upper() for name in self.settings.formats)

    @cached_property
    def renditions(self) -> Renditions:
        """Raises StartError for a CDN that is none."""
        try:
            return Renditions(self.settings.renditions, crop=self.spec.preprocessing.crop)
        except ValueError as error:
            raise StartError(str(error)) from error

    @property
    def healthy(self) -> bool:
        """Whether the network works: False from a failed batch until a blank image goes through it again."""
        return self.encoder.healthy

    def gauges(self) -> Mapping[str, Callable[[], int]]:
        """What is in work, for `metrics/worker_gauges.py`."""
        return {
            "in_flight_images": lambda: self.pipeline.in_flight_images,
            "in_flight_bytes": lambda: self.byte_budget.total_bytes,
        }

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start threads, load the network.

        Raises StartError and BentoMLException as `check` does, in one sentence.
        """
        self._encoders = started_threads(self._encode_threads, "encode")
        try:
            # On one of them, so that ONNX Runtime's own threads are as nice as they are.
            await asyncio.get_running_loop().run_in_executor(self._encoders, self._load, self.encoder)
            await self.pipeline.start()
        except BaseException:
            self._encoders.shutdown(wait=False)
            raise
        self._retrying = asyncio.create_task(self._retry_failed_encoder())

    def check(self) -> None:
        """What would keep `start` from working, found without starting: for whoever starts it again when it fails.

        Raises StartError for the machine and BentoMLException for the model, in one sentence.
        """
        mappable, needed = mappable_bytes(), later_mapped_bytes(self.settings)
        if mappable is not None and mappable < needed:
            raise StartError(
                f"a process may map {megabytes(mappable)} more and a worker takes {megabytes(needed)}: "
                "raise its limit (`ulimit -v` or `ulimit -d`)"
            )
        check_own_addresses_are_known()
        self.pipeline.decoders.check()
        self.model.check_file(self.settings.precision)
        encoder = Encoder(self.spec, threads=1, threads_alone=1)  # which is forgotten again
        self._load(encoder)
        if self.settings.precision == "bf16":
            self._check_nearness(encoder)

    def _check_nearness(self, encoder: Encoder) -> None:
        """Raises StartError where `encoder`'s embeddings are far from those in fp32: nobody measured it before.

        Dark surfaces show it: ResNet18 has 0.9998 at least, and 0.99996 on photos; EfficientNet-Lite0 0.978, and on
        one photo 0.90. With noise in place of surfaces it has 0.996.
        """
        exact = Encoder(replace(self.spec, precision="fp32"), threads=1, threads_alone=1)
        self._load(exact)
        crop = self.spec.preprocessing.crop
        surfaces = np.random.default_rng(0).integers(0, 16, (8, crop // 32 + 1, crop // 32 + 1, 3), np.uint8)
        pixels = np.ascontiguousarray(surfaces.repeat(32, axis=1).repeat(32, axis=2)[:, :crop, :crop])
        cosine = float((encoder.encode(pixels) * exact.encode(pixels)).sum(axis=1).min())
        if not cosine >= MIN_BF16_COSINE:  # not "<": a NaN is refused
            raise StartError(
                f"in bf16 this network's embeddings have a cosine of {cosine:.3f} with those in fp32: "
                "serve it in fp32 (EMBEDDER_PRECISION=fp32)"
            )

    def _load(self, encoder: Encoder) -> None:
        if self.settings.precision == "bf16" and (reason := openvino_runtime.unusable()):
            raise StartError(f"{reason}; EMBEDDER_PRECISION=fp32 serves the same file")
        file = self.model.file(self.settings.precision)
        try:
            encoder.load(file)
        except MemoryError as error:
            raise StartError(str(error)) from error
        except Exception as error:  # the runtimes' have no base class of their own
            raise self.model.unusable(str(error).partition("\n")[0]) from error

    async def close(self) -> None:
        self._retrying.cancel()
        await self.pipeline.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def embed(self, sources: Iterable[Source]) -> list[Result]:
        """One result for each source, in their order, however many there are. Raises nothing for a source."""
        return [result async for result in self.stream(sources)]

    async def stream(
        self, sources: Iterable[Source], *, hashed: bool = True, shared: bool = False
    ) -> AsyncGenerator[Result, None]:
        """The results, in the order of `sources`, as they come.

        As many are in work at once as the budget of bytes has room for the largest image, and at most
        `max_in_flight_images`. `sources` is read that far ahead and no further. Where the engine is `shared`
        with others, it is SHARED_WINDOW, of which two are decoded and two wait for the network; and half of all
        places are left to the others, also while these wait for slow origins.
        """
        window = min(SHARED_WINDOW, self._window()) if shared else self._window()
        half = self.settings.max_in_flight_images // 2
        share = _Share(asyncio.Semaphore(2), asyncio.Semaphore(2), beside=half) if shared else _Share()
        tasks: deque[asyncio.Task[Result]] = deque()
        try:
            for source in sources:
                if len(tasks) == window:
                    yield await tasks.popleft()
                tasks.append(asyncio.create_task(self._result(source, hashed, share)))
            while tasks:
                yield await tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def pixels(self, sources: Sequence[Source]) -> list[NDArray[np.uint8] | EmbedderError]:
        """What the network would see of each source, uint8 (crop, crop, 3), RGB; or its error. In their order.

        SHARED_WINDOW of them are in work at once, or fewer, as in `stream`; two are decoded. Raises ValueError in an
        engine that keeps embeddings: of a file that it knows it makes no pixels.
        """
        if self.settings.cache_entries:
            raise ValueError("pixels are made with cache_entries=0")
        window = min(SHARED_WINDOW, self._window())
        decoding = asyncio.Semaphore(2)  # of more, large ones are told to come again
        found: list[NDArray[np.uint8] | EmbedderError] = []
        for first in range(0, len(sources), window):
            some = sources[first : first + window]
            with self.pipeline.places(len(some)):
                for outcome in await self.pipeline.outcomes(some, decoding=decoding):
                    if isinstance(outcome, DecodedImage):
                        found.append(outcome.pixels)
                    else:
                        found.append(outcome.error or InternalError())
        return found

    async def encode(self, pixels: Pixels) -> Embeddings:
        """`Encoder.encode` off the event loop: on the core that the batch took, or on those beside it too.

        Several threads serve one image only if nothing else needs the processor: threads that wait for each
        other at every layer lose more than they win where others want the cores. Downloads from a slow origin
        need none.
        """
        loop = asyncio.get_running_loop()
        if self.pipeline.busy_images() > 1:
            return await loop.run_in_executor(self._encoders, self.encoder.encode, pixels)
        beside = self._threads_alone // self.settings.threads - 1
        taken = self._cores.take(up_to=beside)
        if taken < beside:
            self._cores.give_back(taken)
            return await loop.run_in_executor(self._encoders, self.encoder.encode, pixels)
        try:
            return await loop.run_in_executor(self._encoders, lambda: self.encoder.encode(pixels, alone=True))
        finally:
            self._cores.give_back(taken)

    def _window(self) -> int:
        """How many images may be in work at once, each as large as may be."""
        settings = self.settings
        return min(
            settings.max_in_flight_images, max(1, settings.max_in_flight_bytes // settings.max_image_bytes)
        )

    async def _result(self, source: Source, hashed: bool, share: _Share) -> Result:
        result = await self._try(source, hashed, share)
        for _ in range(MAX_TRIES - 1):
            if not isinstance(result.error, Overloaded):
                break
            await asyncio.sleep(RETRY_S)
            result = await self._try(source, hashed, share)
        return result

    async def _try(self, source: Source, hashed: bool, share: _Share) -> Result:
        try:
            with self.pipeline.places(1, beside=share.beside):
                (outcome,) = await self.pipeline.outcomes([source], hashed=hashed, decoding=share.decoding)
                if isinstance(outcome, Result):
                    return outcome
                async with share.encoding:
                    return await self._encoded(outcome)
        except EmbedderError as error:
            return Result(error=error)
        except Exception:  # the network failed, for the whole batch
            logger.exception("a batch failed in a way that was not foreseen")
            return Result(error=InternalError())

    async def _encoded(self, image: DecodedImage) -> Result:
        began_s = perf_counter()
        (embedding,) = await self._submit(image.pixels[np.newaxis])
        self.pipeline.remember(image, embedding)
        return image.result(embedding.copy(), encode_s=perf_counter() - began_s)  # a row would keep its batch

    async def _infer(self, batch: Sequence[Array]) -> Sequence[Array]:
        return await together(self.encode, batch)

    async def _retry_failed_encoder(self) -> None:
        """A server that is not ready gets no requests, so none would show that the network works again."""
        while True:
            await asyncio.sleep(RETRY_S)
            if not self.encoder.healthy:
                await asyncio.get_running_loop().run_in_executor(self._encoders, self.encoder.try_again)
