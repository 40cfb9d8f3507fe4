"""`POST /embed_batch`: many URLs in, as many answers out, in their order; an image's failure is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema

from embedder.cache import Embedding
from embedder.errors import EmbedderError, InvalidRequest
from embedder.http.bentoml_io import RouteRequest, RouteResponse
from embedder.model.encoder import DIMENSION


class EmbedBatchRequest(RouteRequest):
    """Some images."""

    urls: list[str] = Field(
        description="Where the images are: http(s), or base64 `data:` URLs that carry the images themselves.",
        examples=[["https://res.cloudinary.com/demo/image/upload/sample.jpg"]],
    )

    @classmethod
    def sources(cls, body: dict[str, Any]) -> list[str]:  # Any: JSON
        urls = body.get("urls")
        if not isinstance(urls, list):
            raise InvalidRequest('the body has no list under "urls": send {"urls": ["https://...", ...]}')
        if len(urls) > cls.wiring.max_urls:
            raise InvalidRequest(f"the body has {len(urls)} URLs; the limit is {cls.wiring.max_urls}")
        for index, url in enumerate(urls):
            if not isinstance(url, str):
                raise InvalidRequest(f"urls[{index}] is not text")
        return urls


class ItemError(BaseModel):
    """Why one image has no embedding."""

    index: int = Field(description="The image's place in `urls`, from 0.", ge=0)
    code: str = Field(description="What kind of error, for programs.")
    error: str = Field(description="What happened, for people.")


# Two types in one place, not an `anyOf`: BentoML's client reads a value by the first of those, and fails on a
# null that should be a list.
_EmbeddingOrNull = Annotated[
    list[float] | None,
    WithJsonSchema(
        {"type": ["array", "null"], "items": {"type": "number"}, "minItems": DIMENSION, "maxItems": DIMENSION}
    ),
]


class EmbedBatchResponse(RouteResponse):
    """An embedding or null for each URL, in their order, and why for each null."""

    embeddings: list[_EmbeddingOrNull] = Field(description="As many as `urls`; null where there is none.")
    errors: list[ItemError] = Field(description="One for each null, in the order of their index.")

    @classmethod
    def render(cls, results: Sequence[Embedding | EmbedderError]) -> object:
        return {
            "embeddings": [None if isinstance(result, EmbedderError) else result for result in results],
            "errors": [
                {"index": index, "code": result.code, "error": str(result)}
                for index, result in enumerate(results)
                if isinstance(result, EmbedderError)
            ],
        }
