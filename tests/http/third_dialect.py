"""A dialect that the service does not have, and a Bento that serves it beside the two that it has.

POST /v1/third   an image's bytes, and an option in a header ─► {"vector", "label"}, 201
                                                            ─► {"failure": {"kind", "why"}}, statuses of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bentoml
import orjson
from pydantic import BaseModel
from starlette.responses import Response

import service
from embedder.engine import Result
from embedder.errors import EmbedderError, InvalidRequest, ServiceError
from embedder.http.bentoml_io import route
from embedder.http.body import Body
from embedder.http.dialects import Documentation, Query
from embedder.http.pages import pages
from embedder.model.encoder import Embeddings, Pixels
from embedder.model.spec import ModelSpec

LABEL = "X-Label"
BUG = "a label that the dialect can't bear"


class ThirdRequest(BaseModel):
    """An image's bytes."""


class ThirdResponse(BaseModel):
    """Its vector."""

    vector: list[float]
    label: str | None


class Third:
    paths = ("/v1/third",)
    families = ()
    key = None
    media_types = ("application/octet-stream", "image/*")
    request_model = ThirdRequest
    response_model = ThirdResponse

    async def parse(self, body: Body) -> Query:
        file = await body.whole()
        if not file:
            raise InvalidRequest("the body is empty")
        if body.headers.get(LABEL) == BUG:
            raise ZeroDivisionError
        return Query([file], options=body.headers.get(LABEL))

    def render(self, options: str | None, results: Sequence[Result]) -> Response:
        (result,) = results
        if result.error is not None:
            raise result.error
        answer = {"vector": result.embedding, "label": options}
        return Response(
            orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), 201, headers={LABEL: "echoed"}
        )

    def error(self, error: EmbedderError) -> Response:
        failure = {"kind": error.code.upper(), "why": str(error)}
        return Response(
            orjson.dumps({"failure": failure}),
            599 if isinstance(error, ServiceError) else 418,
            media_type="application/failure+json",
        )

    def document(self, spec: ModelSpec) -> Documentation:
        return Documentation(
            operation={
                "summary": f"A vector of {spec.dimension} numbers",
                "requestBody": {"content": {"image/*": {}}},
                "responses": {
                    "201": {"description": "It.", "headers": {LABEL: {"schema": {"type": "string"}}}}
                },
            },
            schemas={"ThirdResponse": ThirdResponse.model_json_schema()},
        )


CONFIG: dict[str, Any] = service.ImageEmbedder.config  # type: ignore[attr-defined]  # Any: BentoML's, untyped


@bentoml.service(name="image_embedder", service_class=service.EmbedderService, **CONFIG)
@bentoml.asgi_app(pages(service.engine, health=service.health))
class ThreeDialects(service.ImageEmbedder.inner):  # type: ignore[misc,name-defined]  # BentoML's, untyped
    """What `service.py` serves, and one more."""

    @bentoml.api(**route(service.engine, Third()))  # type: ignore[untyped-decorator]  # BentoML's
    async def third(self, pixels: Pixels) -> Embeddings:
        return await service.engine.encode(pixels)
