"""What clients speak: one file for each dialect, and what every dialect is.

    body, headers ─► parse ─► Query: sources, options ─► (pipeline, network) ─► render ─► Reply
                                   EmbedderError ─► error ─► Reply, in the dialect's own shape

A new dialect is a file here, and a method of two lines in `service.py` that gives it a path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from pydantic import BaseModel
from starlette.datastructures import Headers

from embedder.engine import Result, Source
from embedder.errors import EmbedderError
from embedder.model.spec import ModelSpec

Json: TypeAlias = dict[str, Any]  # Any: JSON of many shapes


@dataclass(frozen=True)
class Query:
    """What a request asks for."""

    sources: Sequence[Source]
    options: Any = None  # Any: the dialect's own, which its `render` gets back
    hashed: bool = False
    """Whether each result is to have its file's sha256."""


@dataclass(frozen=True)
class Reply:
    """What a client is sent. The gate adds the headers that every dialect has."""

    body: bytes
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Documentation:
    """A dialect's part of the OpenAPI document."""

    operation: Json
    """Of its POST. Where keys are set, 401 is added."""
    schemas: Json
    """By the names that `operation` refers to."""


class Dialect(Protocol):
    """One path and the two wire formats on it. It keeps no state between requests."""

    @property
    def path(self) -> str: ...

    @property
    def media_types(self) -> Sequence[str]:
        """What a body may be declared as, the usual one first: a body without a Content-Type is taken for that."""

    @property
    def request_model(self) -> type[BaseModel]:
        """`request_model` and `response_model` are what BentoML's own client and `/schema.json` show."""

    @property
    def response_model(self) -> type[BaseModel]: ...

    def parse(self, body: bytes, headers: Headers) -> Query:
        """Raises InvalidRequest, or another EmbedderError for the whole request."""

    def render(self, query: Query, results: Sequence[Result]) -> Reply:
        """The answer, from one result for each source of the query, in their order.

        `query` has its options, but no sources any more.

        Raises EmbedderError where the request as a whole gets an error.
        """

    def error(self, error: EmbedderError) -> Reply:
        """`error` in the dialect's shape, with the status that its clients expect."""

    def document(self, spec: ModelSpec) -> Documentation:
        """What the OpenAPI document says of it."""
