"""`POST /v1/embeddings` as OpenAI's clients speak it, with images for input; and what else is asked of such a service.

Also what others made of it: Jina's `{"image": ...}`, vLLM's `messages`. One bad input fails the request with 400,
unless it says `"errors": "null"`. All dialects' clients parse an error before they look at its status: `detail` is
for those of Jina's, `error` for OpenAI's.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field, WithJsonSchema
from starlette.responses import Response

from embedder.engine import Result, Source
from embedder.errors import (
    EmbedderError,
    InputError,
    InvalidRequest,
    ServiceError,
    TextNotSupported,
)
from embedder.http.body import Body
from embedder.http.dialects import Documentation, Group, Json, Query, documents, expected_model, json_reply
from embedder.http.dialects.texts import PROBE_HEADER, OfTexts, url_or_base64
from embedder.model.spec import ModelSpec

_Image: TypeAlias = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "description": "An image: an http(s) URL, a `data:` URL, or, under `image`, base64 alone.",
            "anyOf": [
                {
                    "type": "object",
                    "properties": {key: {"type": "string", "format": "uri"}},
                    "required": [key],
                }
                for key in ("image", "url", "image_url")
            ],
        }
    ),
]


GROUP = Group("OpenAI's API", "For OpenAI's SDK, LangChain, LlamaIndex and other clients of it")


class EmbeddingsRequest(BaseModel):
    """Images to embed. Other keys are ignored."""

    input: documents.URLText | _Image | Annotated[list[documents.URLText | _Image], Field(min_length=1)] = (
        Field(description="One image or several.")
    )
    model: Any = Field(default=None, description="Any: the answer names the one that is served.")
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64: of little-endian float32."
    )
    dimensions: int | None = None
    errors: Literal["null"] | None = Field(
        default=None, description="null: an image that fails gets a null, and says why under `errors`."
    )


class EmbeddingItem(BaseModel):
    """One image's embedding."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(ge=0)
    embedding: list[float] | str | None = Field(description="Of norm 1; null with `errors` only.")


class Usage(BaseModel):
    """How many images were embedded: there are no tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingError(BaseModel):
    """Why one image has no embedding."""

    index: int = Field(ge=0)
    code: str
    message: str


class EmbeddingsResponse(BaseModel):
    """An embedding for each input, in their order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: Usage
    errors: list[EmbeddingError] | None = Field(default=None, description='Only with `"errors": "null"`.')


class OpenAIErrorDetail(BaseModel):
    """What failed, and which input."""

    message: str
    type: str
    param: str | None = Field(description="`input[3]`: which image.")
    code: str


class OpenAIError(BaseModel):
    """An error as OpenAI's clients read it."""

    error: OpenAIErrorDetail
    detail: str = Field(description="The message again, for Jina's clients.")


@dataclass(frozen=True)
class _Options:
    as_base64: bool
    nulls: bool
    """Whether a failed image is a null."""
    params: Sequence[str]
    """What the request calls its images: `input[0]`, or `messages`."""
    probed: bool


class OpenAI(OfTexts):
    paths = ("/v1/embeddings", "/embeddings")
    families = ("v1", "models")
    request_model = EmbeddingsRequest
    response_model = EmbeddingsResponse

    async def parse(self, body: Body) -> Query:
        content = await body.json()
        given, param = content.get("input"), "input"
        if given is None and "messages" in content:
            given, param = _of_messages(content["messages"]), "messages"
        if given is None:
            raise InputError(InvalidRequest(f'"{param}" is missing'), param)
        inputs = given if isinstance(given, list) else [given]
        if not inputs:
            raise InputError(InvalidRequest(f'"{param}" is empty'), param)
        if len(inputs) > self._max_inputs:
            sentence = f"the body has {len(inputs)} inputs; the limit is {self._max_inputs}"
            raise InputError(InvalidRequest(sentence), param)
        listed = isinstance(given, list)
        params = [f"{param}[{index}]" if listed else param for index in range(len(inputs))]
        nulls = _one_of(content, "errors", "null") is not None
        sources: list[Source] = []
        for each, name in zip(inputs, params, strict=True):
            try:
                sources.append(self._source(each))
            except EmbedderError as error:
                if not nulls:
                    raise InputError(error, name) from error
                sources.append(error)
        if wrong := self._wrong_dimensions(content):
            raise InputError(wrong, "dimensions")
        options = _Options(
            as_base64=_one_of(content, "encoding_format", "float", "base64") == "base64",
            nulls=nulls,
            params=params,
            probed=any(isinstance(each, str) and self._texts.is_probe(each) for each in inputs),
        )
        return Query(sources, options, all_or_nothing=not nulls, model=expected_model(content))

    def _source(self, given: Any) -> Source:  # Any: JSON
        """Raises TextNotSupported, InvalidRequest."""
        if isinstance(given, str):
            return self._texts.image(given)
        if isinstance(given, int | list) and not isinstance(given, bool):
            raise TextNotSupported("a list of tokens")
        if isinstance(given, dict):
            image = given.get("image", given.get("url", given.get("image_url")))
            if isinstance(image, dict):
                image = image.get("url")
            if isinstance(image, str):
                return url_or_base64(image)
            if isinstance(given.get("text"), str):
                raise TextNotSupported(repr(given["text"][:40]))
        raise InvalidRequest('it is no image: send "https://...", "data:image/...", or {"image": ...}')

    def render(self, options: _Options, results: Sequence[Result]) -> Response:
        failed = {index: result.error for index, result in enumerate(results) if result.error is not None}
        if failed and not options.nulls:
            # What is wrong with the request first: trying again would not help.
            index = min(failed, key=lambda index: isinstance(failed[index], ServiceError))
            error = failed[index]
            raise error if isinstance(error, ServiceError) else InputError(error, options.params[index])
        content: Json = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _written(result, options.as_base64)}
                for index, result in enumerate(results)
            ],
            "model": self._spec().tag,
            "usage": {"prompt_tokens": len(results), "total_tokens": len(results)},
        }
        if options.nulls:
            content["errors"] = [
                {"index": index, "code": error.code, "message": str(error)} for index, error in failed.items()
            ]
        return json_reply(content, headers={PROBE_HEADER: "true"} if options.probed else None)

    def error(self, error: EmbedderError) -> Response:
        # Its clients try 409 again unless they are told not to, and 424; 422 they take for another server's.
        status = 400 if error.status in (422, 424) else error.status
        content = {
            "message": str(error),
            "type": _TYPES.get(status, "invalid_request_error"),
            "param": error.param if isinstance(error, InputError) else None,
            "code": error.code,
        }
        headers = {"x-should-retry": "false"} if status == 409 else None
        return json_reply({"error": content, "detail": str(error)}, status=status, headers=headers)

    def document(self, spec: ModelSpec) -> Documentation:
        known = documents.schemas(EmbeddingsRequest, EmbeddingsResponse, OpenAIError)
        request = known["EmbeddingsRequest"]["properties"]
        request["input"]["anyOf"][-1]["maxItems"] = self._max_inputs
        request |= documents.of_model(spec)
        item = {"object": "embedding", "index": 0, "embedding": documents.example_embedding(spec)}
        answer = {
            "object": "list",
            "data": [item],
            "model": spec.tag,
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
        return Documentation(
            operation=documents.operation(
                summary="The embeddings of images, for OpenAI's clients",
                description=f"Up to {self._max_inputs} images. One that fails fails the request, and `param` names "
                "it, unless the request has `errors`.",
                takes=documents.json_examples(
                    "EmbeddingsRequest",
                    inside=("An image inside its URL", {"input": [documents.EXAMPLE_DATA_URL]}),
                    base64=("An image in base64", {"input": [{"image": documents.EXAMPLE_BASE64}]}),
                    by_url=("An image on a server", {"input": [documents.EXAMPLE_URL]}),
                ),
                answers=documents.json_content("EmbeddingsResponse", answer),
                errors=(*documents.EXAMPLE_ERRORS, TextNotSupported("'cat'")),
                render=self.error,
                error_schema="OpenAIError",
            ),
            schemas=known,
            group=GROUP,
        )


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"} | dict.fromkeys(
    (500, 503), "server_error"
)


def _of_messages(messages: Any) -> Any:  # Any: JSON
    """The image of `messages`, as vLLM takes it. Raises InputError."""
    parts: list[Any] = []
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts += content if isinstance(content, list) else [] if content is None else [content]
    if any(isinstance(part, str) or "text" in part for part in parts if isinstance(part, str | dict)):
        raise InputError(TextNotSupported('some of "messages"'), "messages")
    if len(parts) != 1 or isinstance(parts[0], list):
        raise InputError(InvalidRequest(f'"messages" has {len(parts)} images; one is taken'), "messages")
    return parts[0]


def _one_of(content: Json, key: str, *values: str) -> str | None:
    """What `content` has under `key`, where that is one of `values` or nothing. Raises InputError."""
    found = content.get(key)
    if found is None or (isinstance(found, str) and found in values):
        return found
    wanted = " or ".join(f'"{value}"' for value in values)
    raise InputError(InvalidRequest(f'"{key}" is not {wanted}'), key)


def _written(result: Result, as_base64: bool) -> object:
    if result.embedding is None or not as_base64:
        return result.embedding
    return base64.b64encode(result.embedding.astype("<f4").tobytes()).decode()


def models(spec: ModelSpec) -> list[Json]:
    """What `GET /v1/models` lists: the one that is served."""
    return [{"id": spec.tag, "object": "model", "created": 0, "owned_by": "image-embedder"}]
