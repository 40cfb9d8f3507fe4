"""What is asked for with GET: `/health`, `/info`, and the OpenAPI page at `/docs` and `/`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from embedder import __version__
from embedder.engine import Engine
from embedder.http.bentoml_private import docs_page

# BentoML's page carries Google's tag manager. A reader's browser must talk to this service alone.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-src 'none'; frame-ancestors 'none'"
)

_LIMITS = (
    *("max_batch_size", "max_urls", "max_body_bytes", "max_image_bytes", "max_image_pixels"),
    *("max_in_flight_images", "max_in_flight_bytes", "max_decoding_bytes"),
    *("fetch_timeout_s", "connect_timeout_s", "max_redirects", "decode_timeout_s"),
)
"""The settings that `/info` shows under `limits`."""


def pages(engine: Engine, *, health: Callable[[], str]) -> Starlette:
    """`health` gives "healthy", "draining" or "unhealthy"."""

    @cache  # 5 ms to make, and nothing limits how many ask at once
    def info() -> bytes:
        return orjson.dumps(describe(engine))

    async def health_view(_: Request) -> Response:
        status = health()
        return _json(orjson.dumps({"status": status}), status=200 if status == "healthy" else 503)

    async def info_view(_: Request) -> Response:
        return _json(info())

    async def docs_view(_: Request) -> Response:
        return HTMLResponse(docs_page(), headers={"Content-Security-Policy": _PAGE_POLICY})

    return Starlette(
        routes=[
            Route("/health", health_view),
            Route("/info", info_view),
            Route("/docs", docs_view),
            Route("/", docs_view),
        ]
    )


def describe(engine: Engine) -> Mapping[str, object]:
    """What `/info` shows: the model with the metadata that it was saved with, the settings in force."""
    settings, spec = engine.settings, engine.spec
    return {
        "model": {"tag": spec.tag, **engine.model.resolve().info.metadata},
        "fingerprint": spec.fingerprint,
        "dimension": spec.dimension,
        "precision": settings.precision,
        "workers": settings.workers,
        "threads": settings.threads,
        "batching": settings.batching,
        "decoders": settings.decoders,
        "formats": [format.name for format in engine.formats],
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
                for package in ("bentoml", "onnxruntime", "pillow", "aiohttp", "numpy")
            },
        },
    }


def _json(content: bytes, *, status: int = 200) -> Response:
    return Response(content, status_code=status, media_type="application/json")
