"""`POST /embed`: one URL in, one embedding out; an image's failure is the request's failure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from embedder.engine import Result
from embedder.errors import EmbedderError, InvalidRequest
from embedder.http.dialects import Documentation, Query, Reply
from embedder.http.dialects.native import (
    EXAMPLE_ERRORS,
    EXAMPLE_URL,
    IMAGE_HEADERS,
    MAX_VALUES,
    MEDIA_TYPES,
    error_reply,
    example_embedding,
    image_headers,
    json_object,
    json_operation,
    json_reply,
)
from embedder.model.spec import ModelSpec


class EmbedRequest(BaseModel):
    """One image."""

    url: str = Field(
        description="Where the image is: http(s), or a `data:` URL that carries the image itself.",
        examples=[EXAMPLE_URL],
        json_schema_extra={"format": "uri"},
    )


class EmbedResponse(BaseModel):
    """The image's embedding."""

    embedding: list[float] = Field(description="float32, of Euclidean norm 1.")


class Embed:
    path = "/embed"
    media_types = MEDIA_TYPES
    request_model = EmbedRequest
    response_model = EmbedResponse

    def parse(self, body: bytes, headers: Headers) -> Query:
        url = json_object(body, max_values=MAX_VALUES).get("url")
        if not isinstance(url, str):
            raise InvalidRequest('the body has no text under "url": send {"url": "https://..."}')
        return Query([url])

    def render(self, query: Query, results: Sequence[Result]) -> Reply:
        (result,) = results
        if result.error is not None:
            raise result.error
        return json_reply({"embedding": result.embedding}, headers=image_headers(result))

    def error(self, error: EmbedderError) -> Reply:
        return error_reply(error)

    def document(self, spec: ModelSpec) -> Documentation:
        response = EmbedResponse.model_json_schema()
        response["properties"]["embedding"] |= {"minItems": spec.dimension, "maxItems": spec.dimension}
        return Documentation(
            operation=json_operation(
                summary="The embedding of one image",
                description="Downloads the image, decodes it, and returns its embedding.",
                request="EmbedRequest",
                example={"url": EXAMPLE_URL},
                response="EmbedResponse",
                answer={"embedding": example_embedding(spec)},
                errors=EXAMPLE_ERRORS,
                headers=IMAGE_HEADERS,
            ),
            schemas={"EmbedRequest": EmbedRequest.model_json_schema(), "EmbedResponse": response},
        )
