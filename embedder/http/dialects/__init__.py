"""What clients speak: one file for each dialect, and what every dialect is.

    body, headers ─► parse ─► Query: sources, options ─► (pipeline, network) ─► render ─► Response
                                   EmbedderError ─► error ─► Response, in the dialect's own shape

A new dialect is a file here, and a line in `service.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from embedder.engine import Result, Source
from embedder.errors import EmbedderError, InputError, InvalidRequest
from embedder.http.body import Body
from embedder.model.spec import ModelSpec
from embedder.result import Embedding

Json: TypeAlias = dict[str, Any]  # Any: JSON of many shapes
JSON_TYPES = ("application/json", "application/*+json")


@dataclass(frozen=True)
class Query:
    """What a request asks for."""

    sources: Sequence[Source]
    options: Any = None  # Any: the dialect's own, which its `render` gets back
    hashed: bool = False
    """Whether each result is to have its file's sha256."""
    all_or_nothing: bool = False
    """Whether an error of one image fails the request, so that those after it need not be embedded."""
    model: str | None = None
    """The fingerprint or the tag of the model that it must be answered by; None: any."""


@dataclass(frozen=True)
class Group:
    """A heading of the OpenAPI page, with its operations below it."""

    name: str
    description: str


OWN = Group("Embeddings", "This service's own API; /embed also takes what text-embeddings-inference takes")


@dataclass(frozen=True)
class Documentation:
    """A dialect's part of the OpenAPI document."""

    operation: Json
    """Of its POST. Where keys are set, 401 is added."""
    schemas: Json
    """By the names that `operation` refers to."""
    group: Group = OWN
    """Where several dialects share a path, the first one's counts."""


class Dialect(Protocol):
    """A path and two wire formats on it. It keeps no state between requests.

    Several may share a path: the body's media type says which is spoken, and then a key of its JSON.
    """

    @property
    def paths(self) -> Sequence[str]:
        """The first is its own, the others are more names of it."""

    @property
    def families(self) -> Sequence[str]:
        """First segments of paths: what is below them has this dialect's errors, also where there is no route."""

    @property
    def media_types(self) -> Sequence[str]:
        """What a body may be declared as, the usual one first: a body without a Content-Type is taken for that."""

    @property
    def key(self) -> str | None:
        """What tells its JSON from that of the others on its path; None where nothing has to."""

    @property
    def request_model(self) -> type[BaseModel]:
        """`request_model` and `response_model` are what BentoML's own client and `/schema.json` show."""

    @property
    def response_model(self) -> type[BaseModel]: ...

    async def parse(self, body: Body) -> Query:
        """Raises InvalidRequest, or another EmbedderError for the whole request."""

    def render(self, options: Any, results: Sequence[Result]) -> Response:  # Any: as Query.options
        """The answer to a query, from one result for each of its sources, in their order.

        Raises EmbedderError where the request as a whole gets an error.
        """

    def error(self, error: EmbedderError) -> Response:
        """`error` in the dialect's shape, with the status that its clients expect."""

    def document(self, spec: ModelSpec) -> Documentation:
        """What the OpenAPI document says of it."""


def json_reply(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # orjson writes float32 shortest, straight from numpy's memory.
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def all_embeddings(results: Sequence[Result], name: str) -> list[Embedding | None]:
    """Those of `results`, float32 (dimension,) each. Raises InputError for the first that failed: `name[3]`."""
    for index, result in enumerate(results):
        if result.error is not None:
            raise InputError(result.error, f"{name}[{index}]")
    return [result.embedding for result in results]


def expected_model(content: Json) -> str | None:
    """What a body's JSON says under `expect_model`. Raises InvalidRequest."""
    model = content.get("expect_model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest('"expect_model" is not text')
    return model
