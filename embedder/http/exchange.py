"""One request and its answer: in whose dialect it is, and what is known of it on its way.

gate ─► admission ─► BentoML's route ─► bentoml_io: receive ─► batcher ─► bentoml_io: answer
  └── makes the Exchange; what comes after finds it in the ASGI scope ────────────┘
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import cast

from starlette.responses import Response
from starlette.types import Scope

from embedder.errors import EmbedderError, MethodNotAllowed, ServiceError, Unauthorized
from embedder.http.dialects import Dialect, Query, Reply
from embedder.http.dialects.native import error_reply
from embedder.metrics.measures import Metrics
from embedder.pipeline import Outcome

_KEY = "embedder.exchange"


@dataclass(eq=False)
class Exchange:
    dialect: Dialect | None
    """None for a path that no dialect has: its errors are in the native shape."""
    metrics: Metrics
    resources: ExitStack = field(default_factory=ExitStack)
    """What the request holds until its answer is written."""
    query: Query = field(default_factory=lambda: Query(()))
    outcomes: list[Outcome] | EmbedderError = field(default_factory=list)
    """One for each source, or the failure of the whole request."""
    answered: bool = False
    """Whether this service made the answer. What else answers is BentoML or a middleware, in another shape."""

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        return cast(Exchange, scope[_KEY])

    def enter(self, scope: Scope) -> Scope:
        """`scope`, in which `of` finds this exchange."""
        return {**scope, _KEY: self}

    def response(self, reply: Reply) -> Response:
        self.answered = True
        return Response(reply.body, reply.status, dict(reply.headers), reply.media_type)

    def error_response(self, error: EmbedderError) -> Response:
        """`error` in the dialect's shape, with the headers that HTTP has for it. It is counted."""
        self.metrics.request_errors.labels(error.code).inc()
        response = self.response(self.dialect.error(error) if self.dialect else error_reply(error))
        if isinstance(error, ServiceError) and error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(error.allowed)
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = "Bearer"
        return response
