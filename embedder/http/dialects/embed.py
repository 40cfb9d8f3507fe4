"""`POST /embed`: one URL in, one embedding out; an image's failure is the request's failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from embedder.cache import Embedding
from embedder.errors import EmbedderError, InvalidRequest
from embedder.http.bentoml_io import RouteRequest, RouteResponse
from embedder.model.encoder import DIMENSION


class EmbedRequest(RouteRequest):
    """One image."""

    url: str = Field(
        description="Where the image is: http(s), or a base64 `data:` URL that carries the image itself.",
        examples=["https://res.cloudinary.com/demo/image/upload/sample.jpg"],
    )

    @classmethod
    def sources(cls, body: dict[str, Any]) -> list[str]:  # Any: JSON
        url = body.get("url")
        if not isinstance(url, str):
            raise InvalidRequest('the body has no text under "url": send {"url": "https://..."}')
        return [url]


class EmbedResponse(RouteResponse):
    """The image's embedding."""

    embedding: list[float] = Field(
        description=f"float32, {DIMENSION} numbers of Euclidean norm 1.",
        min_length=DIMENSION,
        max_length=DIMENSION,
    )

    @classmethod
    def render(cls, results: Sequence[Embedding | EmbedderError]) -> object:
        (result,) = results
        if isinstance(result, EmbedderError):
            raise result
        return {"embedding": result}
