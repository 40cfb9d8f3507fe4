"""`POST /embed`: one URL in, one embedding out; an image's failure is the request's failure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field
from starlette.responses import Response

from embedder.engine import Result
from embedder.errors import InvalidRequest
from embedder.http.body import Body
from embedder.http.dialects import Documentation, Query, documents, expected_model, json_reply
from embedder.http.dialects.native import IMAGE_HEADERS, Native, image_headers
from embedder.model.spec import ModelSpec


class EmbedRequest(BaseModel):
    """One image."""

    url: str = Field(
        description="Where the image is: http(s), or a `data:` URL that carries the image itself.",
        examples=[documents.EXAMPLE_URL],
        json_schema_extra={"format": "uri"},
    )


class EmbedResponse(BaseModel):
    """The image's embedding."""

    embedding: list[float] = Field(description="float32, of Euclidean norm 1.")


class Embed(Native):
    paths = ("/embed",)
    key: str | None = "url"
    request_model = EmbedRequest
    response_model = EmbedResponse

    async def parse(self, body: Body) -> Query:
        content = await body.json()
        url = content.get("url")
        if not isinstance(url, str):
            raise InvalidRequest('the body has no text under "url": send {"url": "https://..."}')
        return Query([url], model=expected_model(content))

    def render(self, options: None, results: Sequence[Result]) -> Response:
        (result,) = results
        if result.error is not None:
            raise result.error
        return json_reply({"embedding": result.embedding}, headers=image_headers(result))

    def document(self, spec: ModelSpec) -> Documentation:
        known = documents.schemas(EmbedRequest, EmbedResponse)
        known["EmbedRequest"]["properties"]["expect_model"] = documents.of_model(spec)["expect_model"]
        known["EmbedResponse"]["properties"]["embedding"] |= documents.of_dimension(spec)
        return Documentation(
            operation=documents.operation(
                summary="The embedding of one image",
                description="`url` is where the image is. It is downloaded, or taken out of a `data:` URL.",
                takes=documents.json_examples(
                    "EmbedRequest",
                    inside=("An image inside its URL", {"url": documents.EXAMPLE_DATA_URL}),
                    by_url=("An image on a server", {"url": documents.EXAMPLE_URL}),
                ),
                answers=documents.json_content(
                    "EmbedResponse", {"embedding": documents.example_embedding(spec)}
                ),
                headers=IMAGE_HEADERS,
            ),
            schemas=known,
        )
