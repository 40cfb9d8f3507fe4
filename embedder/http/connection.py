"""One connection of a client: uvicorn's, within bounds, and with our shape for what is no HTTP.

    bytes ─► parser ─┬─► request ─► served
                     ├─► request ─┐
                     ├─► request ─┴─ wait for those before them, MAX_WAITING at most
                     └─► no HTTP, or too much of it: 400, after the answers to all before it

uvicorn's own takes any number of requests behind one that is not answered, 70 bytes of memory for each byte.
It takes heads of any length, waits for them for ever, and takes the fields behind a chunked body for headers.
When the client goes it tells the last of its requests only. Where a client offers another protocol, as Java's
and `curl --http2` do, it drops the body, or takes it for the next request. What is overridden here is private
to uvicorn: the tests fail when it is not called any more.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from embedder.errors import InvalidRequest
from embedder.http.bentoml_io import error_response
from embedder.http.gate import LINGER_S
from embedder.runtime.file_limits import is_reserved

# Requests behind the one that is served. Few clients send any before they have their answer.
MAX_WAITING = 16
# Of what is not a body: a request's line and headers, and what is around and behind a chunked body.
MAX_HEAD_BYTES = 1 << 16
_HEAD_TOO_LARGE = f"the request's head has over {MAX_HEAD_BYTES} bytes"
# Until a connection's first request, and from the first byte of any to the end of its head; or from the end
# of the answer that it was sent behind.
HEAD_TIMEOUT_S = 30.0
# Of a Content-Length: no number of bytes has more. Of thousands of them Python makes no number.
MAX_LENGTH_DIGITS = 20


class _TooMuch(ValueError):
    """Raised out of the parser, with what a client is told."""


class Connection(HttpToolsProtocol):
    """What BentoML's server makes for each client that connects."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: uvicorn's business
        super().__init__(*args, **kwargs)
        self._served: RequestResponseCycle | None = None
        """The request that was begun last; those behind it are in `pipeline`, the newest first."""
        self._in_head = self._in_body = False
        self._head_bytes = 0
        """Received since anything but a head was, or since the last one."""
        self._kept_bytes = 0
        """Of the head under way, kept: its target and its fields."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._ignores_upgrade = False
        """The request under way offers another protocol: it is read again, without that."""
        self._refusal: InvalidRequest | None = None
        """Why nothing is read any more."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if is_reserved(transport.get_extra_info("socket").fileno()):
            transport.abort()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        # What comes after a refusal is dropped, but read: only so it is seen when the client goes.
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
        self._kept_bytes = 0
        self._ignores_upgrade = False

    def on_url(self, url: bytes) -> None:
        self._keep(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return
        self._keep(len(name) + len(value))
        if len(value) > MAX_LENGTH_DIGITS and name.lower() == b"content-length":
            raise _TooMuch(f"the Content-Length has over {MAX_LENGTH_DIGITS} digits")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._in_head = False
        self._stop_waiting_for_head()
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
        elif self._in_head:  # part of it is there: the connection is not idle, as uvicorn takes it to be
            self._unset_keepalive_if_required()
            self._wait_for_head()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        return False

    def _head_without_upgrade(self) -> bytes:
        """What was read of a request that offers another protocol: nobody has to accept that."""
        fields = (b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))

    def _keep(self, size: int) -> None:
        # A head that ends in what is received together is never seen without its end.
        self._kept_bytes += size
        if self._kept_bytes > MAX_HEAD_BYTES:
            raise _TooMuch(_HEAD_TOO_LARGE)

    def _in_work(self) -> bool:
        """Whether a request is; others may wait behind it."""
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
        self._refusal = InvalidRequest(reason)
        if self._in_body and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()  # it will never have come
        if not self._in_work():
            self._send_refusal(self._refusal)
        elif self._in_body and self._served is self.cycle:
            if self.cycle.response_started:  # which says that the connection is closed
                self.transport.close()
            else:
                self._send_refusal(self._refusal)

    def _send_refusal(self, refusal: InvalidRequest) -> None:
        if self.transport.is_closing():
            return
        answer = error_response(refusal)
        fields = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        head = STATUS_LINE[answer.status_code] + b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(head + b"\r\n" + answer.body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:  # TLS
            self.transport.close()
