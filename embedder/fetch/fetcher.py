"""URL → bytes, within limits. The only file that knows aiohttp.

The guard sits where an address is dialled: `_open_socket` sees the exact address of every attempt, whether
it was written in the URL, came from a name, or from a redirect. Everything before it only fails earlier
and with a better sentence.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from embedder import metrics
from embedder.errors import (
    Draining,
    FetchFailed,
    FetchTimeout,
    ImageTooLarge,
    Overloaded,
    UnsupportedFormat,
    URLNotAllowed,
)
from embedder.fetch.addresses import Address, AddressPolicy
from embedder.fetch.stalls import Stalls
from embedder.fetch.urls import URLPolicy
from embedder.images.decode import HEAD_BYTES, sniff
from embedder.runtime.file_limits import is_reserved
from embedder.runtime.memory import Hold

# For one round of dialling all of a name's addresses, and the TLS handshake. Two seconds reach any origin
# that is up; a black hole then costs no more, where it would cost the whole deadline.
CONNECT_TIMEOUT_S = 2.0
# In one worker. Images mostly come from one CDN; a host that hangs can hold no more than these.
MAX_CONNECTIONS_PER_HOST = 64
# A name with hundreds of addresses would otherwise be dialled for the whole deadline.
MAX_ADDRESSES_PER_NAME = 8
# Each is looked at, on the event loop: 15 µs. Over TCP a name server can send four thousand.
MAX_ADDRESSES_PER_ANSWER = 256

# The event loop stalls for less than this wherever there is work.
MIN_STALL_S = 1.0

# Of one answer: interim ones (1xx) before the real one. Servers send one or two.
MAX_HEADS = 8
HEAD_STEP_BYTES = 4096
# Of one answer: what is not its body, beside a sixteenth of that. Parsing chunks of one byte takes a hundred
# times as long as the same body in one piece; servers send kilobytes in each, and six bytes around them.
MAX_FRAMING_BYTES = 65_536

_HEADERS = {
    "User-Agent": "image-embedder",
    # What can be decoded, so that a CDN that negotiates (Cloudinary's f_auto) does not send AVIF.
    "Accept": "image/jpeg,image/png,image/webp,image/gif",
    "Accept-Encoding": "identity",
}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# One sentence for refused, unresolvable, unroutable and forbidden addresses: a client must not learn
# from the answer what stands inside the network.
_UNREACHABLE = "the image's server can't be reached"
# No descriptor or memory is left for a socket, in this process or on this machine.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

OpenSocket = Callable[[int, int, int], socket.socket]
"""`socket.socket`, or a stand-in: (family, type, protocol) → an unconnected socket."""


class Fetcher:
    """Downloads images over http and https.

    Make it anywhere, use it on one event loop: `await start()`, any number of `fetch`, and `await close()`
    when none is under way.
    """

    def __init__(
        self,
        urls: URLPolicy,
        *,
        max_bytes: int,
        timeout_s: float,
        max_redirects: int,
        max_connections: int = 256,
        resolver: Callable[[], AbstractResolver] = aiohttp.AsyncResolver,
        open_socket: OpenSocket = socket.socket,
    ) -> None:
        self._urls = urls
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._max_redirects = max_redirects
        self._max_connections = max_connections
        self._make_resolver = resolver
        self._new_socket = open_socket
        self._stalls = Stalls()
        self._resolver: _GuardedResolver
        self._session: aiohttp.ClientSession

    async def start(self) -> None:
        self._stalls.start()
        self._resolver = _GuardedResolver(self._make_resolver(), self._urls.addresses)
        connector = _Connector(
            resolver=self._resolver,
            socket_factory=self._open_socket,
            limit=self._max_connections,
            limit_per_host=MAX_CONNECTIONS_PER_HOST,
            # Also how many addresses aiohttp gives up after a round over all of them has failed: with fewer,
            # it would dial the others again.
            interleave=MAX_ADDRESSES_PER_NAME,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # no proxy variables, no netrc
            trace_configs=[_notes_reused_connections()],
        )

    async def close(self) -> None:
        self._stalls.close()
        await self._session.close()
        await self._resolver.close()
        await asyncio.sleep(0)  # what was cut is closed in the event loop's next turn

    async def fetch(self, text: str, hold: Hold | None = None) -> bytes:
        """The body behind the URL `text`: at most `max_bytes`, beginning like an image, counted in `hold`.

        Raises URLNotAllowed, ImageTooLarge, UnsupportedFormat, FetchFailed or FetchTimeout; Overloaded when
        `hold` has no room for it, or the process none for a connection, or when it was this process that took
        the time; Draining after `close`.
        Waiting for a connection counts as part of `timeout_s`; so do all redirects.
        """
        url = self._urls.admit(text)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        stalled_before_s = self._stalls.seconds()
        try:
            with metrics.fetch_stage.time():
                for _ in range(self._max_redirects + 1):
                    answer = await self._get(url, deadline, hold)
                    if isinstance(answer, bytes):
                        return answer
                    url = answer
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as exc:
            # ValueError is aiohttp's for some malformed answers.
            error = self._translated(exc)
            if isinstance(error, FetchTimeout):
                stalled_s = self._stalls.seconds() - stalled_before_s
                if _stall_is_to_blame(stalled_s, limit_s=error.limit_s):
                    raise Overloaded("the service was too busy to fetch the image in time") from exc
            raise error from exc
        raise FetchFailed(f"the image's server redirects more than {self._max_redirects} times")

    async def _get(self, url: URL, deadline: float, hold: Hold | None) -> bytes | URL:
        """The image at `url`, or where it redirects to.

        Origins close kept connections when they like, many at once, and it may be in the moment that one is
        used again; or the rest of an earlier answer comes then. Only what a new connection does before there
        is an answer is the origin's doing.
        """
        while True:
            attempt = _Attempt()
            try:
                return await self._try_to_get(url, deadline, hold, attempt)
            except (aiohttp.ClientError, ValueError):
                if attempt.answered or not attempt.reused:
                    raise

    async def _try_to_get(
        self, url: URL, deadline: float, hold: Hold | None, attempt: _Attempt
    ) -> bytes | URL:
        if self._session.closed:
            raise Draining
        remaining_s = deadline - asyncio.get_running_loop().time()
        if remaining_s <= 0:
            raise asyncio.TimeoutError
        timeout = aiohttp.ClientTimeout(
            total=remaining_s,
            sock_connect=CONNECT_TIMEOUT_S,
            ceil_threshold=math.inf,  # aiohttp rounds long timeouts up to whole seconds otherwise
        )
        # At the block's end a connection whose answer was read to its end goes back to the pool. Any other is
        # cut: the rest of an unwanted answer is not worth downloading.
        async with self._session.get(
            url, timeout=timeout, allow_redirects=False, trace_request_ctx=attempt
        ) as response:
            attempt.answered = True
            if response.status in _REDIRECTS:
                return self._redirect_target(url, response)
            self._check_head(response)
            return await self._read(response, hold)

    def _redirect_target(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        locations = set(response.headers.getall("Location", []))
        if not locations:
            raise FetchFailed(f"the image's server answered {response.status} without a Location")
        if len(locations) > 1:
            raise FetchFailed(f"the image's server answered {response.status} with different Locations")
        try:
            target = self._urls.follow(url, locations.pop())
        except URLNotAllowed as exc:
            raise FetchFailed(f"the image's server redirects to a URL that is not allowed: {exc}") from exc
        if url.scheme == "https" and target.scheme == "http":
            raise FetchFailed("the image's server redirects from https to http")
        return target

    def _check_head(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise FetchFailed(f"the image's server answered {response.status}")
        if any(coding not in ("", "identity") for coding in _codings(response, "Content-Encoding")):
            raise FetchFailed("the image's server answered with a Content-Encoding that was not asked for")
        if _codings(response, "Transfer-Encoding") not in (["chunked"], ["identity"], [""]):
            raise FetchFailed("the image's server answered with a Transfer-Encoding that was not asked for")
        if response.content_length is not None and response.content_length > self._max_bytes:
            raise ImageTooLarge(limit_bytes=self._max_bytes, actual_bytes=response.content_length)

    async def _read(self, response: aiohttp.ClientResponse, hold: Hold | None) -> bytes:
        chunks: list[bytes] = []
        length = 0
        is_image = False
        async for chunk in response.content.iter_any():
            chunks.append(chunk)
            length += len(chunk)
            if length > self._max_bytes:
                raise ImageTooLarge(limit_bytes=self._max_bytes)
            if hold is not None:
                hold.add(len(chunk))
            if not is_image and length >= HEAD_BYTES:
                if sniff(b"".join(chunks)[:HEAD_BYTES]) is None:
                    raise UnsupportedFormat
                is_image = True
        if not is_image:
            raise UnsupportedFormat  # too short to be any image
        return b"".join(chunks)

    def _open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for the address in `info`, if it may be dialled."""
        family, kind, protocol, _, sockaddr = info
        address = ip_address(sockaddr[0])
        zone = sockaddr[3] if len(sockaddr) == 4 else 0
        if zone or not _may_dial(address, self._urls.addresses):
            raise PermissionError(errno.EACCES, "address not allowed")
        opened = self._new_socket(family, kind, protocol)
        if is_reserved(opened.fileno()):
            opened.close()
            raise OSError(errno.EMFILE, "only reserved descriptors are left")
        return opened

    def _translated(self, exc: Exception) -> FetchFailed | FetchTimeout | Overloaded:
        """What a client is told of an error of aiohttp's or the system's."""
        if isinstance(exc, aiohttp.ConnectionTimeoutError):
            return FetchTimeout(
                limit_s=min(CONNECT_TIMEOUT_S, self._timeout_s),
                event="no connection to the image's server came about",
            )
        if isinstance(exc, asyncio.TimeoutError):
            return FetchTimeout(limit_s=self._timeout_s)
        if isinstance(exc, aiohttp.ClientConnectorCertificateError):
            reason = getattr(exc.certificate_error, "verify_message", "") or "it does not match"
            return FetchFailed(f"the certificate of the image's server is not valid: {reason}")
        if isinstance(exc, aiohttp.ClientSSLError | ssl.SSLError):
            return FetchFailed("the TLS connection to the image's server failed")
        if isinstance(exc, aiohttp.ClientConnectorError) and exc.errno in _NO_ROOM:
            return Overloaded("the service has no room for another connection now")
        if isinstance(exc, aiohttp.ClientConnectorError | aiohttp.InvalidURL):
            return FetchFailed(_UNREACHABLE)
        return FetchFailed("the image's server broke off or did not speak HTTP")


class _Connector(aiohttp.TCPConnector):
    """Makes connections that carry `_OneAnswer`, and keeps no more idle than may be in use: `limit` of them.

    aiohttp's own limits count those in use only, and each name of a wildcard domain would keep one for a
    quarter of a minute. The one that was idle longest is closed: if it were the newest, a crowd of names, 17
    in a second, would leave no room for those of a CDN; so it must come hundreds of times between two uses of
    one. What is overridden here is private to aiohttp: the tests fail when it is not called any more.
    """

    def __init__(self, *, limit: int, **options: Any) -> None:  # Any: passed on
        super().__init__(limit=limit, **options)
        # By their last release. Those in use again stay here until they are pushed out, which closes no one.
        self._kept: dict[ResponseHandler, ConnectionKey] = {}

    async def _wrap_create_connection(
        self,
        *factory: Any,
        **options: Any,  # Any: passed on
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        protocol = _OneAnswer(asyncio.get_running_loop())
        try:
            return await super()._wrap_create_connection(lambda: protocol, **options)
        except BaseException:
            # It may be there although the fetch was cancelled: both in one turn of the event loop. That waits
            # half a minute for the peer's farewell then, or writes to a socket that it has closed (uvloop).
            protocol.abort()
            raise

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        self._kept.pop(protocol, None)
        if protocol.transport is None:  # it was closed, not kept
            return
        self._kept[protocol] = key
        if len(self._kept) > self.limit:
            self._close_oldest()

    def _close_oldest(self) -> None:
        protocol = next(iter(self._kept))
        key = self._kept.pop(protocol)
        idle = self._conns.get(key)
        if idle and idle[0][0] is protocol:  # those of one host are in the same order
            idle.popleft()
            if not idle:
                del self._conns[key]
            protocol.close()


def _stall_is_to_blame(stalled_s: float, *, limit_s: float) -> bool:
    """Whether it was the event loop that kept an answer from coming within `limit_s`."""
    return stalled_s > max(limit_s / 2, MIN_STALL_S)


def _codings(response: aiohttp.ClientResponse, header: str) -> list[str]:
    return [coding.strip().lower() for coding in ",".join(response.headers.getall(header, [])).split(",")]


@dataclass
class _Attempt:
    reused: bool = False
    answered: bool = False


def _notes_reused_connections() -> aiohttp.TraceConfig:
    """Notes in the `_Attempt` that a request is given whether its connection was used before."""

    async def note(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        context.trace_request_ctx.reused = True

    traces = aiohttp.TraceConfig()
    traces.on_connection_reuseconn.append(note)
    return traces


class _OneAnswer(ResponseHandler):
    """A connection that carries one answer for each request, and is cut when it carries anything else.

    aiohttp's own gives an answer that nobody asked for to the next request; it parses interim answers (1xx)
    as fast as they come, seconds in one turn of the event loop, and tiny chunks until the deadline; and it
    leaves the reader of a body waiting when the rest of it is malformed. What is overridden here is private
    to aiohttp: the tests fail when it is not called any more.
    """

    _heads = 0
    _answered = False
    _received_bytes = 0

    # Any, here and below: aiohttp's private types.
    def set_response_params(self, **params: Any) -> None:
        self._heads, self._answered, self._received_bytes = 0, False, 0
        super().set_response_params(**params)

    def feed_data(self, data: tuple[Any, Any], size: int = 0) -> None:
        head, _ = data
        self._heads += 1 + MAX_HEADS * self._answered
        # Any but an interim one, as aiohttp has it: of those below 200, "switching protocols" and 000 to 099.
        self._answered = head.code == 101 or not 100 <= head.code < 200
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if not data:  # aiohttp's own call, to go on with what it has, which may be more than one answer
            super().data_received(data)
            self._cut_what_is_too_much()
            self._cut_what_began_after_it()
            return
        position = 0
        while position < len(data) and self.is_connected():
            if self._is_over():
                self._cut()
                return
            end = len(data) if self._in_body() else self._end_of_head_step(data, position)
            self._received_bytes += end - position
            super().data_received(data[position:end])
            position = end
            self._cut_what_is_too_much()
        self._cut_what_began_after_it()

    def close(self) -> None:
        # Without TLS's farewell: it would wait half a minute for the peer's, and read all that comes instead.
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

    def _end_of_head_step(self, data: bytes, start: int) -> int:
        """A head goes to the parser bit by bit: the rest of a flood of heads is not worth parsing.

        And without what follows it, where a mistake would be taken for the head's.
        """
        end = start + HEAD_STEP_BYTES
        blank_line = data.find(b"\r\n\r\n", start, end)
        return min(end, len(data)) if blank_line < 0 else blank_line + 4

    def _break_body_off(self, cause: BaseException) -> None:
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError("the body broke off"), cause)

    def _cut_what_is_too_much(self) -> None:
        body_bytes = self._payload.total_bytes if self._payload is not None else 0
        framing_bytes = self._received_bytes - body_bytes
        # While reading is paused, not all that was received is parsed yet: the rest may be body.
        tiny = framing_bytes > MAX_FRAMING_BYTES + body_bytes // 16 and not self._reading_paused
        if tiny or self._heads > MAX_HEADS:
            self._cut()

    def _cut_what_began_after_it(self) -> None:
        """aiohttp forgets what it has of a next answer when the connection is used again.

        The rest of it would be the answer to that request.
        """
        if self._parser is None or not self._is_over():
            return
        try:
            began = self._parser.feed_eof() is not None
        except (aiohttp.http.HttpProcessingError, ValueError):  # it began with what is no head
            began = True
        if began:
            self._cut()

    def _cut(self) -> None:
        self.set_exception(aiohttp.ClientPayloadError("more than one answer, or little but framing"))
        if self.transport is not None:
            self.transport.abort()


class _GuardedResolver(AbstractResolver):
    """Refuses a name as a whole when any of its addresses may not be dialled.

    A name that mixes public and private answers is how a filter that tries one after the other is fooled.
    Where the operator vouches for some of a name's addresses, the name is the operator's own and its other
    answers are only dropped: "localhost" is also ::1 where just 127.0.0.0/8 was allowed.
    """

    def __init__(self, resolver: AbstractResolver, addresses: AddressPolicy) -> None:
        self._resolver = resolver
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            answers = await self._resolver.resolve(host, port, family)
            if len(answers) > MAX_ADDRESSES_PER_ANSWER:
                raise OSError(errno.EMSGSIZE, "the name has too many addresses")
            addresses = [ip_address(answer["host"]) for answer in answers]
        except (asyncio.TimeoutError, LookupError, RuntimeError, TypeError, ValueError) as exc:
            # Resolvers raise more than OSError, and answer with more than addresses. A TimeoutError, to
            # aiohttp, is the deadline's.
            raise OSError(errno.EIO, "the look-up failed") from exc
        vouched = [
            a for a, address in zip(answers, addresses, strict=True) if self._addresses.vouched_for(address)
        ]
        if vouched:
            answers = vouched
        elif not all(_may_dial(address, self._addresses) for address in addresses):
            raise PermissionError(errno.EACCES, "address not allowed")
        if not answers:
            raise OSError(errno.ENODATA, "the name has no address")
        return answers[:MAX_ADDRESSES_PER_NAME]

    async def close(self) -> None:
        await self._resolver.close()


def _may_dial(address: Address, addresses: AddressPolicy) -> bool:
    if addresses.vouched_for(address):
        return True
    return addresses.allows(address) and not _is_this_machines(address)


def _is_this_machines(address: Address) -> bool:
    """Whether `address` is one of this machine's: it may be public, but it leads inside.

    An address can be bound exactly when it is the machine's own: any of any interface's, and those of whole
    networks that are routed to the machine. No packet is sent. Where that can't be found out
    (net.ipv4.ip_nonlocal_bind is on) the answer is yes: nothing is dialled. Nor is it when there is no room
    for a socket, which is raised.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise
        return exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True
