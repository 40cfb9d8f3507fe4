"""What stands before BentoML's application: routes that exist, keys, and one shape for every error.

    request ─► route? method? key? ─► BentoML's application ─► an error in another shape? ─► answer
                     └── refused here, at once

BentoML counts each path that it is asked for in a metric of its own, so one that does not exist never
reaches it: whoever asks for random paths would fill the memory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedder.api_keys import APIKeys
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
from embedder.wire.route import error_response

logger = logging.getLogger(__name__)

_GET = ("GET", "HEAD")
_POST = ("POST",)

# The files of BentoML's OpenAPI page, by name: a path below theirs that leads to no file is counted too.
_ASSETS = [
    f"/static_content/{file.name}"
    for file in resources.files("bentoml._internal.server").joinpath("static_content").iterdir()
]

ALWAYS_OPEN = frozenset({"/health", "/livez", "/readyz", "/healthz"})
"""What is answered without a key: load balancers and orchestrators have none."""

OPENABLE: Mapping[str, frozenset[str]] = {
    "docs": frozenset({"/", "/docs", "/docs.json", "/schema.json", *_ASSETS}),
    "info": frozenset({"/info"}),
    "metrics": frozenset({"/metrics"}),
}
"""What can be opened to those without a key, by the name that a setting gives it."""

ROUTES: Mapping[str, tuple[str, ...]] = {
    "/embed": _POST,
    "/embed_batch": _POST,
    **dict.fromkeys(ALWAYS_OPEN.union(*OPENABLE.values()), _GET),
}
"""Paths and their methods: all that there are."""


class Door:
    """BentoML's application, to those who may enter. It answers whatever happens inside, in our shape."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: APIKeys,
        open_routes: frozenset[str] = frozenset(),
        answers_preflight: bool = False,
    ) -> None:
        """`open_routes` are names of OPENABLE; `answers_preflight`: `app` knows what other sites may ask."""
        self._app = app
        self._keys = keys
        self._answers_preflight = answers_preflight
        self._open = ALWAYS_OPEN.union(*(OPENABLE[name] for name in open_routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        answer = _Answer(send, reshapes=scope["method"] in _POST)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:  # nobody answers for a middleware that fails: the client would wait
            if answer.begun:
                raise
            logger.exception("a request failed in a way that was not foreseen")
            answer.foreign = InternalError()
        if answer.foreign is not None:
            await error_response(answer.foreign)(scope, receive, send)

    def _refusal(self, scope: Scope) -> EmbedderError | None:
        path, method = scope["path"], scope["method"]
        if path not in ROUTES:
            path = path.removesuffix("/")  # which BentoML's application redirects to the one without
        methods = ROUTES.get(path)
        if methods is None:
            return NotFound()
        if method == "OPTIONS" and self._answers_preflight:
            return None
        if path not in self._open and not self._keys.accept(scope["headers"]):
            return Unauthorized()
        if method not in methods:
            return MethodNotAllowed(method=method, allowed=methods)
        return None


@dataclass
class _Answer:
    """Passes an answer on, unless it is an error in another shape than ours: what that means is kept."""

    _send: Send
    reshapes: bool
    begun: bool = False
    foreign: EmbedderError | None = None
    _held: Message | None = None
    _body: bytearray = field(default_factory=bytearray)

    async def send(self, message: Message) -> None:
        if self.reshapes and message["type"] == "http.response.start" and message["status"] >= 400:
            self._held = message
            return
        if self._held is None:
            self.begun = True
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        held, self._held = self._held, None
        if not _is_ours(bytes(self._body)):
            self.foreign = _translated(held["status"])
            return
        self.begun = True
        await self._send(held)
        await self._send({**message, "body": bytes(self._body)})


def _is_ours(body: bytes) -> bool:
    try:
        content = orjson.loads(body)
    except ValueError:
        return False
    return isinstance(content, dict) and content.keys() == {"error", "code"}


def _translated(status: int) -> EmbedderError:
    """What BentoML means by an error of its own with `status`."""
    if status == 415:  # bodies that would be unpickled
        return UnsupportedMediaType("application/vnd.bentoml+pickle")
    if status in (503, 504):
        return Overloaded("the request was not finished in time")
    return InvalidRequest("the request can't be read") if status < 500 else InternalError()
