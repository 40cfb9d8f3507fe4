"""URL → bytes, within limits.

A download is one deadline, at most `max_redirects` redirects, at most `max_bytes` bytes. Each hop is judged
like the first URL, and each address where it is dialled (`dialling.py`).

With a proxy only the proxy is dialled, and names are the proxy's to resolve: the proxy must keep downloads
away from internal addresses then. Addresses written in URLs are judged here in any case.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial

from yarl import URL

from embedder.errors import EmbedderError, FetchFailed, ImageTooLarge, OriginError, URLNotAllowed
from embedder.fetch.addresses import AddressRefused
from embedder.fetch.client import Client
from embedder.fetch.compression import Unpacker
from embedder.fetch.dialling import Dialler, OpenSocket, check_own_addresses_are_known, may_dial
from embedder.fetch.failures import EXPLAINABLE, Failure, explained, unreachable
from embedder.fetch.head import Head
from embedder.fetch.names import NameServers, Resolver
from embedder.fetch.proxy import Proxy
from embedder.fetch.response import Receive
from embedder.fetch.urls import URLPolicy, literal_address
from embedder.images.formats import HEAD_BYTES, Format, recognised
from embedder.metrics.measures import Metrics
from embedder.runtime.byte_budget import Lease

logger = logging.getLogger(__name__)

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
        resolver: Callable[[], Resolver] = NameServers,
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
        self._client: Client

    async def start(self) -> None:
        """Raises StartError on machines where no address could be judged."""
        check_own_addresses_are_known()
        dialled = self._urls.addresses if self._proxy is None else None
        self._client = Client(
            Dialler(self._make_resolver(), dialled, self._open_socket),
            fields=(
                f"User-Agent: {self._user_agent}\r\nAccept: {_accept(self._formats)}\r\n"
                "Accept-Encoding: identity\r\n"
            ),
            proxy=self._proxy,
            max_connections=self._max_connections,
            connect_timeout_s=self._connect_timeout_s,
        )

    async def close(self) -> None:
        await self._client.close()

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
            download = _Download(self._urls.admit(text), lease, head)
            with self._metrics.fetch_stage.time():
                async with asyncio.timeout_at(began_s + self._timeout_s):
                    return await self._follow(download)
        except EXPLAINABLE as exc:
            error = self._told(explained(exc, timeout_s=self._timeout_s), download)
            if error is exc:
                raise
            raise error from exc

    async def _follow(self, download: _Download) -> bytes:
        for _ in range(self._max_redirects + 1):
            answer = await self._get(download)
            if isinstance(answer, bytes):
                return answer
            download.url = answer
        text = f"the image's server redirects more than {self._max_redirects} times"
        raise Failure("redirect", FetchFailed(text))

    async def _get(self, download: _Download) -> bytes | URL:
        """The image at the download's URL, or where that redirects to."""
        found: list[_Body | URL] = []

        def answered(head: Head) -> Receive | None:
            if head.status in _REDIRECTS:
                found.append(self._redirect_target(download.url, head))
                return None
            self._check_head(download.url, head)
            download.head(head.fields)
            body = _Body(head, download.lease, self._formats, self._max_bytes)
            found.append(body)
            return body.add

        self._check_address(download.url)
        await self._client.get(download.url, answered)
        (answer,) = found
        return answer if isinstance(answer, URL) else answer.whole()

    def _check_address(self, url: URL) -> None:
        """With a proxy nothing else judges an address that is written in a URL: it is the proxy that is dialled."""
        if self._proxy is None:
            return
        address = literal_address((url.raw_host or "").removesuffix("."))
        if address is not None and not may_dial(address, self._urls.addresses):
            raise unreachable("address", AddressRefused(address).text)

    def _redirect_target(self, url: URL, head: Head) -> URL:
        answered = f"the image's server answered {head.status}"
        locations = set(head.fields.all("Location"))
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

    def _check_head(self, url: URL, head: Head) -> None:
        if self._proxy is not None and self._proxy.may_have_answered(head.status, url):
            raise unreachable("connection", f"the proxy or the image's server answered {head.status}")
        if (
            not 200 <= head.status < 300
            or head.status in _WITHOUT_BODY
            or (head.status == 206 and not _is_whole(head))
        ):
            error = FetchFailed(
                f"the image's server answered {head.status}",
                http_status=head.status,
                come_back_s=_come_back_s(head.fields),
            )
            raise Failure("status", error)
        if head.codings not in ((), ("chunked",)):
            raise Failure(
                "answer", FetchFailed("the image's server answered in a Transfer-Encoding that is not known")
            )
        if head.length is not None and head.length > self._max_bytes:
            raise ImageTooLarge(limit_bytes=self._max_bytes, actual_bytes=head.length)

    def _told(self, failure: Failure, download: _Download | None) -> EmbedderError:
        """What the client is told, once operators are."""
        self._metrics.fetch_failures.labels(failure.reason).inc()
        where = "a URL that is not allowed" if download is None else _without_query(download.url)
        # %a escapes line ends and control characters: hosts, paths and causes come from clients and origins.
        logger.debug("download failed: %s: %a: %a", failure.reason, where, _bounded(failure.cause))
        if isinstance(failure.error, OriginError) and download is not None:
            failure.error.host = download.url.raw_host or ""
        return failure.error


@dataclass
class _Download:
    """One call of `Fetcher.fetch`."""

    url: URL
    """Of the hop under way."""
    lease: Lease | None
    head: Callable[[Mapping[str, str]], None]


class _Body:
    """An image as it comes: unpacked, recognised by its first bytes, and counted."""

    def __init__(self, head: Head, lease: Lease | None, formats: Collection[Format], max_bytes: int) -> None:
        self._unpacker = Unpacker(head.fields.items_of("Content-Encoding"), partial(_is_image, formats))
        self._lease = lease
        self._formats = formats
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._length = 0
        self._is_known = False

    def add(self, received: bytes) -> None:
        for chunk in self._unpacker.parts(received):
            self._chunks.append(chunk)
            self._length += len(chunk)
            if not self._is_known and self._length >= HEAD_BYTES:
                recognised(b"".join(self._chunks)[:HEAD_BYTES], self._formats)
                self._is_known = True
            if self._length > self._max_bytes:
                raise ImageTooLarge(limit_bytes=self._max_bytes)
            if self._lease is not None:
                self._lease.add(len(chunk))

    def whole(self) -> bytes:
        data = b"".join(self._chunks)
        if not self._is_known:
            recognised(data, self._formats)
        return data


def _is_image(formats: Collection[Format], begins: bytes) -> bool:
    return any(format.begins.match(begins) for format in formats)


def _accept(formats: Collection[Format]) -> str:
    """What is taken, for CDNs that negotiate; and anything else rather than nothing."""
    return ",".join([*(format.media_type for format in formats if format.asked_for), "*/*;q=0.1"])


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


def _is_whole(head: Head) -> bool:
    """Whether an answer with a part, which was not asked for, has all of the file in it, as far as it says.

    Servers say it carelessly, or not at all. The decoder finds out where something is missing.
    """
    part = re.search(r"([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})?", head.fields.get("Content-Range", ""))
    return part is None or (int(part[1]) == 0 and int(part[2]) + 1 >= int(part[3] or 0))


def _without_query(url: URL) -> str:
    """Queries carry tokens. Admitted URLs have no user name, no password and no fragment."""
    return f"{url.scheme}://{_bounded(url.raw_authority)}{_bounded(url.raw_path)}"


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_LOGGED_CHARACTERS else text[:MAX_LOGGED_CHARACTERS] + "…"
