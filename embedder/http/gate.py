"""What stands before BentoML's application: routes, keys, JSON only, a deadline, one shape for all errors.

    request ─► its turn ─► route? key? method? JSON? ─► BentoML's application ─► error in another shape?
                                    │                        └── given up when it takes too long,
                                    └── refused here,            or when its client goes
                                        at once

BentoML counts each path that it is asked for in a metric of its own, so one that does not exist never reaches
it: whoever asks for random paths would fill the memory. For a body that it would have to unpickle it writes a
traceback into the log.

An answer that is given before the request's body was read to its end closes the connection: otherwise a
body of any length, at any speed, would keep it for as long as its sender likes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import anyio
import orjson
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
from embedder.http.bentoml_io import error_response
from embedder.http.turnstile import Turnstile

logger = logging.getLogger(__name__)

# Of a body that nobody wants, after its answer: who is still sending when the connection is closed is told of
# a reset, and may never see the answer. Longer and more than this is not waited for: RFC 9112 section 9.6.
LINGER_S = 2.0
LINGER_BYTES = 64_000_000

# Of an answer, for a client that does not read it: until then it is in memory, and holds its images' places.
# What is smaller than this a connection may always have waiting.
READ_TIMEOUT_S = 5.0
READ_BYTES_PER_S = 100_000
UNREAD_BYTES = 1 << 16  # from as much on the server has us wait before we send more

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
    **dict.fromkeys(sorted(ALWAYS_OPEN.union(*OPENABLE.values())), _GET),
}
"""Paths and their methods: all that there are."""

# BentoML's application redirects to the path without the slash, at the host that clients name, and to http
# behind a proxy that ends TLS: body and key would come again, in clear. With two it is another path.
_SLASHED = {f"{path}/": path for path in ROUTES if path != "/"}


def open_paths(open_routes: frozenset[str]) -> frozenset[str]:
    """What needs no key where keys are set; `open_routes` are names of OPENABLE."""
    return ALWAYS_OPEN.union(*(OPENABLE[name] for name in open_routes))


class Door:
    """BentoML's application, to those who may enter. It answers whatever happens inside, in our shape."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: APIKeys,
        timeout_s: float,
        open_routes: frozenset[str] = frozenset(),
        answers_preflight: bool = False,
    ) -> None:
        """`timeout_s` is what a request may take from its turn to the first byte of its answer.

        `open_routes` are names of OPENABLE; `answers_preflight`: `app` knows what other sites may ask.
        """
        self._app = app
        self._keys = keys
        self._timeout_s = timeout_s
        self._answers_preflight = answers_preflight
        self._open = open_paths(open_routes)
        self._turnstile = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # nor a WebSocket: connections refuse to become one
            await self._app(scope, receive, send)
            return
        if scope["path"] in _SLASHED:
            path = _SLASHED[scope["path"]]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        if scope["path"] not in ALWAYS_OPEN:  # who asks whether all is well must not wait behind a crowd
            await self._turnstile.enter()
        client = _Client(receive, send, body_read=not _announces_body(scope))
        error = self._refusal(scope) or await self._served(scope, client)
        if error is not None:
            await error_response(error)(scope, client.receive, client.send)

    async def _served(self, scope: Scope, client: _Client) -> EmbedderError | None:
        """What is to be answered in place of what BentoML's application has; None: it has answered."""
        # What health says of itself is not an error; BentoML's own has no shape.
        answer = _Answer(client.send, reshapes=scope["path"] not in ALWAYS_OPEN)
        try:
            with client.patience(self._timeout_s):
                await self._app(scope, client.receive, answer.send)
        except asyncio.CancelledError:
            if client.late:
                return Overloaded(f"the request was not finished within {self._timeout_s:g} s")
            if not client.gone:
                raise
        except Exception:  # nobody answers for a middleware that fails: the client would wait
            if client.begun:
                raise
            logger.exception("a request failed in a way that was not foreseen")
            return InternalError()
        return answer.foreign

    def _refusal(self, scope: Scope) -> EmbedderError | None:
        method = scope["method"]
        path: str = scope["path"]
        methods = ROUTES.get(path)
        if methods is None:
            return NotFound()
        headers = Headers(scope=scope)
        if self._answers_preflight and _is_preflight(method, headers):
            return None
        if path not in self._open and not self._keys.accept(scope["headers"]):
            return Unauthorized()
        if method not in methods:
            return MethodNotAllowed(method=method, allowed=methods)
        return _refused_body(headers) if method in _POST else None


def _is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks what another site may: https://fetch.spec.whatwg.org/#cors-preflight-request."""
    return method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers


def _refused_body(headers: Headers) -> EmbedderError | None:
    """Why a body with `headers` is not JSON. Without a Content-Type it is: that is what such clients mean."""
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower() or "application/json"
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        return UnsupportedMediaType(media_type)
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        return UnsupportedMediaType(media_type, encoding=encoding)
    return None


def _announces_body(scope: Scope) -> bool:
    """Whether a body follows the request's head: RFC 9112 section 6.3."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" \t0"))
        for name, value in scope["headers"]
    )


@dataclass
class _Client:
    """Who has sent a request: its body comes from here, and its answer goes here."""

    _receive: Receive
    _send: Send
    body_read: bool
    """To its end, or as far as it will come."""
    begun: bool = False
    """The answer, which is as good as done then: nothing cuts it short."""
    late: bool = False
    gone: bool = False
    hung_up: bool = False
    _served_by: asyncio.Task[Any] | None = None  # Any: the server's own task, whatever it returns
    _watch: asyncio.Task[None] | None = None
    _closes: bool = False

    @contextmanager
    def patience(self, timeout_s: float) -> Iterator[None]:
        """Cancels the running task when this lasts for too long, or when nobody waits for it any more.

        What nobody will read must cost nothing more. Afterwards `late` or `gone` says why.
        """
        self._served_by = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(timeout_s, self._too_late)
        try:
            yield
        finally:
            self._served_by = None
            timer.cancel()
            if self._watch is not None:
                self._watch.cancel()

    def _too_late(self) -> None:
        self.late = self._cancel()

    def _cancel(self) -> bool:
        return self._served_by is not None and not self.begun and self._served_by.cancel()

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):  # nor is there more when the client is gone
            self.body_read = True
            if self._served_by is not None and self._watch is None:
                self._watch = asyncio.get_running_loop().create_task(self._until_gone())
        return message

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = self._cancel()

    async def send(self, message: Message) -> None:
        self.begun = True
        if message["type"] == "http.response.start" and not self.body_read:
            self._closes = True
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        if self._closes and message["type"] == "http.response.body" and not message.get("more_body"):
            await self._pass_on({**message, "more_body": True})
            await self._discard()
            message = {"type": "http.response.body"}  # with which the server closes
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        """Send `message`, and end only when most of it is read, or the client is given up."""
        size = len(message.get("body", b""))
        timer = asyncio.get_running_loop().call_later(READ_TIMEOUT_S + size / READ_BYTES_PER_S, self._hang_up)
        try:
            if size > UNREAD_BYTES and not message.get("more_body"):
                await self._send({**message, "more_body": True})
                message = {"type": "http.response.body"}  # for which the server waits
            await self._send(message)
        except RuntimeError:  # uvloop's, of a connection that is closed
            if not self.hung_up:
                raise
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        """Closing would wait for what is still to be read. Only uvicorn's own object can do more."""
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is not None:
            self.hung_up = True
            transport.abort()

    async def _discard(self) -> None:
        """Read what still comes, for as long as that is worth it."""
        discarded = 0
        with anyio.move_on_after(LINGER_S):
            while not self.body_read and discarded < LINGER_BYTES:
                discarded += len((await self.receive()).get("body", b""))


@dataclass
class _Answer:
    """Passes an answer on, unless it is an error in another shape than ours: what that means is kept."""

    _send: Send
    reshapes: bool
    foreign: EmbedderError | None = None
    _held: Message | None = None
    _body: bytearray = field(default_factory=bytearray)

    async def send(self, message: Message) -> None:
        if self.reshapes and message["type"] == "http.response.start" and message["status"] >= 400:
            self._held = message
            return
        if self._held is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        held, self._held = self._held, None
        if not _is_ours(bytes(self._body)):
            self.foreign = _translated(held["status"])
            return
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
    if status in (503, 504):
        return Overloaded("there was no time, or no memory, to finish the request")
    return InvalidRequest("the request can't be read") if status < 500 else InternalError()
