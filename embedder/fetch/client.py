"""An HTTP/1.1 client for GET: no cookies, no credentials, no redirects, the same fields for everybody."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from yarl import URL

from embedder.errors import FetchTimeout
from embedder.fetch.connection import Connection
from embedder.fetch.dialling import Dialler
from embedder.fetch.failures import Broken, Failure, blamed_on_proxy, not_connected, unreachable
from embedder.fetch.pool import Origin, Pool
from embedder.fetch.proxy import Proxy
from embedder.fetch.response import Answered, Response

MAX_CONNECTIONS_PER_HOST = 64
"""In one worker. Images mostly come from one CDN; a host that hangs holds no more than these."""


class Client:
    """For one event loop. All that it raises, but for cancellation, is a Failure, Draining, or the receiver's."""

    def __init__(
        self,
        dialler: Dialler,
        *,
        fields: str,
        proxy: Proxy | None,
        max_connections: int,
        connect_timeout_s: float,
    ) -> None:
        """`fields` are those of every request, each with its line end.

        `connect_timeout_s` is for one round of dialling all addresses of a host, and the TLS handshake.
        """
        self._dialler = dialler
        self._fields = fields
        self._proxy = proxy
        self._connect_timeout_s = connect_timeout_s
        self._pool = Pool(limit=max_connections, limit_per_host=MAX_CONNECTIONS_PER_HOST)
        self._tls = tls_context()

    async def close(self) -> None:
        """Cut all connections. `get` raises Draining afterwards."""
        self._pool.close()
        await self._dialler.close()
        await asyncio.sleep(0)  # connections that were cut are closed in the next iteration of the event loop

    async def get(self, url: URL, answered: Answered) -> None:
        """Ask for `url`, and pass the response on as it comes. Cancel it to give up: it has no deadline.

        An idle connection may be closed just as it is used again, or the rest of an earlier response may arrive
        then. So what breaks off before there is an answer is tried again, until it does on a new connection.
        """
        request = self._request(url)
        origin = Origin(url.scheme, url.raw_host or "", url.port or 0)
        async with self._pool.places_of(origin), self._pool.places:
            while True:
                self._pool.check_open()
                kept = self._pool.take(origin)
                connection = kept or await self._connected(origin)
                response = Response(answered)
                try:
                    return await connection.get(request, response)
                except Broken:
                    if kept is None or response.head is not None:
                        raise
                finally:
                    self._pool.keep(origin, connection)

    def _request(self, url: URL) -> bytes:
        target, fields = url.raw_path_qs, self._fields
        if self._proxy is not None and url.scheme == "http":
            target, fields = str(url), fields + self._proxy.fields
        return f"GET {target} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n{fields}\r\n".encode("ascii")

    async def _connected(self, origin: Origin) -> Connection:
        if self._proxy is None:
            targets = await self._dialler.targets(origin.host, origin.port)
            async with self._connecting():
                return await self._opened(await self._dialler.dial(targets), origin)
        try:
            targets = await self._dialler.targets(self._proxy.host, self._proxy.port)
            async with self._connecting():
                connected = await self._dialler.dial(targets)
                if origin.scheme == "http":
                    return await self._opened(connected, origin)
            await self._tunnel(connected, origin, self._proxy)
        except Failure as failure:
            raise blamed_on_proxy(failure) from failure
        async with self._connecting():
            return await self._opened(connected, origin)

    @asynccontextmanager
    async def _connecting(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                yield
        except OSError as exc:
            if not isinstance(exc, TimeoutError) or exc.errno is not None:  # the system's: ETIMEDOUT
                raise not_connected(exc) from exc
            event = "no connection to the image's server came about"
            error = FetchTimeout(limit_s=self._connect_timeout_s, event=event)
            raise Failure("connect_timeout", error) from exc

    async def _opened(self, connected: socket.socket, origin: Origin) -> Connection:
        """A Connection on the socket `connected`, with TLS where that is the scheme."""
        connection = self._pool.made()
        # Certificates have names without the root's dot.
        tls = (self._tls, origin.host.rstrip(".")) if origin.scheme == "https" else (None, None)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection, sock=connected, ssl=tls[0], server_hostname=tls[1]
            )
            self._pool.check_open()
        except BaseException:
            # A cancelled fetch may have its connection already: both in one iteration of the event loop. Left
            # alone, it waits 30 s for the peer's close_notify.
            connection.abort()
            raise
        return connection

    async def _tunnel(self, connected: socket.socket, origin: Origin, proxy: Proxy) -> None:
        """Have the proxy at the other end of `connected` pass everything on to `origin`. Else close the socket."""
        loop = asyncio.get_running_loop()
        response = Response(lambda head: None)
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        target = f"{host}:{origin.port}"
        try:
            request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{proxy.fields}\r\n"
            await loop.sock_sendall(connected, request.encode("ascii"))
            while response.head is None:
                received = await loop.sock_recv(connected, 65536)
                if not received:
                    raise Broken("closed before there was an answer")
                response.feed(received)
            if response.head.status != 200:
                raise unreachable("connection", f"the proxy answered {response.head.status} to CONNECT")
        except OSError as exc:
            connected.close()
            raise Broken(f"the connection failed: {exc}") from exc
        except BaseException:
            connected.close()
            raise


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Reads the certificate authorities that the system trusts, once: it takes 10 ms and blocks."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
