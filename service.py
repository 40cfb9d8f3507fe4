"""The Bento: each route is a wire format in, the encoder, a wire format out.

    POST /embed, /embed_batch ─► wire ─► intake: fetch, decode ─► BentoML's batcher ─► encoder ─► wire

Downloads happen before the batcher, in each request's own task: see `embedder/http/bentoml_io.py` for how,
and `embedder/pipeline.py` for what.
"""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import bentoml
from _bentoml_sdk import Service
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml.exceptions import BentoMLConfigException
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp
from uvicorn.config import HTTP_PROTOCOLS

from embedder import __version__
from embedder.cache import EmbeddingCache
from embedder.errors import Draining, megabytes
from embedder.fetch.addresses import AddressPolicy
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.urls import URLPolicy
from embedder.http.api_keys import APIKeys
from embedder.http.bentoml_io import BODY_TIMEOUT_S, Wiring, wired
from embedder.http.connection import Connection
from embedder.http.dialects.embed import EmbedRequest, EmbedResponse
from embedder.http.dialects.embed_batch import EmbedBatchRequest, EmbedBatchResponse
from embedder.http.gate import Door
from embedder.http.load_shedding import LoadShedding
from embedder.http.openapi import OpenAPIDocument, openapi_document
from embedder.http.pages import describe, pages
from embedder.metrics.worker_gauges import WorkerGauges
from embedder.model.batching import eager_batching
from embedder.model.encoder import Embeddings, Encoder, Pixels
from embedder.model.store import EmbeddingModel
from embedder.pipeline import Intake
from embedder.runtime.cpu import Cores, available_cores
from embedder.runtime.file_limits import raise_descriptor_limit
from embedder.runtime.memory import DecodingMemory, HeldBytes, mappable_bytes, spare_address_space
from embedder.runtime.shutdown import Drain
from embedder.runtime.threads import new_threads_give_way, started_threads
from embedder.settings import LATER_MAPPED_BYTES, SettingError, Settings

# BentoML leaves the choice to uvicorn, and this is what it then takes.
HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__qualname__}"

spare_address_space()
mappable = mappable_bytes()  # by a worker, too: it has the same limits, and has imported the same
try:
    settings = Settings.from_environ(os.environ)
except SettingError as error:
    raise BentoMLConfigException(str(error)) from None  # which BentoML's commands print as one line

# When a request is given up as a whole: later than reading the body and fetching may take, plus the time
# that images in work take to pass through the network.
REQUEST_TIMEOUT_S = BODY_TIMEOUT_S + settings.fetch_timeout_s + 35

RETRY_S = 1.0

CORES = available_cores()
# One image can't keep more than a few cores busy.
THREADS_ALONE = max(settings.threads, min(CORES, 4))

# BentoML's for its workers' metrics: they have it to themselves, and it is empty when they start. It is
# elsewhere than its configuration says where that can't be written; None in a process that is no worker.
_folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
WORKERS_FOLDER = Path(_folder) if _folder else None

embedding_model = EmbeddingModel(settings.model)
encoder = Encoder(threads=settings.threads, threads_alone=THREADS_ALONE)
cores = Cores.shared(
    max(1, CORES // settings.threads),
    folder=WORKERS_FOLDER,
    worker=bentoml.server_context.worker_index,
)
drain = Drain(limit_s=REQUEST_TIMEOUT_S + 5)  # the last of them is still to be answered
held_bytes = HeldBytes(settings.max_in_flight_bytes)
intake = Intake(
    Fetcher(
        URLPolicy(
            allowed_hosts=settings.allowed_hosts,
            allowed_ports=settings.allowed_ports,
            addresses=AddressPolicy(settings.allowed_networks),
        ),
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.fetch_timeout_s,
        max_redirects=settings.max_redirects,
        max_connections=settings.max_in_flight_images,
    ),
    cache=EmbeddingCache(settings.cache_entries),
    held_bytes=held_bytes,
    decoding_memory=DecodingMemory(settings.max_decoding_bytes),
    max_in_flight_images=settings.max_in_flight_images,
    max_image_bytes=settings.max_image_bytes,
    max_image_pixels=settings.max_image_pixels,
    decode_threads=max(4, CORES),
)
worker_gauges = WorkerGauges(
    in_flight_images=lambda: intake.in_flight_images,
    in_flight_bytes=lambda: held_bytes.total_bytes,
    folder=WORKERS_FOLDER,
)
wiring = Wiring(
    intake=intake,
    held_bytes=held_bytes,
    max_body_bytes=settings.max_body_bytes,
    max_urls=settings.max_urls,
    model_tag=lambda: str(embedding_model.resolve().tag),
)


class EmbedderService(Service):  # type: ignore[misc]  # BentoML's SDK ships no types
    """BentoML's service with a batcher that does not wait, and an OpenAPI document that tells all."""

    @property
    def openapi_spec(self) -> OpenAPIDocument:
        base = super().openapi_spec.asdict()
        return openapi_document(base, title=self.name, version=__version__, settings=settings)

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        with eager_batching(cores):
            app: Starlette = super().to_asgi(is_main)
        # The door has a timeout, which reaches the request: BentoML's has it run in a task of its own.
        unwanted: list[object] = [TimeoutMiddleware]
        if BentoMLContainer.config.tracing.exporter_type.get() is None:  # spans that would go nowhere
            unwanted.append(OpenTelemetryMiddleware)
        app.user_middleware = [
            *(m for m in app.user_middleware if m.cls not in unwanted),
            Middleware(LoadShedding, check_room=check_room),  # which BentoML counts, and other sites may read
        ]
        return Door(
            app,
            keys=APIKeys(settings.api_keys),
            timeout_s=REQUEST_TIMEOUT_S,
            open_routes=settings.open_routes,
            answers_preflight=bool(BentoMLContainer.http.cors.enabled.get()),
        )


def check_room() -> None:
    """Raises what every request is answered now, whatever it asks for."""
    if drain.stopping:
        raise Draining
    intake.check_room(1)


async def encode(pixels: Pixels) -> Embeddings:
    """Off the event loop, on the core that its batch took; an image that is alone, on those beside it too."""
    beside = THREADS_ALONE // settings.threads - 1
    # Alone means that nothing is fetched or decoded either: threads that wait for each other at every layer
    # lose more than they win where others want the cores. What waits for a slow origin wants none.
    if intake.busy_images() > 1 or cores.free() < beside:
        return await asyncio.to_thread(encoder.encode, pixels)
    cores.take(beside)
    try:
        return await asyncio.to_thread(encoder.encode, pixels, alone=True)
    finally:
        cores.give_back(beside)


async def retry_failed_encoder() -> None:
    """Who is not ready is sent no requests, so none would show that the network works again."""
    while True:
        await asyncio.sleep(RETRY_S)
        if not encoder.healthy:
            await asyncio.to_thread(encoder.try_again)


def health() -> str:
    if drain.begun:
        return "draining"
    return "healthy" if encoder.healthy else "unhealthy"


def info() -> dict[str, object]:
    model = embedding_model.resolve()
    return describe(settings, tag=str(model.tag), metadata=model.info.metadata)


@bentoml.service(
    name="image_embedder",
    service_class=EmbedderService,
    workers=settings.workers,
    http={"port": settings.port},
    logging={"access": {"enabled": False}},
    traffic={"timeout": REQUEST_TIMEOUT_S},
)
@bentoml.asgi_app(pages(health=health, info=info))
class ImageEmbedder:
    """Image URLs in, L2-normalised 512-d ResNet18 embeddings out."""

    model = embedding_model  # so that BentoML packs it

    @bentoml.on_deployment
    def check() -> None:
        """Once, before there are workers: one that can't start is started again for ever."""
        if mappable is not None and mappable < LATER_MAPPED_BYTES:
            raise BentoMLConfigException(
                f"a process may map {megabytes(mappable)} more and a worker takes "
                f"{megabytes(LATER_MAPPED_BYTES)}: raise its limit (`ulimit -v` or `ulimit -d`)"
            )
        embedding_model.check_file(settings.precision)
        try:
            Encoder(threads=1, threads_alone=1).load(embedding_model.onnx_file(settings.precision))
        except Exception as error:  # ONNX Runtime's have nothing in common
            raise embedding_model.unusable(str(error).partition("\n")[0]) from None

    def __init__(self) -> None:
        with new_threads_give_way():  # ONNX Runtime's own
            encoder.load(embedding_model.onnx_file(settings.precision))

    @bentoml.on_startup
    async def start(self) -> None:
        raise_descriptor_limit()
        # For `encode`: a thread for each batch that may be under way, and one beside them.
        asyncio.get_running_loop().set_default_executor(started_threads(CORES + 1, "encode"))
        await intake.start()
        worker_gauges.start()
        self._retrying = asyncio.create_task(retry_failed_encoder())
        drain.install()
        # What is there by now stays. Looking through it again and again took the garbage collector a fifth
        # of the event loop's time.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        self._retrying.cancel()
        worker_gauges.close()
        await intake.close()

    async def __is_ready__(self) -> bool:
        return health() == "healthy"

    @bentoml.api(
        route="/embed",
        batchable=True,
        max_batch_size=settings.max_batch_size,
        input_spec=wired(EmbedRequest, wiring),
        output_spec=wired(EmbedResponse, wiring),
    )
    async def embed(self, pixels: Pixels) -> Embeddings:
        """The embedding of one image."""
        return await encode(pixels)

    @bentoml.api(
        route="/embed_batch",
        batchable=True,
        max_batch_size=settings.max_batch_size,
        input_spec=wired(EmbedBatchRequest, wiring),
        output_spec=wired(EmbedBatchResponse, wiring),
    )
    async def embed_batch(self, pixels: Pixels) -> Embeddings:
        """The embeddings of many images, an embedding or null for each, in their order."""
        return await encode(pixels)
