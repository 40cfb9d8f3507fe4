"""A connection to an origin. It carries one response for each request, and is cut when it carries anything else.

What was not read of a response, and an answer that nobody asked for, would be taken for the answer to the next
request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from embedder.fetch.failures import Broken
from embedder.fetch.response import Response


class Connection(asyncio.Protocol):
    """Made by the event loop's `create_connection`."""

    def __init__(self, changed: Callable[[Connection], None]) -> None:
        """`changed` is called when it is open, and when it is open no more, whoever closed it."""
        self._changed = changed
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        """The one that is under way."""
        self._over: asyncio.Future[None] | None = None
        """Done when that is over."""

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close it without TLS's close_notify: that waits 30 s for the peer's, and reads all that the peer sends."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._changed(self)  # uvloop tells nobody that a transport is closed whose making was cancelled

    async def get(self, request: bytes, response: Response) -> None:
        """Send `request`, and feed `response`. The connection is open afterwards only if it may carry another.

        Raises what `response.feed` raises.
        """
        if self._transport is None or not self.is_open:
            raise Broken("closed before it was used")
        self._response, self._over = response, asyncio.get_running_loop().create_future()
        try:
            self._transport.write(request)
            await self._over
        finally:
            self._response = self._over = None
            if not (response.is_over and response.is_reusable):
                self.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvloop's
        self._transport = transport
        self._changed(self)

    def data_received(self, data: bytes) -> None:
        if self._response is None or self._over is None or self._over.done():
            self.abort()
            return
        try:
            self._response.feed(data)
        except Exception as exc:  # whatever it is, it is this response's
            self._over.set_exception(exc)
            return
        if self._response.is_over:
            self._over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._changed(self)
        if self._response is None or self._over is None or self._over.done():
            return
        try:
            if exc is not None:  # a reset does not end a body, not even one without a length
                raise Broken(f"the connection failed: {exc}") from exc
            self._response.end()
        except Broken as broken:
            self._over.set_exception(broken)
        else:
            self._over.set_result(None)
