"""Connections: how many there may be, and those that are kept for the next request to the same host."""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from weakref import WeakValueDictionary

from embedder.errors import Draining
from embedder.fetch.connection import Connection

KEPT_S = 15.0
"""An idle connection. Servers close theirs after 5 (Node) to 75 s (nginx)."""


class Origin(NamedTuple):
    """What connections are kept by. A name's are never another name's, also where both lead to one address."""

    scheme: str
    host: str
    port: int


class Pool:
    """The connections of one event loop."""

    def __init__(self, *, limit: int, limit_per_host: int) -> None:
        """`limit` is how many may be in use at once, and how many may be idle beside them.

        A wildcard domain has as many names as it likes. Of too many idle ones the least recently used is closed:
        closing the newest would let a flood of distinct names push out the CDN's.
        """
        self._limit = limit
        self._limit_per_host = limit_per_host
        self.places = asyncio.Semaphore(limit)
        """Among all connections in use; first come, first served."""
        self._places_of: WeakValueDictionary[Origin, asyncio.Semaphore] = WeakValueDictionary()
        self._open: set[Connection] = set()
        self._idle: dict[Connection, tuple[Origin, asyncio.TimerHandle]] = {}
        """By their last use, the oldest first; with what closes them."""
        self._is_closed = False

    def places_of(self, origin: Origin) -> asyncio.Semaphore:
        """Places among the connections in use to `origin`. Enter them first, and then `places`: else who waits for a
        host that hangs would hold a place that others need.
        """
        places = self._places_of.get(origin)
        if places is None:
            places = self._places_of[origin] = asyncio.Semaphore(self._limit_per_host)
        return places

    def check_open(self) -> None:
        """Raises Draining after `close`."""
        if self._is_closed:
            raise Draining

    def made(self) -> Connection:
        """What the event loop's `create_connection` is to call."""
        return Connection(self._changed)

    def take(self, origin: Origin) -> Connection | None:
        """The idle connection to `origin` that was used last."""
        for connection, (to, _) in reversed(self._idle.items()):
            if to == origin and connection.is_open:
                self._forget(connection)
                return connection
        return None

    def keep(self, origin: Origin, connection: Connection) -> None:
        """Keep `connection` for a while, if it is still open."""
        if not connection.is_open:
            return
        expiry = asyncio.get_running_loop().call_later(KEPT_S, connection.abort)
        self._idle[connection] = origin, expiry
        if len(self._idle) > self._limit:
            next(iter(self._idle)).abort()

    def close(self) -> None:
        """Cut all connections."""
        self._is_closed = True
        for connection in list(self._open):
            connection.abort()

    def _changed(self, connection: Connection) -> None:
        if connection.is_open:
            self._open.add(connection)
        else:
            self._open.discard(connection)
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection in self._idle:
            _, expiry = self._idle.pop(connection)
            expiry.cancel()
