"""One connection of a client: uvicorn's, within bounds, and with our shape for what is no HTTP.

    bytes ─► parser ─┬─► request ─► served
                     ├─► request ─┐
                     ├─► request ─┴─ wait for those before them, MAX_WAITING at most
                     └─► no HTTP, or too much of it: 400, after the answers to all before it

uvicorn's own takes any number of requests behind one that is not answered, 70 bytes of memory for each byte,
and heads of any length. When the client goes it tells the last of them only. It takes the fields behind a
chunked body for headers, a key too. And where a client offers another protocol, as Java's and `curl --http2`
do, it takes the body for the next request, or drops it. What is overridden here is private to uvicorn: the
tests fail when it is not called any more.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from embedder.errors import InvalidRequest
from embedder.wire.door import LINGER_S
from embedder.wire.route import error_response

# Requests behind the one that is served. Few clients send any before they have their answer.
MAX_WAITING = 16
# Of what is not a body: a request's line and headers, and what is around and behind a chunked body.
MAX_HEAD_BYTES = 1 << 16
# Of a Content-Length: no number of bytes has more. Of thousands of them Python makes no number.
MAX_LENGTH_DIGITS = 20


class Connection(HttpToolsProtocol):
    """What BentoML's server makes for each client that connects."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: uvicorn's business
        super().__init__(*args, **kwargs)
        self._served: RequestResponseCycle | None = None
        """The request that was begun last; those behind it are in `pipeline`, the newest first."""
        self._in_body = False
        self._head_bytes = 0
        self._ignores_upgrade = False
        """The request under way offers another protocol: it is read again, without that."""
        self._refusal: InvalidRequest | None = None
        """Why nothing is read any more."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        # What comes after a refusal is dropped, but read: only so it is seen when the client goes.
        while data and self._refusal is None:
            self._head_bytes += len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserCallbackError as exc:
                self._refuse(str(exc.__context__))
            except httptools.HttpParserError:
                self._refuse("the request is not HTTP")
            else:
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse(f"the request's head has over {MAX_HEAD_BYTES} bytes")
            return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._ignores_upgrade = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return
        if len(value) > MAX_LENGTH_DIGITS and name.lower() == b"content-length":
            raise ValueError(f"the Content-Length has over {MAX_LENGTH_DIGITS} digits")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._ignores_upgrade = True
            return
        if len(self.pipeline) == MAX_WAITING:
            raise ValueError(f"more than {MAX_WAITING} requests wait for the answer to another")
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
        for cycle in self._unanswered():
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refusal is not None and not self._unanswered():
            self._send_refusal(self._refusal)

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

    def _unanswered(self) -> list[RequestResponseCycle]:
        served = [] if self._served is None or self._served.response_complete else [self._served]
        return [*served, *(cycle for cycle, _ in self.pipeline)]

    def _refuse(self, reason: str) -> None:
        self._refusal = InvalidRequest(reason)
        if self._in_body and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()  # it will never have come
        before = self._unanswered()
        if not before or (self._in_body and before == [self.cycle]):
            self._send_refusal(self._refusal)

    def _send_refusal(self, refusal: InvalidRequest) -> None:
        if self.transport.is_closing():
            return
        answer = error_response(refusal)
        fields = [*answer.raw_headers, (b"connection", b"close")]
        head = STATUS_LINE[answer.status_code] + b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(head + b"\r\n" + answer.body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:  # TLS
            self.transport.close()
