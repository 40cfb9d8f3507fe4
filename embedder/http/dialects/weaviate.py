"""What Weaviate's self-hosted modules ask for: `POST /vectors` of img2vec-neural, `POST /vectorize` of multi2vec-clip.

Its Go clients parse an answer before they look at its status, and an error's `error` must be a string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema
from starlette.responses import Response

from embedder.engine import Result, Source
from embedder.errors import EmbedderError, InputError, InvalidRequest, TextNotSupported
from embedder.http.body import Body
from embedder.http.dialects import (
    Documentation,
    Group,
    Query,
    all_embeddings,
    documents,
    expected_model,
    json_reply,
)
from embedder.http.dialects.native import Native
from embedder.http.dialects.texts import url_or_base64
from embedder.model.spec import ModelSpec

_MAX_ID_CHARACTERS = 1000


GROUP = Group("Weaviate", "For its modules img2vec-neural and multi2vec-clip")


class VectorsRequest(BaseModel):
    """One image."""

    id: str | None = Field(default=None, description="Comes back.", max_length=_MAX_ID_CHARACTERS)
    image: str = Field(description="Base64, or a URL.", json_schema_extra={"format": "byte"})


class VectorsResponse(BaseModel):
    """Its embedding."""

    id: str | None
    vector: list[float]
    dim: int
    error: str = Field(description="Empty.")


class Vectors(Native):
    paths = ("/vectors",)
    request_model: type[BaseModel] = VectorsRequest
    response_model: type[BaseModel] = VectorsResponse

    async def parse(self, body: Body) -> Query:
        content = await body.json()
        name = content.get("id")
        if name is not None and not isinstance(name, str):
            raise InvalidRequest('"id" is not text')
        # It is held until it is answered, and counted nowhere.
        if name is not None and len(name) > _MAX_ID_CHARACTERS:
            raise InvalidRequest(f'"id" has {len(name)} characters; the limit is {_MAX_ID_CHARACTERS}')
        return Query([_image(content.get("image"))], options=name, model=expected_model(content))

    def render(self, options: str | None, results: Sequence[Result]) -> Response:
        (result,) = results
        if result.embedding is None:
            raise result.error or InvalidRequest("no image")
        content = {"id": options, "vector": result.embedding, "dim": len(result.embedding), "error": ""}
        return json_reply(content)

    def document(self, spec: ModelSpec) -> Documentation:
        vector = documents.example_embedding(spec)
        return Documentation(
            operation=documents.operation(
                summary="The embedding of one image, for Weaviate's img2vec-neural",
                description="`id` comes back, and need not be there.",
                takes=documents.json_content(
                    "VectorsRequest", {"id": "1_0", "image": documents.EXAMPLE_BASE64}
                ),
                answers=documents.json_content(
                    "VectorsResponse", {"id": "1_0", "vector": vector, "dim": spec.dimension, "error": ""}
                ),
            ),
            schemas=documents.schemas(VectorsRequest, VectorsResponse),
            group=GROUP,
        )


class VectorizeRequest(BaseModel):
    """Some images."""

    images: list[Annotated[str, WithJsonSchema({"type": "string", "format": "byte"})]] | None = Field(
        default=None, description="Base64, or URLs."
    )
    texts: list[str] | None = Field(default=None, description="None: text has no vectors here.", max_length=0)


class VectorizeResponse(BaseModel):
    """Their embeddings, in their order."""

    textVectors: list[list[float]]
    imageVectors: list[list[float]]
    error: str = Field(description="Empty.")


class Vectorize(Native):
    paths = ("/vectorize",)
    request_model = VectorizeRequest
    response_model = VectorizeResponse

    def __init__(self, max_inputs: int) -> None:
        self._max_inputs = max_inputs

    async def parse(self, body: Body) -> Query:
        content = await body.json()
        # Its absent keys were nulls once.
        images, texts = ([] if content.get(key) is None else content[key] for key in ("images", "texts"))
        if not isinstance(images, list) or not isinstance(texts, list):
            raise InvalidRequest('"images" or "texts" is no list')
        if texts:
            raise TextNotSupported(repr(str(texts[0])[:40]))
        if len(images) > self._max_inputs:
            raise InvalidRequest(f"the body has {len(images)} images; the limit is {self._max_inputs}")
        sources = []
        for index, image in enumerate(images):
            try:
                sources.append(_image(image))
            except EmbedderError as error:
                raise InputError(error, f"images[{index}]") from error
        return Query(sources, all_or_nothing=True, model=expected_model(content))

    def render(self, options: None, results: Sequence[Result]) -> Response:
        vectors = all_embeddings(results, "images")
        return json_reply({"textVectors": [], "imageVectors": vectors, "error": ""})

    def error(self, error: EmbedderError) -> Response:
        where = f"{error.param}: " if isinstance(error, InputError) else ""
        return json_reply({"error": f"{where}{error}", "code": error.code}, status=error.status)

    def document(self, spec: ModelSpec) -> Documentation:
        known = documents.schemas(VectorizeRequest, VectorizeResponse)
        known["VectorizeRequest"]["properties"]["images"]["anyOf"][0]["maxItems"] = self._max_inputs
        answer = {"textVectors": [], "imageVectors": [documents.example_embedding(spec)], "error": ""}
        return Documentation(
            operation=documents.operation(
                summary="The embeddings of images, for Weaviate's multi2vec-clip",
                description=f"Up to {self._max_inputs}. One that fails fails the request.",
                takes=documents.json_content("VectorizeRequest", {"images": [documents.EXAMPLE_BASE64]}),
                answers=documents.json_content("VectorizeResponse", answer),
                errors=(*documents.EXAMPLE_ERRORS, TextNotSupported("'cat'")),
            ),
            schemas=known,
            group=GROUP,
        )


def _image(given: Any) -> Source:  # Any: JSON
    if not isinstance(given, str) or not given:
        raise InvalidRequest("an image is missing: send its file in base64")
    return url_or_base64(given)
