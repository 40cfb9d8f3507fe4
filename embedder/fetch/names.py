"""Names → addresses."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import aiodns

KEPT_S = 10.0
"""An answer. A name of many connections is looked up once for all of them, and soon follows a change."""
MAX_KEPT = 1000
"""A wildcard domain has as many names as it likes."""


class Resolver(Protocol):
    """`NameServers`, or a stand-in."""

    async def resolve(self, host: str) -> Sequence[str]:
        """The addresses of `host`. What it raises makes the name unknown."""

    async def close(self) -> None: ...


class NameServers:
    """The system's, and /etc/hosts, asked by c-ares: no thread waits for a name, so a dead server blocks nobody."""

    def __init__(self) -> None:
        self._channel = aiodns.DNSResolver()

    async def resolve(self, host: str) -> Sequence[str]:
        """In the order in which they are best dialled (RFC 6724). Raises OSError."""
        try:
            found = await self._channel.getaddrinfo(host, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as exc:
            raise OSError(None, exc.args[-1]) from exc
        return [_address(*node.addr) for node in found.nodes]

    async def close(self) -> None:
        await self._channel.close()


def _address(address: bytes, port: int, flow: int = 0, zone: int = 0) -> str:
    return address.decode() + (f"%{zone}" if zone else "")


class _Known(NamedTuple):
    addresses: deque[str]
    until_s: float


class Names:
    """Keeps answers, and does one look-up for all that want the same name at once."""

    def __init__(self, resolver: Resolver, judged: Callable[[Sequence[str]], Sequence[str]]) -> None:
        """`judged` gives those of a name's addresses that may be dialled, or raises. Only they are kept."""
        self._resolver = resolver
        self._judged = judged
        self._known: dict[tuple[str, int], _Known] = {}
        self._under_way: dict[tuple[str, int], asyncio.Task[_Known]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """Each time another one first, so that all of them get connections. Raises OSError."""
        known = self._known.get((host, port))
        if known is None or known.until_s < asyncio.get_running_loop().time():
            known = await self._look_up(host, port)
        addresses = list(known.addresses)
        known.addresses.rotate(-1)
        return addresses

    async def close(self) -> None:
        """Look-ups under way end, and who waits for them is cancelled."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._resolver.close()

    async def _look_up(self, host: str, port: int) -> _Known:
        task = self._under_way.get((host, port))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._found(host, port))
            self._under_way[host, port] = task
            task.add_done_callback(lambda _: self._under_way.pop((host, port)))
        return await asyncio.shield(task)  # who gives up does not end it for the others

    async def _found(self, host: str, port: int) -> _Known:
        try:
            addresses = deque(self._judged(await self._resolver.resolve(host)))
        except (TimeoutError, LookupError, RuntimeError, TypeError, ValueError) as exc:
            # Resolvers raise more than OSError, and answer with more than addresses. A TimeoutError would be
            # taken for the deadline.
            raise OSError(errno.EIO, "the look-up failed") from exc
        known = _Known(addresses, asyncio.get_running_loop().time() + KEPT_S)
        self._known.pop((host, port), None)
        self._known[host, port] = known
        if len(self._known) > MAX_KEPT:
            del self._known[next(iter(self._known))]
        return known
