"""One request and its answer: in whose dialect it is, and what is known of it on its way.

gate ─► admission ─► BentoML's middlewares ─► bentoml_io: respond
  └── makes the Exchange; what comes after finds it in the ASGI scope
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from time import perf_counter
from typing import cast

from starlette.responses import Response
from starlette.types import Scope

from embedder.errors import EmbedderError, InvalidRequest, MethodNotAllowed, Unauthorized
from embedder.http.body import Body
from embedder.http.dialects import Dialect
from embedder.http.dialects.native import error_reply
from embedder.metrics.measures import Metrics
from embedder.model.batching import WAITED_S
from embedder.result import Result

_KEY = "embedder.exchange"


@dataclass(eq=False)
class Exchange:
    dialects: Sequence[Dialect]
    """Those of its path."""
    metrics: Metrics
    more_time: Callable[[], None] = lambda: None
    """Starts the request's deadline anew: for one that takes long because it asks for much."""
    dialect: Dialect | None = None
    """The one that is spoken, as far as that is known; None: errors are in the native shape."""
    resources: ExitStack = field(default_factory=ExitStack)
    """What the request holds until its answer is written."""
    began_s: float = field(default_factory=perf_counter)
    decoded_s: float = 0.0
    """When the pixels were there, on the clock of `perf_counter`, as `began_s`."""
    answered: bool = False
    """Whether this service made the answer. What else answers is BentoML or a middleware, in another shape."""

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        return cast(Exchange, scope[_KEY])

    def enter(self, scope: Scope) -> Scope:
        """`scope`, in which `of` finds this exchange."""
        return {**scope, _KEY: self}

    def __post_init__(self) -> None:
        self.dialect = self.dialects[0] if self.dialects else None

    def taking(self, media_type: str) -> list[Dialect]:
        """The dialects that read a body of that type. Without one it is the usual type that is meant."""
        media_type = media_type or self.dialects[0].media_types[0]
        return [
            dialect
            for dialect in self.dialects
            if any(fnmatchcase(media_type, pattern) for pattern in dialect.media_types)
        ]

    async def spoken(self, body: Body) -> Dialect:
        """The dialect that `body` is in, from now on `dialect`. Raises as `Body.json` does."""
        able = self.taking(body.media_type)
        if len(able) > 1:
            content = await body.json()
            meant = [dialect for dialect in able if dialect.key in content]
            if len(meant) > 1:
                keys = " and ".join(f'"{dialect.key}"' for dialect in meant)
                raise InvalidRequest(f"the body has {keys}: send one of them")
            able = meant or able
        self.dialect = able[0]
        return able[0]

    def server_timing(self, results: Sequence[Result]) -> str:
        """The header's value for a request whose images went through at once: https://www.w3.org/TR/server-timing.

        Of several images, which are fetched and decoded side by side, a stage is what the slowest took.
        """
        now_s = perf_counter()
        timings: dict[str, float] = {}
        for result in results:
            for name, took_s in result.timings.items():
                timings[name] = max(took_s, timings.get(name, 0.0))
        queue_s = timings.pop("decode_queue", 0.0)
        if "decode" in timings:  # otherwise all embeddings were known
            waited_s = WAITED_S.get(0.0)
            queue_s += waited_s
            timings["encode"] = now_s - self.decoded_s - waited_s
        total_s = now_s - self.began_s
        timings |= {"queue": queue_s, "total": total_s}
        if "fetch" in timings:  # another request's, perhaps, which began before this one
            timings["fetch"] = min(timings["fetch"], total_s)
        order = ("fetch", "decode", "queue", "encode", "total")
        return ", ".join(f"{name};dur={1000 * timings[name]:.1f}" for name in order if name in timings)

    def error_response(self, error: EmbedderError) -> Response:
        """`error` in the dialect's shape, with the headers that HTTP has for it. It is counted."""
        self.metrics.request_errors.labels(error.code).inc()
        self.answered = True
        response = self.dialect.error(error) if self.dialect else error_reply(error)
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(error.allowed)
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = "Bearer"
        return response
