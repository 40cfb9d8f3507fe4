"""The client of one request: its body comes from here, and its answer goes here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive, Scope, Send

# After answering early, keep reading the body for a while: closing while the client still sends makes TCP
# reset the connection, and the client may lose the answer. RFC 9112 section 9.6.
LINGER_S = 2.0
LINGER_BYTES = 64_000_000

# For reading an answer: until it is read it is in memory, and holds its images' places. Of as many bytes a
# connection may always have more waiting.
READ_TIMEOUT_S = 5.0
READ_BYTES_PER_S = 100_000
UNREAD_BYTES = 1 << 16  # from this size on the server lets us wait before we send more

ABORT = "embedder.abort"
"""In the ASGI scope, by `uvicorn_private.py`: closes the client's connection without waiting for anything."""


@dataclass
class Client:
    """Reads from and writes to one client, in time.

    An answer before the end of the body closes the connection: otherwise a body of any length, at any speed,
    would keep it for as long as its sender likes.
    """

    _scope: Scope
    _receive: Receive
    _send: Send
    answer_begun: bool = False
    """Nothing cuts an answer short once it has begun."""
    late: bool = False
    gone: bool = False
    _body_read: bool = False
    """To its end, or as far as it will come."""
    _timer: asyncio.TimerHandle | None = None
    _timeout_s: float = 0.0
    _served_by: asyncio.Task[Any] | None = None  # Any: the server's own task, whatever it returns
    _watch: asyncio.Task[None] | None = None
    _closes: bool = False
    _aborted: bool = False

    def __post_init__(self) -> None:
        self._body_read = not _announces_body(self._scope)

    @contextmanager
    def deadline(self, timeout_s: float) -> Iterator[None]:
        """Cancels the running task after `timeout_s`, or when the client leaves; not once its answer has begun.

        Afterwards `late` or `gone` says why.
        """
        self._served_by = asyncio.current_task()
        self._timeout_s = timeout_s
        self.more_time()
        try:
            yield
        finally:
            self._served_by = None
            if self._timer is not None:
                self._timer.cancel()
            if self._watch is not None:
                self._watch.cancel()

    def more_time(self) -> None:
        """Starts the time of the deadline anew."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._too_late)

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):  # nor is there more when the client is gone
            self._body_read = True
            if self._served_by is not None and self._watch is None:
                self._watch = asyncio.get_running_loop().create_task(self._until_gone())
        return message

    async def send(self, message: Message) -> None:
        self.answer_begun = True
        if message["type"] == "http.response.start" and not self._body_read:
            self._closes = True
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        if self._closes and message["type"] == "http.response.body" and not message.get("more_body"):
            await self._pass_on({**message, "more_body": True})
            await self._discard_body()
            message = {"type": "http.response.body"}  # with which the server closes
        await self._pass_on(message)

    def _too_late(self) -> None:
        self.late = self._cancel()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = self._cancel()

    def _cancel(self) -> bool:
        return self._served_by is not None and not self.answer_begun and self._served_by.cancel()

    async def _pass_on(self, message: Message) -> None:
        """Send `message`. Ends when most of it is read, or when the client has had its time."""
        size = len(message.get("body", b""))
        timer = asyncio.get_running_loop().call_later(READ_TIMEOUT_S + size / READ_BYTES_PER_S, self._abort)
        try:
            if size > UNREAD_BYTES and not message.get("more_body"):
                await self._send({**message, "more_body": True})
                message = {"type": "http.response.body"}  # for which the server waits
            await self._send(message)
        except RuntimeError:  # uvloop's, for a connection that is closed
            if not self._aborted:
                raise
        finally:
            timer.cancel()

    def _abort(self) -> None:
        """An orderly close would wait for what is still to be read."""
        abort = self._scope.get(ABORT)
        if abort is not None:  # None under another server, in a test
            self._aborted = True
            abort()

    async def _discard_body(self) -> None:
        discarded = 0
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._body_read and discarded < LINGER_BYTES:
                    discarded += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def _announces_body(scope: Scope) -> bool:
    """Whether a body follows the request's head: RFC 9112 section 6.3."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" \t0"))
        for name, value in scope["headers"]
    )
