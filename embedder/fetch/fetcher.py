"""URL → bytes, within limits, by aiohttp's public API.

A download is one deadline, at most `max_redirects` redirects, at most `max_bytes` bytes. Each hop is judged
like the first URL, and each address where it is dialled (`dialling.py`).

With a proxy only the proxy is dialled, and names are the proxy's to resolve: the proxy must keep downloads
away from internal addresses then. Addresses written in URLs are judged here in any case.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from embedder.errors import Draining, FetchFailed, ImageTooLarge, OriginError, URLNotAllowed
from embedder.fetch.aiohttp_private import MAX_FIELD_BYTES, MAX_FIELDS, BoundedConnector
from embedder.fetch.compression import Unpacker
from embedder.fetch.dialling import (
    MAX_ADDRESSES_PER_NAME,
    AddressRefused,
    GuardedResolver,
    OpenSocket,
    check_own_addresses_are_known,
    guarded_sockets,
    may_dial,
)
from embedder.fetch.failures import EXPLAINABLE, Failure, blamed_on_proxy, explained, unreachable
from embedder.fetch.proxy import Proxy
from embedder.fetch.urls import URLPolicy, literal_address
from embedder.images.formats import HEAD_BYTES, Format, recognised
from embedder.metrics.measures import Metrics
from embedder.runtime.byte_budget import Lease

logger = logging.getLogger(__name__)

# In one worker. Images mostly come from one CDN; a host that hangs holds no more than these.
MAX_CONNECTIONS_PER_HOST = 64

# Of a URL's host and path, and of a failure's cause, in the log.
MAX_LOGGED_CHARACTERS = 200

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WITHOUT_BODY = (204, 205)


class Fetcher:
    """Downloads images over http and https.

    Make it anywhere, use it on one event loop: `await start()`, any number of `fetch`, and `await close()`
    when none is under way.

    - `metrics.fetch_stage` times each download. `metrics.fetch_failures` counts each that failed, once, by
      its reason. A log line at level DEBUG gives the reason, the URL without its query, and the cause.
    - `version` and `contact` make the User-Agent: "image-embedder/0.1.0 (+https://example.org/bot)". Some
      public archives refuse agents without a contact.
    - `proxy`, "http://host:port" or "http://user:password@host:port", is what all downloads go through.
    - `connect_timeout_s` is for one round of dialling all of a name's addresses, and the TLS handshake. An
      origin that is up answers within 2 s; one that drops packets costs no more than that.
    """

    def __init__(
        self,
        urls: URLPolicy,
        *,
        metrics: Metrics,
        version: str,
        max_bytes: int,
        timeout_s: float,
        max_redirects: int,
        max_connections: int = 256,
        contact: str = "",
        proxy: str = "",
        formats: Collection[Format],
        connect_timeout_s: float = 2.0,
        resolver: Callable[[], AbstractResolver] = aiohttp.AsyncResolver,
        open_socket: OpenSocket = socket.socket,
    ) -> None:
        self._urls = urls
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._max_redirects = max_redirects
        self._max_connections = max_connections
        self._user_agent = f"image-embedder/{version}" + (f" (+{contact})" if contact else "")
        self._proxy = Proxy.of(proxy) if proxy else None
        self._formats = formats
        self._connect_timeout_s = connect_timeout_s
        self._make_resolver = resolver
        self._open_socket = open_socket
        self._resolver: GuardedResolver
        self._session: aiohttp.ClientSession

    async def start(self) -> None:
        """Raises StartError on machines where no address could be judged."""
        check_own_addresses_are_known()
        dialled = self._urls.addresses if self._proxy is None else None
        self._resolver = GuardedResolver(self._make_resolver(), dialled)
        connector = BoundedConnector(
            resolver=self._resolver,
            socket_factory=guarded_sockets(dialled, self._open_socket),
            limit=self._max_connections,
            limit_per_host=MAX_CONNECTIONS_PER_HOST,
            # Also how many addresses aiohttp drops after a round over all of them has failed. With fewer it
            # would dial the others again.
            interleave=MAX_ADDRESSES_PER_NAME,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={
                "User-Agent": self._user_agent,
                "Accept": _accept(self._formats),
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # no proxy variables, no netrc
            # Content-Security-Policy and Link have ten thousand bytes and more; servers allow 64 kB in all.
            max_line_size=MAX_FIELD_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_FIELDS,
            trace_configs=[_notes_on_connections()],
        )

    async def close(self) -> None:
        await self._session.close()
        await self._resolver.close()
        await asyncio.sleep(0)  # connections that were cut are closed in the next iteration of the event loop

    async def fetch(
        self,
        text: str,
        lease: Lease | None = None,
        *,
        began_s: float | None = None,
        head: Callable[[Mapping[str, str]], None] = lambda headers: None,
    ) -> bytes:
        """The body behind the URL `text`: at most `max_bytes`, beginning like an image, counted in `lease`.

        `began_s`, on the event loop's clock, is when whoever waits began to; None: now. `head` is called with the
        headers of the answer that has the image.

        Raises URLNotAllowed, ImageTooLarge, UnsupportedFormat, FetchFailed or FetchTimeout; Overloaded when
        `lease` has no room for it, or the process none for a connection; Draining after `close`.
        `timeout_s` includes waiting for a connection, and all redirects.
        """
        download = None
        try:
            began_s = asyncio.get_running_loop().time() if began_s is None else began_s
            download = _Download(self._urls.admit(text), began_s + self._timeout_s, lease, head)
            with self._metrics.fetch_stage.time():
                return await self._follow(download)
        except (Failure, *EXPLAINABLE) as exc:
            failure = explained(exc, timeout_s=self._timeout_s, connect_timeout_s=self._connect_timeout_s)
            if self._proxy is not None and download is not None and not download.attempt.connected:
                failure = blamed_on_proxy(failure)
            self._note(failure, None if download is None else download.url)
            if isinstance(failure.error, OriginError) and download is not None:
                failure.error.host = download.url.raw_host or ""
            if failure.error is exc:
                raise
            raise failure.error from exc

    async def _follow(self, download: _Download) -> bytes:
        for _ in range(self._max_redirects + 1):
            answer = await self._get(download)
            if isinstance(answer, bytes):
                return answer
            download.url = answer
        text = f"the image's server redirects more than {self._max_redirects} times"
        raise Failure("redirect", FetchFailed(text))

    async def _get(self, download: _Download) -> bytes | URL:
        """The image at the download's URL, or where that redirects to.

        An idle connection may be closed just as it is used again, or the rest of an earlier response may
        arrive then. So what fails before there is a response is tried again, until it fails on a new
        connection.
        """
        while True:
            download.attempt = attempt = _Attempt()
            try:
                return await self._try_to_get(download)
            except (aiohttp.ClientError, ValueError):
                if attempt.answered or not attempt.reused:
                    raise

    async def _try_to_get(self, download: _Download) -> bytes | URL:
        if self._session.closed:
            raise Draining
        url, attempt = download.url, download.attempt
        remaining_s = download.deadline_s - asyncio.get_running_loop().time()
        if remaining_s <= 0:
            raise TimeoutError
        timeout = aiohttp.ClientTimeout(
            total=remaining_s,
            sock_connect=self._connect_timeout_s,
            ceil_threshold=math.inf,  # aiohttp rounds long timeouts up to whole seconds otherwise
        )
        # At the block's end a connection whose response was read to its end goes back to the pool. Any other
        # is cut: the rest of an unwanted response is not worth downloading.
        async with self._session.get(
            url, timeout=timeout, allow_redirects=False, trace_request_ctx=attempt, **self._through_proxy(url)
        ) as response:
            attempt.answered = True
            if response.status in _REDIRECTS:
                return self._redirect_target(url, response)
            self._check_head(url, response)
            download.head(response.headers)
            return await self._read(response, download.lease)

    def _through_proxy(self, url: URL) -> dict[str, Any]:  # Any: options of aiohttp's, of several types
        if self._proxy is None:
            return {}
        address = literal_address((url.raw_host or "").removesuffix("."))
        if address is not None and not may_dial(address, self._urls.addresses):
            raise unreachable("address", AddressRefused(address).text)
        return self._proxy.options(url)

    def _redirect_target(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        answered = f"the image's server answered {response.status}"
        locations = set(response.headers.getall("Location", []))
        if not locations:
            raise Failure("redirect", FetchFailed(f"{answered} without a Location"))
        if len(locations) > 1:
            raise Failure("redirect", FetchFailed(f"{answered} with different Locations"))
        try:
            target = self._urls.follow(url, locations.pop())
        except URLNotAllowed as exc:
            text = f"the image's server redirects to a URL that is not allowed: {exc}"
            raise Failure("redirect", FetchFailed(text)) from exc
        if url.scheme == "https" and target.scheme == "http":
            raise Failure("redirect", FetchFailed("the image's server redirects from https to http"))
        return target

    def _check_head(self, url: URL, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if self._proxy is not None and self._proxy.may_have_answered(status, url):
            raise unreachable("connection", f"the proxy or the image's server answered {status}")
        if not 200 <= status < 300 or status in _WITHOUT_BODY or (status == 206 and not _is_whole(response)):
            error = FetchFailed(
                f"the image's server answered {status}",
                http_status=status,
                come_back_s=_come_back_s(response.headers),
            )
            raise Failure("status", error)
        if _codings(response, "Transfer-Encoding") not in ([], ["chunked"]):
            raise Failure(
                "answer", FetchFailed("the image's server answered in a Transfer-Encoding that is not known")
            )
        if response.content_length is not None and response.content_length > self._max_bytes:
            raise ImageTooLarge(limit_bytes=self._max_bytes, actual_bytes=response.content_length)

    async def _read(self, response: aiohttp.ClientResponse, lease: Lease | None) -> bytes:
        chunks: list[bytes] = []
        length = 0
        known = False
        unpacker = Unpacker(_codings(response, "Content-Encoding"), self._is_image)
        async for received in response.content.iter_any():
            for chunk in unpacker.parts(received):
                chunks.append(chunk)
                length += len(chunk)
                if not known and length >= HEAD_BYTES:
                    recognised(b"".join(chunks)[:HEAD_BYTES], self._formats)
                    known = True
                if length > self._max_bytes:
                    raise ImageTooLarge(limit_bytes=self._max_bytes)
                if lease is not None:
                    lease.add(len(chunk))
        data = b"".join(chunks)
        if not known:
            recognised(data, self._formats)
        return data

    def _is_image(self, begins: bytes) -> bool:
        return any(format.begins.match(begins) for format in self._formats)

    def _note(self, failure: Failure, url: URL | None) -> None:
        self._metrics.fetch_failures.labels(failure.reason).inc()
        where = "a URL that is not allowed" if url is None else _without_query(url)
        # %a escapes line ends and control characters: hosts, paths and causes come from clients and origins.
        logger.debug("download failed: %s: %a: %a", failure.reason, where, _bounded(failure.cause))


@dataclass
class _Attempt:
    """What became of one request."""

    connected: bool = False
    """It has a connection, with a proxy's tunnel and TLS where it needs them."""
    reused: bool = False
    """Its connection was used before."""
    answered: bool = False


@dataclass
class _Download:
    """One call of `Fetcher.fetch`."""

    url: URL
    """Of the hop under way."""
    deadline_s: float
    """On the event loop's clock."""
    lease: Lease | None
    head: Callable[[Mapping[str, str]], None]
    attempt: _Attempt = field(default_factory=_Attempt)


def _notes_on_connections() -> aiohttp.TraceConfig:
    """Notes in the `_Attempt` that a request is given how it came by its connection."""

    async def connected(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        context.trace_request_ctx.connected = True

    async def reused(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        context.trace_request_ctx.connected = context.trace_request_ctx.reused = True

    traces = aiohttp.TraceConfig()
    traces.on_connection_create_end.append(connected)
    traces.on_connection_reuseconn.append(reused)
    return traces


def _accept(formats: Collection[Format]) -> str:
    """What is taken, for CDNs that negotiate; and anything else rather than nothing."""
    return ",".join([*(format.media_type for format in formats if format.asked_for), "*/*;q=0.1"])


def _codings(response: aiohttp.ClientResponse, header: str) -> list[str]:
    codings = ",".join(response.headers.getall(header, [])).lower().split(",")
    return [coding.strip() for coding in codings if coding.strip()]


def _come_back_s(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After (RFC 9110 section 10.2.3): a number, or a date, which is after that of `Date`."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        wait = parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError, OverflowError):  # TypeError: one of them is without a zone
        return None
    return max(0.0, wait.total_seconds())


def _is_whole(response: aiohttp.ClientResponse) -> bool:
    """Whether an answer with a part, which was not asked for, has all of the file in it, as far as it says.

    Servers say it carelessly, or not at all. The decoder finds out where something is missing.
    """
    part = re.search(r"([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})?", response.headers.get("Content-Range", ""))
    return part is None or (int(part[1]) == 0 and int(part[2]) + 1 >= int(part[3] or 0))


def _without_query(url: URL) -> str:
    """Queries carry tokens. Admitted URLs have no user name, no password and no fragment."""
    return f"{url.scheme}://{_bounded(url.raw_authority)}{_bounded(url.raw_path)}"


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_LOGGED_CHARACTERS else text[:MAX_LOGGED_CHARACTERS] + "…"
