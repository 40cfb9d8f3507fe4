"""`POST /embed_batch`: many URLs in, as many answers out, in their order; an image's failure is its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, Field, WithJsonSchema
from starlette.responses import Response

from embedder.engine import Result
from embedder.errors import InvalidRequest
from embedder.http.body import Body
from embedder.http.dialects import Documentation, Json, Query, documents, expected_model, json_reply
from embedder.http.dialects.native import Native
from embedder.model.spec import ModelSpec

# Two types in one place, not an `anyOf`: BentoML's client reads a value by the first of those, and fails on a
# null that should be a list.
_EMBEDDING_OR_NULL: Json = {"type": ["array", "null"], "items": {"type": "number"}}


class EmbedBatchRequest(BaseModel):
    """Some images."""

    urls: list[str] = Field(
        description="Where the images are: http(s), or `data:` URLs that carry the images themselves.",
        examples=[[documents.EXAMPLE_URL]],
    )
    details: bool = Field(default=False, description="Whether to say what each image is, under `images`.")


class ItemError(BaseModel):
    """Why one image has no embedding."""

    index: int = Field(description="The image's place in `urls`, from 0.", ge=0)
    code: str = Field(
        description="What kind of error, for programs.", json_schema_extra={"enum": documents.ITEM_CODES}
    )
    error: str = Field(description="What happened, for people.")


class Image(BaseModel):
    """What an image is."""

    format: str = Field(description="JPEG, PNG, WEBP, ...")
    width: int = Field(description="In pixels, upright.", ge=1)
    height: int = Field(description="In pixels, upright.", ge=1)
    bytes: int = Field(description="The size of its file.", ge=1)
    sha256: str = Field(description="Of its file, in hexadecimal.", min_length=64, max_length=64)
    rendition: bool = Field(
        default=False,
        description="true where it was a smaller picture that its CDN made; otherwise left out.",
    )


class EmbedBatchResponse(BaseModel):
    """An embedding or null for each URL, in their order, and why for each null."""

    embeddings: list[Annotated[list[float] | None, WithJsonSchema(_EMBEDDING_OR_NULL)]] = Field(
        description="As many as `urls`; null where there is none."
    )
    errors: list[ItemError] = Field(description="One for each null, in the order of their index.")
    images: list[Image | None] | None = Field(
        default=None, description="As many as `urls`; null where there is no embedding. Only with `details`."
    )


def _names(result: Result) -> Iterable[str]:
    return (name for name in Image.model_fields if name != "rendition" or result.rendition)


class EmbedBatch(Native):
    paths = ("/embed_batch",)
    key: str | None = "urls"
    request_model = EmbedBatchRequest
    response_model = EmbedBatchResponse

    def __init__(self, max_urls: int) -> None:
        self._max_urls = max_urls

    async def parse(self, body: Body) -> Query:
        content = await body.json()
        urls, details = content.get("urls"), content.get("details", False)
        if not isinstance(urls, list):
            raise InvalidRequest('the body has no list under "urls": send {"urls": ["https://...", ...]}')
        self._check_count(len(urls), "URLs")
        for index, url in enumerate(urls):
            if not isinstance(url, str):
                raise InvalidRequest(f"urls[{index}] is not text")
        if not isinstance(details, bool):
            raise InvalidRequest('"details" is neither true nor false')
        return Query(urls, options=details, hashed=details, model=expected_model(content))

    def _check_count(self, count: int, what: str) -> None:
        if count > self._max_urls:
            raise InvalidRequest(f"the body has {count} {what}; the limit is {self._max_urls}")

    def render(self, options: bool, results: Sequence[Result]) -> Response:
        content: Json = {
            "embeddings": [result.embedding for result in results],
            "errors": [
                {"index": index, "code": result.error.code, "error": str(result.error)}
                for index, result in enumerate(results)
                if result.error is not None
            ],
        }
        if options:
            content["images"] = [
                None if result.error else {name: getattr(result, name) for name in _names(result)}
                for result in results
            ]
        return json_reply(content)

    def document(self, spec: ModelSpec) -> Documentation:
        known = documents.schemas(EmbedBatchRequest, EmbedBatchResponse)
        request = known["EmbedBatchRequest"]["properties"]
        request["urls"]["maxItems"] = self._max_urls
        request["expect_model"] = documents.of_model(spec)["expect_model"]
        known["EmbedBatchResponse"]["properties"]["embeddings"]["items"] |= documents.of_dimension(spec)
        refused = {
            "index": 1,
            "code": "url_not_allowed",
            "error": "the URL's scheme is 'ftp'; allowed are http, https and data",
        }
        answer = {"embeddings": [documents.example_embedding(spec), None], "errors": [refused]}
        return Documentation(
            operation=documents.operation(
                summary="The embeddings of many images",
                description=f"As `/embed`, for up to {self._max_urls} images at once. An image that fails leaves a "
                "null in its place and an item under `errors`; the others are not affected and the status is 200.",
                takes=documents.json_examples(
                    "EmbedBatchRequest",
                    inside=(
                        "Two images, one of which fails",
                        {"urls": [documents.EXAMPLE_DATA_URL, "ftp://example.com/cat.jpg"]},
                    ),
                    by_url=("An image on a server", {"urls": [documents.EXAMPLE_URL]}),
                    details=(
                        "What the images are as well",
                        {"urls": [documents.EXAMPLE_DATA_URL], "details": True},
                    ),
                ),
                answers=documents.json_content("EmbedBatchResponse", answer),
                errors=(
                    error for error in documents.EXAMPLE_ERRORS if error.status not in documents.OF_ONE_IMAGE
                ),
            ),
            schemas=known,
        )
