"""One client's connection: uvicorn's httptools protocol, bounded. Written for uvicorn 0.54.

    bytes ─► parser ─┬─► request ─► served
                     ├─► request ─┐
                     ├─► request ─┴─ wait for those before them, MAX_WAITING at most
                     └─► not HTTP, or too much of it: 400, after the answers to all before it

What uvicorn's own protocol does, and this one does not:

- It takes any number of pipelined requests: 70 bytes of memory for each byte that is sent.
- It takes heads of any length, and waits for their end without a limit.
- It takes the trailers of a chunked body for headers: an API key among them would count.
- When the client leaves, it tells only the last of its requests.
- When a client offers another protocol (`curl --http2` and Java's HttpClient offer h2c), it drops the body of the
  request, or takes the body for the next request.

uvicorn's h11 protocol has bounds of its own, but costs 0.25 ms of CPU a request, and has no deadline for heads.
All names of uvicorn that are used here are private. Importing this file checks that they are there.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from embedder.errors import InvalidRequest
from embedder.http.client import ABORT, LINGER_S
from embedder.http.dialects.native import error_reply
from embedder.runtime.file_limits import is_reserved

MAX_WAITING = 16
"""Pipelined requests behind the one that is served. Few clients send any."""
MAX_HEAD_BYTES = 1 << 16
"""Of a request's line and headers; also of what frames a chunked body, between two pieces of it and behind it."""
HEAD_TIMEOUT_S = 30.0
"""For a connection's first request to begin, and for the rest of a head whose first byte is there.

Behind a request that is being served it counts from the end of that answer."""
MAX_LENGTH_DIGITS = 20
"""Of a Content-Length. Python refuses to parse integers of thousands of digits."""

_HEAD_TOO_LARGE = f"the request's head has over {MAX_HEAD_BYTES} bytes"


def _check() -> None:
    """Raises ImportError where uvicorn is not as this file knows it."""
    overridden = [
        *("connection_made", "connection_lost", "data_received", "_start_asgi_task", "_should_upgrade"),
        *("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
        *("on_response_complete", "_unset_keepalive_if_required"),
    ]
    attributes = {
        HttpToolsProtocol.__init__: ("parser", "pipeline", "cycle", "headers", "transport", "server_state"),
        HttpToolsProtocol.on_url: ("url",),
        HttpToolsProtocol.on_headers_complete: ("appendleft", "should_upgrade", "_should_upgrade"),
        HttpToolsProtocol.on_response_complete: ("pipeline", "pop", "_start_asgi_task"),
        RequestResponseCycle.__init__: (
            *("scope", "disconnected", "message_event", "response_started", "response_complete"),
        ),
    }
    known = (
        all(hasattr(HttpToolsProtocol, name) for name in overridden)
        and all(set(names) <= set(function.__code__.co_names) for function, names in attributes.items())
        and list(inspect.signature(HttpToolsProtocol._start_asgi_task).parameters) == ["self", "cycle", "app"]
    )
    if not known:
        raise ImportError(
            "this uvicorn is not as embedder/http/uvicorn_private.py knows it: install requirements.lock"
        )


_check()


class _TooMuch(ValueError):
    """Raised out of the parser, with the sentence for the client."""


class Connection(HttpToolsProtocol):
    """What uvicorn makes for each client that connects."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: uvicorn's business
        super().__init__(*args, **kwargs)
        self._served: RequestResponseCycle | None = None
        """The last request that was begun. Those that wait are in `pipeline`, the newest first."""
        self._in_head = self._in_body = False
        self._head_bytes = 0
        """Received since the last piece of a body, or since the end of the last head."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._ignores_upgrade = False
        """The request offers another protocol: it is parsed a second time, without the offer."""
        self._refusal: InvalidRequest | None = None
        """Why the rest of the connection is not parsed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if is_reserved(transport.get_extra_info("socket").fileno()):
            transport.abort()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        # After a refusal bytes are read and dropped: without reading, nobody would see the client leave.
        while data and self._refusal is None:
            self._head_bytes += len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                again = self._head_without_upgrade() if self._ignores_upgrade else b""
                data = again + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as exc:
                too_much = isinstance(exc.__context__, _TooMuch)
                self._refuse(str(exc.__context__) if too_much else "the request is not HTTP")
            else:
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse(_HEAD_TOO_LARGE)
                elif not (self._in_body or self._in_work()):
                    self._wait_for_head()
            return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._ignores_upgrade = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer
            return
        if len(value) > MAX_LENGTH_DIGITS and name.lower() == b"content-length":
            raise _TooMuch(f"the Content-Length has over {MAX_LENGTH_DIGITS} digits")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._in_head = False
        self._stop_waiting_for_head()
        # `_head_bytes` never sees a head whose end is in the same piece of data as its beginning.
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            raise _TooMuch(_HEAD_TOO_LARGE)
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._ignores_upgrade = True
            return
        if len(self.pipeline) == MAX_WAITING:
            raise _TooMuch(f"more than {MAX_WAITING} requests wait for the answer to another")
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._in_body = False
        if not self._ignores_upgrade:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting_for_head()
        if self._served is not None:
            self._served.disconnected = True
            self._served.message_event.set()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_work():
            return
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._in_head:  # uvicorn takes the connection to be idle, but part of a head is there
            self._unset_keepalive_if_required()
            self._wait_for_head()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        cycle.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]  # a key of ours
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        return False

    def _head_without_upgrade(self) -> bytes:
        """The head that was read, without its offer: a server may ignore one (RFC 9110 section 7.8)."""
        fields = (b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))

    def _in_work(self) -> bool:
        """Whether a request is being served; others may wait behind it."""
        return self._served is not None and not self._served.response_complete

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def _stop_waiting_for_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(f"the request's head did not arrive within {HEAD_TIMEOUT_S:g} s")
        else:
            self.transport.close()

    def _refuse(self, reason: str) -> None:
        """Parse nothing more, and answer 400 after the answers to all whole requests before it."""
        self._refusal = InvalidRequest(reason)
        if self._in_body and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()  # its body will never be complete
        if not self._in_work():
            self._send_refusal(self._refusal)
        elif self._in_body and self._served is self.cycle:
            if self.cycle.response_started:  # an answer that says that the connection is closed
                self.transport.close()
            else:
                self._send_refusal(self._refusal)

    def _send_refusal(self, refusal: InvalidRequest) -> None:
        if self.transport.is_closing():
            return
        reply = error_reply(refusal)
        fields = [
            *self.server_state.default_headers,
            *reply.raw_headers,
            (b"connection", b"close"),
        ]
        head = STATUS_LINE[reply.status_code] + b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(head + b"\r\n" + bytes(reply.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:  # TLS
            self.transport.close()
