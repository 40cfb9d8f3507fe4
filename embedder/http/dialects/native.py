"""What the service's own dialects share: JSON objects in, `{"error", "code"}` for every error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from pydantic import JsonValue

from embedder import errors
from embedder.engine import Result
from embedder.errors import EmbedderError, InvalidRequest
from embedder.http.dialects import Json, Reply
from embedder.model.spec import ModelSpec

MEDIA_TYPES = ("application/json", "application/*+json")
MAX_VALUES = 131_072
"""Of a body's JSON, and 64 more for each URL: commas stand in URLs too, and clients add fields of their own."""
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


def json_reply(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    # orjson writes float32 shortest, straight from numpy's memory.
    return Reply(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, headers=headers or {})


IMAGE_HEADERS = {
    "X-Image-Format": "What the image was: JPEG, PNG, WEBP, ...",
    "X-Image-Size": "Its width and height in pixels, upright: 4000x3000.",
}


def image_headers(result: Result) -> dict[str, str]:
    """`IMAGE_HEADERS`, of an image that has an embedding."""
    return {"X-Image-Format": f"{result.format}", "X-Image-Size": f"{result.width}x{result.height}"}


def error_reply(error: EmbedderError) -> Reply:
    return json_reply({"error": str(error), "code": error.code}, status=error.status)


def json_object(body: bytes, *, max_values: int) -> dict[str, Any]:  # Any: JSON
    """The JSON object in `body`. Raises InvalidRequest.

    What is parsed takes up to 24 times the memory of its text: 32 MB of "[],[],[]" take 770 MB. Each value is
    the first of an array or an object, or follows a comma: there may be `max_values` of these characters.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > max_values:
        raise InvalidRequest(
            f"the body has over {max_values} commas and brackets, more than its URLs can have"
        )
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise InvalidRequest("the body is not a JSON object")
    return content


def json_operation(
    *,
    summary: str,
    description: str,
    request: str,
    example: Json,
    response: str,
    answer: Json,
    errors: Iterable[EmbedderError],
    headers: Mapping[str, str] | None = None,
) -> Json:
    """An operation of OpenAPI. `request` and `response` name schemas; `example` and `answer` are one of each.

    `headers` are those of an answer that is no error, with what they say.
    """
    said = {
        name: {"description": text, "required": True, "schema": {"type": "string"}}
        for name, text in (headers or {}).items()
    }
    return {
        "summary": summary,
        "description": description,
        "requestBody": {"required": True, "content": json_content(request, example)},
        "responses": {
            "200": {
                "description": "Successful Response",
                "content": json_content(response, answer),
                **({"headers": said} if said else {}),
            },
            **error_responses(errors),
        },
    }


def example_embedding(spec: ModelSpec) -> list[float]:
    """A vector of norm 1."""
    return [round(1 / math.sqrt(spec.dimension), 8)] * spec.dimension


def error_responses(examples: Iterable[EmbedderError]) -> Json:
    """The `responses` of an operation that may give these errors."""
    responses: Json = {}
    for error in examples:
        response = responses.setdefault(
            str(error.status),
            {"description": "", "content": {"application/json": {"schema": ref("Error"), "examples": {}}}},
        )
        response["description"] += f"- `{error.code}`: {error.summary}\n"
        response["content"]["application/json"]["examples"][error.code] = {
            "value": {"error": str(error), "code": error.code}
        }
    return responses


def json_content(schema: str, example: Json | None = None) -> Json:
    content: Json = {"schema": ref(schema)}
    if example is not None:
        content["example"] = example
    return {"application/json": content}


def ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}
