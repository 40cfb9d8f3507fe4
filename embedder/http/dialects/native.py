"""What the service's own dialects share: `{"error", "code"}` for every error, and what an image was."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from embedder.engine import Result
from embedder.errors import EmbedderError
from embedder.http.dialects import JSON_TYPES, json_reply


class Native:
    """What a dialect has unless it says otherwise: JSON, and the service's own errors."""

    media_types: Sequence[str] = JSON_TYPES
    key: str | None = None
    families: Sequence[str] = ()

    def error(self, error: EmbedderError) -> Response:
        return error_reply(error)


IMAGE_HEADERS = {
    "X-Image-Format": "What the image was: JPEG, PNG, WEBP, ...",
    "X-Image-Size": "Its width and height in pixels, upright: 4000x3000.",
    "X-Image-Rendition": "true, where it was a smaller picture that its CDN made (EMBEDDER_RENDITIONS).",
}


def image_headers(result: Result) -> dict[str, str]:
    """`IMAGE_HEADERS`, of an image that has an embedding."""
    headers = {"X-Image-Format": f"{result.format}", "X-Image-Size": f"{result.width}x{result.height}"}
    return headers | ({"X-Image-Rendition": "true"} if result.rendition else {})


def error_reply(error: EmbedderError) -> Response:
    return json_reply({"error": str(error), "code": error.code}, status=error.status)
