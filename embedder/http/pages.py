"""What is asked for with GET: `/health`, `/info`, and the OpenAPI page at `/docs` and `/`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from embedder import __version__
from embedder.http.bentoml_io import json_response
from embedder.model.encoder import DIMENSION
from embedder.settings import Settings

# BentoML's page carries Google's tag manager. Whoever opens this service's documentation talks to this
# service alone.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-src 'none'; frame-ancestors 'none'"
)


def pages(*, health: Callable[[], str], info: Callable[[], Mapping[str, object]]) -> Starlette:
    """`health` gives "healthy", "draining" or "unhealthy"; `info` gives what `/info` shows."""

    async def health_view(_: Request) -> Response:
        status = health()
        return json_response({"status": status}, status=200 if status == "healthy" else 503)

    async def info_view(_: Request) -> Response:
        return json_response(info())

    return Starlette(
        routes=[
            Route("/health", health_view),
            Route("/info", info_view),
            Route("/docs", _docs_view),
            Route("/", _docs_view),
        ]
    )


def describe(settings: Settings, *, tag: str, metadata: Mapping[str, object]) -> dict[str, object]:
    """What `/info` shows: the model `tag` with the `metadata` it was saved with, the settings in force."""
    return {
        "model": {"tag": tag, **metadata},
        "dimension": DIMENSION,
        "precision": settings.precision,
        "workers": settings.workers,
        "threads": settings.threads,
        "limits": {
            "max_batch_size": settings.max_batch_size,
            "max_urls": settings.max_urls,
            "max_body_bytes": settings.max_body_bytes,
            "max_image_bytes": settings.max_image_bytes,
            "max_image_pixels": settings.max_image_pixels,
            "max_in_flight_images": settings.max_in_flight_images,
            "max_in_flight_bytes": settings.max_in_flight_bytes,
            "max_decoding_bytes": settings.max_decoding_bytes,
            "fetch_timeout_s": settings.fetch_timeout_s,
            "max_redirects": settings.max_redirects,
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


async def _docs_view(_: Request) -> Response:
    page = resources.files("_bentoml_impl.server").joinpath("main-openapi.html").read_text("utf-8")
    return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})
