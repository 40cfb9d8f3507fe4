"""What is asked for with GET: `/health`, `/info`, the OpenAPI page at `/docs` and `/`, and `/playground`.

And what clients of other services ask for: `/v1/models` OpenAI's, `/meta` and `/.well-known/` Weaviate's.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedder import __version__
from embedder.engine import Engine
from embedder.http.dialects import Dialect, json_reply
from embedder.http.dialects.openai import models
from embedder.http.gate import Routes
from embedder.http.pages import docs, playground
from embedder.model.spec import ModelSpec

_LIMITS = (
    *("max_batch_size", "max_urls", "max_inputs", "max_body_bytes", "max_image_bytes", "max_image_pixels"),
    *("max_in_flight_images", "max_in_flight_bytes", "max_decoding_bytes"),
    *("fetch_timeout_s", "connect_timeout_s", "max_redirects", "decode_timeout_s"),
)
"""The settings that `/info` shows under `limits`."""


def pages(engine: Engine, *, health: Callable[[], str]) -> Starlette:
    """`health` gives "healthy", "draining" or "unhealthy"."""

    @cache  # 5 ms to make, and nothing limits how many ask at once
    def info() -> Mapping[str, object]:
        return describe(engine)

    async def health_view(_: Request) -> Response:
        status = health()
        return json_reply({"status": status}, status=200 if status == "healthy" else 503)

    async def info_view(_: Request) -> Response:
        return json_reply(info())

    async def well_known_view(_: Request) -> Response:
        return Response(status_code=204 if health() == "healthy" else 503)

    async def models_view(_: Request) -> Response:
        return json_reply({"object": "list", "data": models(engine.spec)})

    async def model_view(_: Request) -> Response:
        return json_reply(models(engine.spec)[0])

    return Starlette(
        routes=[
            Route("/health", health_view),
            Route("/info", info_view),
            Route("/meta", info_view),
            Route("/.well-known/live", well_known_view),
            Route("/.well-known/ready", well_known_view),
            *(Route(path, models_view) for path in _MODELS),
            *(Route(path + "/{name}", model_view) for path in _MODELS),
            *docs.routes(),
            *(playground.routes() if engine.settings.playground else ()),
        ]
    )


_MODELS = ("/v1/models", "/models")


def routes(dialects: Sequence[Dialect], engine: Engine) -> Routes:
    """Every path there is: the dialects' and the pages'."""
    open_pages = playground.paths() if engine.settings.playground else ()
    return Routes(dialects, docs.paths(), _model_paths(engine.spec), open_pages)


def _model_paths(spec: ModelSpec) -> list[str]:
    """Where the model is described: the list of all, and it alone, by its tag and by its name."""
    names = ("", f"/{spec.tag}", f"/{spec.tag.partition(':')[0]}")
    return [path + name for path in _MODELS for name in names]


def describe(engine: Engine) -> Mapping[str, object]:
    """What `/info` shows: the model with the metadata that it was saved with, the settings in force."""
    settings, spec = engine.settings, engine.spec
    metadata = engine.model.resolve().info.metadata
    return {
        # What clients of text-embeddings-inference read, beside what is ours.
        "model_id": spec.tag,
        "model_sha": metadata.get("weights_sha256"),
        "model_dtype": "float32",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": settings.max_in_flight_images,
        "max_input_length": settings.max_body_bytes,
        "max_batch_tokens": settings.max_batch_size,
        "max_client_batch_size": settings.max_inputs,
        "version": __version__,
        "model": {"tag": spec.tag, **metadata},
        "fingerprint": spec.fingerprint,
        "dimension": spec.dimension,
        "precision": settings.precision,
        "workers": settings.workers,
        "threads": settings.threads,
        "batching": settings.batching,
        "decoders": settings.decoders,
        "formats": [format.name for format in engine.formats],
        "renditions": list(settings.renditions),
        "limits": {
            **{name: getattr(settings, name) for name in _LIMITS},
            "allowed_hosts": list(settings.allowed_hosts),
            "allowed_ports": sorted(settings.allowed_ports),
        },
        "versions": {
            "image-embedder": __version__,
            "python": platform.python_version(),
            **{
                package: version(package)
                for package in ("bentoml", "onnxruntime", "pillow", "httptools", "numpy")
            },
        },
    }
