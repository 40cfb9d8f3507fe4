"""The Bento: each route is a dialect in, the network, a dialect out.

    POST /embed, /embed_batch ─► dialect ─► pipeline: fetch, decode ─► batcher ─► encoder ─► dialect

`embedder/engine.py` is what it runs on; `embedder/http/bentoml_io.py` joins the two.
"""

from __future__ import annotations

import asyncio
import gc
import os
from functools import partial

import bentoml
from bentoml.exceptions import BentoMLConfigException
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.types import ASGIApp
from uvicorn.config import HTTP_PROTOCOLS

from embedder.engine import Engine, StartError
from embedder.errors import Draining
from embedder.http import bentoml_private
from embedder.http.admission import Admission
from embedder.http.api_keys import APIKeys
from embedder.http.bentoml_io import api, respond
from embedder.http.body import BODY_TIMEOUT_S
from embedder.http.cors import cors
from embedder.http.dialects import Dialect, Json, embed, embed_batch, openai, tei, texts, upload, weaviate
from embedder.http.gate import Gate
from embedder.http.openapi import openapi_document
from embedder.http.pages import pages, routes
from embedder.http.uvicorn_private import Connection
from embedder.metrics.measures import Metrics
from embedder.metrics.worker_gauges import report
from embedder.runtime.file_limits import raise_descriptor_limit
from embedder.runtime.memory import spare_memory
from embedder.runtime.shutdown import Shutdown
from embedder.settings import SettingError, Settings

# What importing this file changes in the process. Importing the package changes nothing.
HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__qualname__}"  # BentoML lets uvicorn choose
spare_memory()

if (packed := bentoml_private.packed_model()) and not os.environ.get("EMBEDDER_MODEL"):
    os.environ["EMBEDDER_MODEL"] = packed  # in a Bento, whichever model it was built with

try:
    settings = Settings.from_environ(os.environ)
except SettingError as error:
    raise BentoMLConfigException(str(error)) from None  # which BentoML's commands print as one line

# For a request as a whole: reading its body, fetching, and the time that images in work need for the network.
REQUEST_TIMEOUT_S = BODY_TIMEOUT_S + settings.fetch_timeout_s + 35

metrics_folder = bentoml_private.metrics_folder()  # the workers of one server have it to themselves
cores_file = metrics_folder / f"cores-{os.getppid()}" if metrics_folder else None
engine = Engine(settings, metrics=Metrics(REGISTRY), cores_file=cores_file)
shutdown = Shutdown(limit_s=REQUEST_TIMEOUT_S + 5)  # the last requests are still to be answered
# Those that have strings for images, and several of them. Of the model nothing is known while this file is imported.
of_texts = (lambda: engine.spec, settings.max_inputs, texts.Texts(settings.probe_inputs))
batches = (embed_batch.EmbedBatch(settings.max_urls), upload.UploadBatch(settings.max_urls))


class EmbedderService(bentoml_private.GatedService):
    lane = engine.lane if settings.batching == "eager" else None
    respond = staticmethod(partial(respond, engine))

    @staticmethod
    def gated(app: Starlette, dialects: list[Dialect]) -> ASGIApp:
        gate = Gate(
            Admission(app, check_room=check_room),
            routes(dialects, engine),
            keys=APIKeys(settings.api_keys),
            metrics=engine.metrics,
            timeout_s=REQUEST_TIMEOUT_S,
            open_routes=settings.open_routes,
        )
        return bentoml_private.within_cors(app, gate)

    @staticmethod
    def document(base: Json, dialects: list[Dialect]) -> Json:
        open_paths = routes(dialects, engine).open_paths(settings.open_routes)
        return openapi_document(base, dialects, engine, open_paths)


def check_room() -> None:
    """Raises what every request is answered now, whatever it asks for."""
    if shutdown.stopping:
        raise Draining
    engine.pipeline.check_room(1)


def health() -> str:
    if shutdown.begun:
        return "draining"
    return "healthy" if engine.healthy else "unhealthy"


@bentoml.service(
    name="image_embedder",
    service_class=EmbedderService,
    workers=settings.workers,
    http={"port": settings.port, **cors(settings.cors_origins)},
    logging={"access": {"enabled": False}},
    traffic={"timeout": REQUEST_TIMEOUT_S},
)
@bentoml.asgi_app(pages(engine, health=health))
class ImageEmbedder:
    """Image URLs in, L2-normalised embeddings out."""

    model = engine.model  # so that BentoML packs it

    @bentoml.on_deployment
    def check() -> None:
        """Once, before there are workers: one that can't start is started again without end."""
        try:
            engine.check()
        except StartError as error:
            raise BentoMLConfigException(str(error)) from None
        # Workers inherit it: one that is replaced serves what the others serve, whatever is saved meanwhile.
        os.environ["EMBEDDER_MODEL"] = engine.spec.tag

    @bentoml.on_startup
    async def start(self) -> None:
        raise_descriptor_limit()
        await engine.start()
        self.reporting = asyncio.create_task(report(engine.metrics, folder=metrics_folder, **engine.gauges()))
        shutdown.install()
        # What is there by now stays: collecting it took a fifth of the event loop's time.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        self.reporting.cancel()
        await engine.close()

    async def __is_ready__(self) -> bool:
        return health() == "healthy"

    embed = api(engine, "embed", embed.Embed(), tei.TEI(*of_texts), upload.Upload())
    embed_batch = api(engine, "embed_batch", *batches)
    embeddings = api(engine, "embeddings", openai.OpenAI(*of_texts))
    vectors = api(engine, "vectors", weaviate.Vectors())
    vectorize = api(engine, "vectorize", weaviate.Vectorize(settings.max_inputs))
