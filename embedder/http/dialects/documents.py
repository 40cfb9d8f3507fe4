"""What the dialects' parts of the OpenAPI document are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, TypeAlias

import orjson
from pydantic import BaseModel, JsonValue, WithJsonSchema
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from embedder import errors
from embedder.errors import EmbedderError
from embedder.http.dialects import Json
from embedder.http.dialects.native import error_reply
from embedder.model.spec import ModelSpec

EXAMPLE_BASE64 = (
    "iVBORw0KGgoAAAANSUhEUgAAAAwAAAAMBAMAAACkW0HUAAAAGFBMVEWxhGGjf2aedVacbkeUZkGHYkSAVjRfPSDiYjmOAAAAX0lE"
    "QVR42gFUAKv/AVUAAAEQqwLvEdAA/wED//AH4f3nBAU02c/d/wLfEDEeA2ICP/AA8BIPAgDNAvAQ3gNE9gv9CfMD7wH6JewcA//i"
    "Eijy1gIgAPoEHfED+Qn/DMX4fIkjNiXcuqEAAAAASUVORK5CYII="
)
"""samples/chelsea-crop.jpg, 12 x 12 pixels of 8 colours, as PNG. A vector of plain grey may be nearly all 0."""
EXAMPLE_DATA_URL = f"data:image/png;base64,{EXAMPLE_BASE64}"
EXAMPLE_URL = "https://res.cloudinary.com/demo/image/upload/sample.jpg"

EXAMPLE_ERRORS = (
    errors.URLNotAllowed("the address 10.0.0.1 is not public"),
    errors.ImageTooLarge(limit_bytes=20_000_000, actual_bytes=31_400_000),
    errors.TooManyPixels(width=12_000, height=9_000, limit_pixels=50_000_000),
    errors.UnsupportedFormat("this is a HEIC file", taken=["JPEG", "PNG", "WEBP", "GIF"]),
    errors.BadImage("the image is cut short"),
    errors.FetchFailed("the image's server answered 404"),
    errors.FetchTimeout(limit_s=10),
    errors.InvalidRequest('the body has no text under "url": send {"url": "https://..."}'),
    errors.BodyTooLarge(limit_bytes=32_000_000, actual_bytes=400_000_000),
    errors.UnsupportedMediaType("text/plain"),
    errors.ModelMismatch(expected="0123456789ab", served="resnet18:7b2f, fingerprint 8a8a8a8a8a8a"),
    errors.Overloaded("256 images are in work and the limit is 256: no room for 1 more now"),
    errors.Draining(),
    errors.InternalError(),
)
# Of these only a single image's request fails; in a batch they are an item's.
OF_ONE_IMAGE = (422, 424)
# These fail a batch as a whole, or one image of it: for which there was no memory, say.
_OF_EITHER = (429, 500, 503)
ITEM_CODES: list[JsonValue] = [
    error.code for error in EXAMPLE_ERRORS if error.status in (*OF_ONE_IMAGE, *_OF_EITHER)
]
"""The codes that an item of a batch may have."""


URLText: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "format": "uri"})]


def of_model(spec: ModelSpec) -> Json:
    """The properties by which a request says what it expects of the model."""
    return {
        "expect_model": {
            "enum": [spec.fingerprint, spec.tag, None],
            "description": "The fingerprint or tag to be answered by; with another one the answer is 409.",
        },
        "dimensions": {"enum": [spec.dimension, None], "description": "The network's, or absent."},
    }


def operation(
    *,
    summary: str,
    description: str,
    takes: Json,
    answers: Json,
    errors: Iterable[EmbedderError] = EXAMPLE_ERRORS,
    render: Callable[[EmbedderError], Response] = error_reply,
    error_schema: str = "Error",
    headers: Mapping[str, str] | None = None,
) -> Json:
    """An operation of OpenAPI. `takes` and `answers` are content by its media type.

    The first example of `takes` has to succeed as it is, also where there is no network.

    `headers` are those of an answer that is no error, with what they say.
    """
    said = {name: header(text, type="string") for name, text in (headers or {}).items()}
    return {
        "summary": summary,
        "description": description,
        "requestBody": {"required": True, "content": takes},
        "responses": {
            "200": {
                "description": "It succeeded.",
                "content": answers,
                **({"headers": said} if said else {}),
            },
            **error_responses(errors, render, error_schema),
        },
    }


def header(description: str, **schema: JsonValue) -> Json:
    """One that is always there."""
    return {"description": description, "required": True, "schema": schema}


def schemas(*models: type[BaseModel]) -> Json:
    """Those of `models` and of what they are made of, by name."""
    _, made = models_json_schema(
        [(model, "validation") for model in models], ref_template=ref("{model}")["$ref"]
    )
    definitions: Json = made["$defs"]
    return definitions


def of_dimension(spec: ModelSpec) -> Json:
    """What a vector's schema says of its length."""
    return {"minItems": spec.dimension, "maxItems": spec.dimension}


def example_embedding(spec: ModelSpec) -> list[float]:
    """A vector of norm 1."""
    return [round(1 / math.sqrt(spec.dimension), 8)] * spec.dimension


def error_responses(
    examples: Iterable[EmbedderError],
    render: Callable[[EmbedderError], Response] = error_reply,
    schema: str = "Error",
) -> Json:
    """The `responses` of an operation that may give these errors, as `render` writes them."""
    responses: Json = {}
    for error in examples:
        reply = render(error)
        response = responses.setdefault(
            str(reply.status_code),
            {"description": "", "content": {f"{reply.media_type}": {"schema": ref(schema), "examples": {}}}},
        )
        response["description"] += f"- `{error.code}`: {error.summary}\n"
        response["content"][reply.media_type]["examples"][error.code] = {"value": orjson.loads(reply.body)}
    return responses


def json_content(schema: str, example: object = None) -> Json:
    content: Json = {"schema": ref(schema)}
    if example is not None:
        content["example"] = example
    return {"application/json": content}


def json_examples(schema: str, **examples: tuple[str, object]) -> Json:
    """Content with several examples: what each shows, and its value."""
    said = {name: {"summary": shows, "value": value} for name, (shows, value) in examples.items()}
    return {"application/json": {"schema": ref(schema), "examples": said}}


def ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}
