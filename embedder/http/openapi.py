"""The OpenAPI document: what every route takes and answers, with the limits in force."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from embedder import errors
from embedder.errors import EmbedderError, ServiceError
from embedder.http.bentoml_io import MODEL_HEADER
from embedder.http.dialects.embed import EmbedRequest, EmbedResponse
from embedder.http.dialects.embed_batch import EmbedBatchRequest, EmbedBatchResponse
from embedder.http.gate import open_paths
from embedder.model.encoder import DIMENSION
from embedder.settings import Settings

Json = dict[str, Any]  # Any: an OpenAPI document is JSON of many shapes

# A unit vector: 512 times 1/√512.
_EXAMPLE_EMBEDDING = [round(1 / math.sqrt(DIMENSION), 8)] * DIMENSION
_EXAMPLE_ERRORS = (
    errors.URLNotAllowed("the address 10.0.0.1 is not public"),
    errors.ImageTooLarge(limit_bytes=20_000_000, actual_bytes=31_400_000),
    errors.TooManyPixels(width=12_000, height=9_000, limit_pixels=50_000_000),
    errors.UnsupportedFormat(),
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
# These no operation documents: the first two are answered to who asks for what is not documented, the last
# where keys are set.
_OTHER_ERRORS = (errors.NotFound, errors.MethodNotAllowed, errors.Unauthorized)
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_SECURITY: list[Json] = [{"bearer": []}, {"key": []}]
# Of these only a single image's request fails; in a batch they are an item's.
_OF_ONE_IMAGE = (422, 424)
# These fail a batch as a whole, or one image of it: for which there was no memory, say.
_OF_EITHER = (429, 500, 503)


class OpenAPIDocument(Json):
    """An OpenAPI document the way BentoML asks for it: as a dict to serve, as YAML to pack into a Bento."""

    def asdict(self) -> Json:
        return self


yaml.add_representer(OpenAPIDocument, lambda dumper, document: dumper.represent_dict(document.items()))


def openapi_document(base: Json, *, title: str, version: str, settings: Settings) -> OpenAPIDocument:
    """BentoML's document `base`: its own routes stay; what it guesses about ours is replaced."""
    keyed = bool(settings.api_keys)
    paths = {**_paths(settings), **_infrastructure(base)}
    return OpenAPIDocument(
        openapi="3.1.0",
        **({"security": _SECURITY} if keyed else {}),
        info={"title": title, "version": version, "description": _description(settings)},
        servers=base["servers"],
        tags=base["tags"],
        paths=_with_keys(paths, open_paths(settings.open_routes)) if keyed else paths,
        components={
            "schemas": _schemas(settings),
            **({"securitySchemes": _SECURITY_SCHEMES} if keyed else {}),
        },
    )


def _description(settings: Settings) -> str:
    return (
        "Image URLs in, L2-normalised ResNet18 embeddings out. The dot product of two embeddings is the "
        "cosine of the images' similarity.\n\n"
        f"Limits: {settings.max_urls} URLs a batch, {errors.megabytes(settings.max_image_bytes)} and "
        f"{settings.max_image_pixels} pixels an image, {errors.megabytes(settings.max_body_bytes)} a body, "
        f"{settings.fetch_timeout_s:g} s and {settings.max_redirects} redirects a download.\n\n"
        'Every error is `{"error": "what happened", "code": "snake_case"}`.'
    )


def _paths(settings: Settings) -> Json:
    return {
        "/embed": {
            "post": {
                "operationId": "embed",
                "tags": ["Service APIs"],
                "summary": "The embedding of one image",
                "description": "Downloads the image, decodes it, and returns its embedding.",
                "requestBody": _request_body("EmbedRequest", {"url": _EXAMPLE_URL}),
                "responses": {
                    "200": _ok("EmbedResponse", {"embedding": _EXAMPLE_EMBEDDING}),
                    **_error_responses(_EXAMPLE_ERRORS),
                },
            }
        },
        "/embed_batch": {
            "post": {
                "operationId": "embed_batch",
                "tags": ["Service APIs"],
                "summary": "The embeddings of many images",
                "description": "As `/embed`, for up to "
                f"{settings.max_urls} images at once. An image that fails leaves a null in its place and an "
                "item under `errors`; the others are not affected and the status is 200.",
                "requestBody": _request_body(
                    "EmbedBatchRequest", {"urls": [_EXAMPLE_URL, "https://example.com/missing.jpg"]}
                ),
                "responses": {
                    "200": _ok("EmbedBatchResponse", _EXAMPLE_BATCH),
                    **_error_responses(e for e in _EXAMPLE_ERRORS if e.status not in _OF_ONE_IMAGE),
                },
            }
        },
        "/health": {
            "get": {
                "operationId": "health",
                "tags": ["Infrastructure"],
                "summary": "Whether this process serves",
                "responses": {
                    "200": _json("It does.", "Health", {"status": "healthy"}),
                    "503": _json("It is leaving, or its model fails.", "Health", {"status": "draining"}),
                },
            }
        },
        "/info": {
            "get": {
                "operationId": "info",
                "tags": ["Infrastructure"],
                "summary": "The model and its provenance, the limits in force, versions",
                "responses": {"200": _json("What is served.", "Info", None)},
            }
        },
    }


def _infrastructure(base: Json) -> Json:
    """BentoML's own routes, with what they answer: BentoML's document says no more than 200."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    ready = {"503": {"description": "This process does not serve: why, in a line.", "content": text}}
    return {
        path: {
            "get": {
                **item["get"],
                "responses": {
                    "200": {**item["get"]["responses"]["200"], "content": text},
                    **(ready if path == "/readyz" else {}),
                },
            }
        }
        for path, item in base["paths"].items()
        if "get" in item
    }


def _with_keys(paths: Json, no_key: frozenset[str]) -> Json:
    """`paths` where keys are set: what takes `no_key` says so, and the rest can answer 401."""
    unauthorized = _error_responses([errors.Unauthorized()])
    return {
        path: {
            method: {**operation, "security": []}
            if path in no_key
            else {**operation, "responses": {**operation["responses"], **unauthorized}}
            for method, operation in item.items()
        }
        for path, item in paths.items()
    }


_EXAMPLE_URL = "https://res.cloudinary.com/demo/image/upload/sample.jpg"
_EXAMPLE_BATCH = {
    "embeddings": [_EXAMPLE_EMBEDDING, None],
    "errors": [{"index": 1, "code": "fetch_failed", "error": "the image's server answered 404"}],
}


def _request_body(schema: str, example: Json) -> Json:
    return {"required": True, "content": _content(schema, example)}


def _ok(schema: str, example: Json) -> Json:
    model = _header("The tag of the model that made it.", type="string")
    return {**_json("Successful Response", schema, example), "headers": {MODEL_HEADER: model}}


def _header(description: str, **schema: Any) -> Json:  # Any: as Json
    """One that is always there."""
    return {"description": description, "required": True, "schema": schema}


def _error_responses(examples: Iterable[EmbedderError]) -> Json:
    responses: Json = {}
    for error in examples:
        response = responses.setdefault(
            str(error.status),
            {"description": "", "content": {"application/json": {"schema": _ref("Error"), "examples": {}}}},
        )
        response["description"] += f"- `{error.code}`: {error.summary}\n"
        response["content"]["application/json"]["examples"][error.code] = {
            "value": {"error": str(error), "code": error.code}
        }
        if isinstance(error, ServiceError) and error.retry_after_s is not None:
            response["headers"] = {"Retry-After": _header("Seconds to wait.", type="integer", minimum=0)}
        if isinstance(error, errors.Unauthorized):
            response["headers"] = {"WWW-Authenticate": _header("How to send a key.", type="string")}
    return responses


def _json(description: str, schema: str, example: Json | None) -> Json:
    return {"description": description, "content": _content(schema, example)}


def _content(schema: str, example: Json | None) -> Json:
    content: Json = {"schema": _ref(schema)}
    if example is not None:
        content["example"] = example
    return {"application/json": content}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _schemas(settings: Settings) -> Json:
    schemas: Json = {}
    for model in (EmbedRequest, EmbedResponse, EmbedBatchRequest, EmbedBatchResponse):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    # Not so in a batch: what is no URL there is an item's error.
    schemas["EmbedRequest"]["properties"]["url"]["format"] = "uri"
    schemas["EmbedBatchRequest"]["properties"]["urls"]["maxItems"] = settings.max_urls
    one_image = [error.code for error in _EXAMPLE_ERRORS if error.status in (*_OF_ONE_IMAGE, *_OF_EITHER)]
    schemas["ItemError"]["properties"]["code"]["enum"] = one_image
    schemas["Error"] = _object(
        "What every error is.",
        error={"type": "string", "description": "What happened, for people."},
        code={"type": "string", "enum": [error.code for error in (*_EXAMPLE_ERRORS, *_OTHER_ERRORS)]},
    )
    schemas["Health"] = _object(
        "Whether this process serves.",
        status={"type": "string", "enum": ["healthy", "draining", "unhealthy"]},
    )
    schemas["Info"] = _object(
        "What is served.",
        model={"type": "object", "description": "Its tag, weights, their source and sha256, preprocessing."},
        dimension={"type": "integer", "const": DIMENSION},
        precision={"type": "string"},
        limits={"type": "object", "description": "The settings in force."},
        versions={"type": "object", "description": "Of this service and the libraries under it."},
    )
    return schemas


def _object(description: str, **properties: Json) -> Json:
    required: Sequence[str] = list(properties)
    return {"type": "object", "description": description, "properties": properties, "required": required}
