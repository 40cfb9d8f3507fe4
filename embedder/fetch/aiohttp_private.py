"""Connections that trust their origin less than aiohttp's do. Written for aiohttp 3.14.5.

Everything here overrides or reads private names of aiohttp; nothing else in `embedder` does. They are checked
when this module is imported, so that a release without them stops the start and removes no protection
unnoticed.

`aiohttp.TCPConnector(force_close=True)` in place of `BoundedConnector` works, too: it makes a connection, and
a TLS handshake, for each image, and leaves floods of tiny chunks and of interim answers to the deadline.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey

# For one request: interim responses (1xx) and the real one. Servers send one or two interim ones.
MAX_HEADS = 16
# For one response: what is not body, beside a sixteenth of the body. Chunks of one byte take a hundred times
# as long to parse as the same body in one piece; servers send kilobytes in each, with six bytes around them.
MAX_FRAMING_BYTES = 131_072

MAX_FIELD_BYTES = 65_536
MAX_FIELDS = 1000
"""Of an answer's head. aiohttp counts both."""


class HeadTooLong(aiohttp.ClientPayloadError):
    """More came than a head may have, before there was an answer."""


class BoundedConnector(aiohttp.TCPConnector):
    """Makes `StrictConnection`s, and keeps at most `limit` of them idle.

    aiohttp's `limit` counts connections in use only, and keeps each idle one for 15 seconds: a wildcard
    domain has as many names as it likes. The least recently used one is closed. Closing the newest would let
    a flood of distinct names (17 a second fill the pool) push out the CDN's.
    """

    def __init__(self, *, limit: int, **options: Any) -> None:  # Any: passed on
        super().__init__(limit=limit, **options)
        self._factory = partial(_strict_connection, self._loop)
        # By their last release. One that is in use again stays here until its turn, and is not closed then.
        self._idle_since: dict[ResponseHandler, ConnectionKey] = {}

    async def _wrap_create_connection(
        self,
        *factory: Any,
        **options: Any,  # Any: passed on
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        protocol = self._factory()
        try:
            return await super()._wrap_create_connection(lambda: protocol, **options)
        except BaseException:
            # A cancelled fetch may have its connection already: both in one iteration of the event loop. Left
            # alone, it waits 30 s for the peer's close_notify, or writes to a closed socket (uvloop).
            protocol.abort()
            raise

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        self._idle_since.pop(protocol, None)
        if protocol.transport is None:  # it was closed, not kept
            return
        self._idle_since[protocol] = key
        if len(self._idle_since) > self.limit:
            self._close_least_recently_used()

    def _close_least_recently_used(self) -> None:
        protocol = next(iter(self._idle_since))
        key = self._idle_since.pop(protocol)
        idle = self._conns.get(key)
        if idle and idle[0][0] is protocol:  # those of one host are in the same order
            idle.popleft()
            if not idle:
                del self._conns[key]
            protocol.close()


def _strict_connection(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return StrictConnection(loop)


class StrictConnection(ResponseHandler):
    """A connection that carries one response for each request, and is cut when it carries anything else.

    aiohttp's own hands a response that nobody asked for to the next request. It parses interim responses
    (1xx) as fast as they come, for seconds in one iteration of the event loop, and tiny chunks until the
    deadline. And the reader of a body waits until the deadline when the rest of the body is malformed.
    """

    _heads = 0
    _answered = False
    _received_bytes = 0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._head = bytearray()
        """What has come of a head that is not complete yet."""

    # Any, here and below: aiohttp's private types.
    def set_response_params(self, **params: Any) -> None:
        self._heads, self._answered, self._received_bytes, self._head = 0, False, 0, bytearray()
        super().set_response_params(**params)

    def feed_data(self, data: tuple[Any, Any], size: int = 0) -> None:
        head, _ = data
        self._heads += 1 + MAX_HEADS * self._answered
        # All but interim ones are final. To aiohttp that includes 101 and 000 to 099.
        self._answered = head.code == 101 or not 100 <= head.code < 200
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if not data:  # aiohttp's own call: parse what it kept while reading was paused
            super().data_received(data)
            self._cut_if_too_much()
            self._cut_if_another_began()
            return
        while data and self.is_connected():
            if self._is_over():
                self._cut()
                return
            if self._in_body():
                self._received_bytes += len(data)
                super().data_received(data)
                data = b""
            else:
                data = self._take_head(data)
            self._cut_if_too_much()
        self._cut_if_another_began()

    def close(self) -> None:
        # Without TLS's close_notify: it would wait 30 s for the peer's, and read all that the peer sends.
        self.abort()

    def set_exception(self, exc: Any, *args: Any) -> None:
        super().set_exception(exc, *args)
        self._break_body_off(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None:  # a reset does not end a body, not even one without a length
            self._break_body_off(exc)
        super().connection_lost(exc)

    def _in_body(self) -> bool:
        return self._payload is not None and not self._payload.is_eof()

    def _is_over(self) -> bool:
        return self._answered and not self._in_body()

    def _take_head(self, data: bytes) -> bytes:
        """Parses a head once it is complete; what does not begin like one, at once. Returns what is behind it."""
        searched = max(0, len(self._head) - 3)
        self._head += data
        blank_line = _BLANK_LINE.search(self._head, searched)
        end = len(self._head) if blank_line is None else blank_line.end()
        self._received_bytes += len(data) - (len(self._head) - end)
        if blank_line is None and _may_be_head(self._head):
            return b""
        head, rest = bytes(self._head[:end]), bytes(self._head[end:])
        self._head.clear()
        super().data_received(tidied_head(head))
        return rest

    def _break_body_off(self, cause: BaseException) -> None:
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError("the body broke off"), cause)

    def _cut_if_too_much(self) -> None:
        body_bytes = self._payload.total_bytes if self._payload is not None else 0
        framing_bytes = self._received_bytes - body_bytes
        # While reading is paused, some of what was received is not parsed yet, and may be body.
        tiny = framing_bytes > MAX_FRAMING_BYTES + body_bytes // 16 and not self._reading_paused
        if tiny and not self._answered:
            self._cut(HeadTooLong())
        elif tiny or self._heads > MAX_HEADS:
            self._cut()

    def _cut_if_another_began(self) -> None:
        """Cut the connection when a next response began behind this one.

        aiohttp forgets that beginning when the connection is used again. The rest of it would then be the
        response to that request.
        """
        if self._parser is None or not self._is_over():
            return
        try:
            began = self._parser.feed_eof() is not None
        except (aiohttp.http.HttpProcessingError, ValueError):  # what began is no head
            began = True
        if began:
            self._cut()

    def _cut(self, why: Exception | None = None) -> None:
        self.set_exception(why or aiohttp.ClientPayloadError("more than one response, or little but framing"))
        if self.transport is not None:
            self.transport.abort()


def _may_be_head(data: bytes | bytearray) -> bool:
    return data[:5].lower() == b"http/"[: len(data)]


def tidied_head(head: bytes) -> bytes:
    """A response's head as browsers read it, where llhttp refuses it.

    Of the status line, the version and blanks; lines that are no field; blanks before colons; a length that is stated
    twice, is no number, or stands beside chunks; a Transfer-Encoding that is none. Such a connection is not kept.
    """
    if b"\0" in head or head.count(b"\n") > MAX_FIELDS + 2:
        return head  # which is refused: a flood of 26,000 lines would take 57 ms
    first, *lines = _LINE_END.split(_FOLDED.sub(b" ", head))
    status = _STATUS_LINE.match(first)
    if status is None:
        return head
    version = b"1.0" if status[1] == b"1.0" else b"1.1"
    fields = [found for line in lines if (found := _FIELD.fullmatch(line))]
    framing = [(found[1].lower(), found[2].strip(b" \t")) for found in fields if found[1].lower() in _FRAMING]
    kept = [found[1] + b":" + found[2] for found in fields if found[1].lower() not in _FRAMING]
    codings = [
        coding.strip().lower() for name, value in framing if name == _CODING for coding in value.split(b",")
    ]
    lengths = {length.strip() for name, value in framing if name == _LENGTH for length in value.split(b",")}
    codings = [coding for coding in dict.fromkeys(codings) if coding not in _NO_CODINGS]
    if codings:
        meant = [b"Transfer-Encoding: " + b", ".join(codings)]
    else:
        meant = [b"Content-Length: " + length for length in lengths if length.isdigit()]
    if [line.lower() for line in meant] != [name + b": " + value.lower() for name, value in framing]:
        kept = [line for line in kept if line[:11].lower() != b"connection:"] + [b"Connection: close"]
    return b"\r\n".join([b"HTTP/%b %b" % (version, status[2]), *kept, *meant, b"", b""])


_BLANK_LINE = re.compile(rb"\n\r?\n")
_LINE_END = re.compile(rb"\r?\n")
_FOLDED = re.compile(rb"\r?\n[ \t]++(?=[^\r\n])")
_STATUS_LINE = re.compile(rb"http/([0-9](?:\.[0-9]+)?)[ \t]*([0-9]{3}(?:[ \t][^\0]*)?)", re.IGNORECASE)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:([^\0\r]*)")
_CODING, _LENGTH = b"transfer-encoding", b"content-length"
_FRAMING = (_CODING, _LENGTH)
_NO_CODINGS = (b"", b"identity", b"none", b"binary")


def _check_private_names() -> None:
    overridden: dict[type, dict[str, set[str]]] = {
        aiohttp.TCPConnector: {
            "_wrap_create_connection": {"addr_infos"},
            "_release": {"key", "should_close"},
        },
        ResponseHandler: {
            "set_response_params": {"read_until_eof"},
            "feed_data": {"data", "size"},
            "data_received": {"data"},
            "set_exception": {"exc"},
            "connection_lost": {"exc"},
            "close": {"self"},
            "abort": {"self"},
            "is_connected": {"self"},
        },
        aiohttp.http.HttpResponseParser: {"feed_eof": set()},
    }
    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in overridden.items()
        for name, parameters in names.items()
        if not hasattr(owner, name)
        or not parameters <= set(inspect.signature(getattr(owner, name)).parameters)
    ]
    # Attributes are made in `__init__`, which needs an event loop: that they are named there is what shows.
    for owner, attributes in (
        (aiohttp.connector.BaseConnector, {"_conns", "_factory", "_loop"}),
        (ResponseHandler, {"_payload"}),
        (aiohttp.base_protocol.BaseProtocol, {"_parser", "_reading_paused", "transport"}),
    ):
        missing += [f"{owner.__name__}.{name}" for name in attributes - set(owner.__init__.__code__.co_names)]
    if missing:
        raise ImportError(
            f"aiohttp {aiohttp.__version__} has changed {', '.join(sorted(missing))}, which protects "
            f"downloads: install aiohttp 3.14.5, or adapt {__name__}"
        )


_check_private_names()
