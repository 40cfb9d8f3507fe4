"""New requests: a few at each turn of the event loop, and none that there is no room for.

    CORS ─► gate ─► its turn ─► room? ─► BentoML's application
                                 └── Overloaded or Draining, at once

Starting a request takes 0.4 ms. Thousands in one turn of the event loop would block downloads and batches for
seconds. A refusal here takes half the processor time of one behind BentoML's middlewares, and a quarter of one
behind its routes. BentoML's metrics do not see it; `embedder_request_errors_total` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from embedder.errors import EmbedderError
from embedder.http.exchange import Exchange

# 7 ms: what is under way waits for no longer at a turn.
PER_TURN = 16
# A body that is nearly here is read before the refusal, so that its connection stays open: the client would
# need another one to try again. For a larger or slower body a new connection is cheaper.
SMALL_BODY_BYTES = 1 << 16
SMALL_BODY_TIMEOUT_S = 1.0


class Admission:
    """Middleware for what is posted. For one event loop."""

    def __init__(self, app: ASGIApp, *, check_room: Callable[[], None], per_turn: int = PER_TURN) -> None:
        """`check_room` raises the EmbedderError that any request would get now."""
        self._app = app
        self._check_room = check_room
        self._places = asyncio.Semaphore(per_turn)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            async with self._places:
                await asyncio.sleep(0)
            try:
                self._check_room()
            except EmbedderError as error:
                await _take_small_body(scope, receive)
                await Exchange.of(scope).error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _take_small_body(scope: Scope, receive: Receive) -> None:
    size = Headers(scope=scope).get("Content-Length", "")
    if size.isdecimal() and int(size) <= SMALL_BODY_BYTES:
        try:
            async with asyncio.timeout(SMALL_BODY_TIMEOUT_S):
                while (await receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass
