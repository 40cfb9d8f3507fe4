"""What stands before BentoML's application: routes, keys, media types, a deadline, errors in the path's dialect.

    request ─► route? key? method? media type? ─► admission, BentoML's application ─► an answer of ours? ─► client
                           │                            └── cancelled when it takes too long,
                           └── refused here                 or when its client leaves

BentoML counts each path that it is asked for in a metric of its own, so unknown paths never reach it: random
ones would fill the memory. For a body that it would have to unpickle it writes a traceback into the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedder.errors import (
    EmbedderError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    Unauthorized,
    UnsupportedMediaType,
)
from embedder.http.api_keys import APIKeys
from embedder.http.body import media_type
from embedder.http.client import Client
from embedder.http.dialects import Dialect
from embedder.http.exchange import Exchange
from embedder.metrics.measures import Metrics

logger = logging.getLogger(__name__)

_GET = ("GET", "HEAD")
_POST = ("POST",)

ALWAYS_OPEN = frozenset(
    {"/health", "/livez", "/readyz", "/healthz", "/.well-known/live", "/.well-known/ready"}
)
"""Answered without a key: load balancers and orchestrators have none."""


@dataclass(frozen=True)
class Routes:
    """Every path there is."""

    dialects: Sequence[Dialect]
    docs: Sequence[str] = ()
    """The paths of the OpenAPI page and its files."""
    models: Sequence[str] = ()
    """The paths of the model that is served."""
    open_pages: Sequence[str] = ()
    """Pages that are answered without a key, with their files: nothing of the model is in them."""

    @property
    def openable(self) -> Mapping[str, frozenset[str]]:
        """What can be opened to requests without a key, by the name that a setting gives it."""
        return {
            "docs": frozenset({"/docs.json", "/schema.json", *self.docs}),
            "info": frozenset({"/info", "/meta", *self.models}),
            "metrics": frozenset({"/metrics"}),
        }

    def methods(self) -> Mapping[str, Sequence[str]]:
        """By path."""
        posted = {dialect.paths[0]: _POST for dialect in self.dialects}
        got = ALWAYS_OPEN.union(self.open_pages, *self.openable.values())
        return {**posted, **dict.fromkeys(sorted(got), _GET)}

    def open_paths(self, open_routes: frozenset[str]) -> frozenset[str]:
        """What needs no key where keys are set; `open_routes` are names of `openable`."""
        return ALWAYS_OPEN.union(self.open_pages, *(self.openable[name] for name in open_routes))


class Gate:
    """BentoML's application behind checks. Whatever happens inside, the answer is in the path's dialect."""

    def __init__(
        self,
        app: ASGIApp,
        routes: Routes,
        *,
        keys: APIKeys,
        metrics: Metrics,
        timeout_s: float,
        open_routes: frozenset[str] = frozenset(),
    ) -> None:
        """`timeout_s` is for a request, from here to the first byte of its answer.

        `open_routes` are names of `Routes.openable`.
        """
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._open = routes.open_paths(open_routes)
        self._methods = routes.methods()
        self._dialects: dict[str, list[Dialect]] = {}
        self._families: dict[str, list[Dialect]] = {}
        for dialect in routes.dialects:
            self._dialects.setdefault(dialect.paths[0], []).append(dialect)
            for family in dialect.families:
                self._families.setdefault(family, []).append(dialect)
        aliases = {path: dialect.paths[0] for dialect in routes.dialects for path in dialect.paths}
        # Do not let BentoML redirect `/embed/`: it would send body and key to the Host that the client named,
        # over http.
        names = {path: path for path in self._methods if not path.endswith("/")} | aliases
        self._renamed = {
            **{f"{name}/": path for name, path in names.items() if f"{name}/" not in self._methods},
            **{name: path for name, path in names.items() if name != path},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # nor a WebSocket: connections refuse to become one
            await self._app(scope, receive, send)
            return
        if scope["path"] in self._renamed:
            path = self._renamed[scope["path"]]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        client = Client(scope, receive, send)
        path = scope["path"]
        first = path.removeprefix("/").partition("/")[0]  # `OPTIONS *` has no slash
        dialects = self._dialects.get(path) or self._families.get(first, [])
        exchange = Exchange(dialects, self._metrics, more_time=client.more_time)
        with exchange.resources:
            error = self._refusal(scope, exchange) or await self._served(scope, exchange, client)
            if error is not None:
                await exchange.error_response(error)(scope, client.receive, client.send)

    async def _served(self, scope: Scope, exchange: Exchange, client: Client) -> EmbedderError | None:
        """The error to be answered in place of what BentoML's application has; None: it has answered."""
        # Health's own 503 is not an error, and has a shape of its own.
        held = _HeldErrors(client.send, exchange, passes_all=scope["path"] in ALWAYS_OPEN)
        try:
            with client.deadline(self._timeout_s):
                await self._app(exchange.enter(scope), client.receive, held.send)
        except asyncio.CancelledError:
            if client.late:
                return Overloaded(f"the request was not finished within {self._timeout_s:g} s")
            if not client.gone:
                raise
        except Exception:  # a middleware that fails answers nothing: the client would wait
            if client.answer_begun:
                raise
            logger.exception("a request failed in a way that was not foreseen")
            return InternalError()
        return held.error

    def _refusal(self, scope: Scope, exchange: Exchange) -> EmbedderError | None:
        method = scope["method"]
        path: str = scope["path"]
        methods = self._methods.get(path)
        if methods is None:
            return NotFound()
        if path not in self._open and not self._keys.accept(scope["headers"]):
            return Unauthorized()
        if method not in methods:
            return MethodNotAllowed(method=method, allowed=methods)
        return _refused_body(Headers(scope=scope), exchange) if method == "POST" else None


def _refused_body(headers: Headers, exchange: Exchange) -> EmbedderError | None:
    """Why no dialect of the path can read a body with `headers`."""
    declared = media_type(headers)
    encoding = headers.get("Content-Encoding", "").strip().lower()
    able = exchange.taking(declared)
    if able:
        exchange.dialect = able[0]
    if not able or encoding not in ("", "identity"):
        takes = list(dict.fromkeys(dialect.media_types[0] for dialect in exchange.dialects))
        return UnsupportedMediaType(declared, takes=takes, encoding=encoding if able else None)
    return None


@dataclass
class _HeldErrors:
    """Passes an answer on, unless it is an error that this service did not make: `error` says what it means."""

    _send: Send
    _exchange: Exchange
    passes_all: bool
    error: EmbedderError | None = None

    async def send(self, message: Message) -> None:
        starts_error = message["type"] == "http.response.start" and message["status"] >= 400
        if starts_error and not (self._exchange.answered or self.passes_all):
            self.error = _translated(message["status"])
        if self.error is None:
            await self._send(message)


def _translated(status: int) -> EmbedderError:
    """What BentoML means by an error of its own with `status`."""
    if status in (429, 503, 504):
        return Overloaded("there was no time, or no memory, to finish the request")
    return InvalidRequest("the request can't be read") if status < 500 else InternalError()
