"""A Fetcher for tests, with a name server and sockets that do what a test says.

Nothing but 127.0.0.0/8 is ever dialled. Where an address must be refused, the sockets are a `Dialler`'s,
which notes what would have been dialled and refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from embedder.errors import EmbedderError, FetchFailed, Overloaded
from embedder.fetch.addresses import AddressPolicy, Network
from embedder.fetch.dialling import OpenSocket
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.urls import URLPolicy
from embedder.images.formats import ON
from embedder.metrics.measures import Metrics
from tests.answers import CAT, says
from tests.origin import Origin

LOOPBACK = (ip_network("127.0.0.0/8"),)
PUBLIC = "93.184.216.34"
# A private, a metadata and a translated address. `test_addresses.py` has all kinds.
FORBIDDEN = ["127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1"]
# What socket buffers on both sides may swallow of a flood before the flood notices that nobody reads.
BUFFERED_BYTES = 16_000_000
# Where a deadline is what is tested.
SHORT_S = 0.4

Answers = Mapping[str, Sequence[str] | Exception | None]
Outcome = tuple[type[BaseException] | type[bytes], str, str]
CAME = (bytes, "", f"{len(CAT)} bytes")
UNREACHABLE = (FetchFailed, "fetch_failed", "the image's server can't be reached")
NO_ROOM = (Overloaded, "overloaded", "the service has no room for another connection now")
HEAD_TOO_LONG = (
    *(FetchFailed, "fetch_failed"),
    "the image's server answered with too long a head: over 65536 bytes in a field, 1000 fields, "
    "or 131072 bytes in all",
)
BROKEN = (FetchFailed, "fetch_failed", "the image's server broke off or did not speak HTTP")


class Names:
    """A name server that knows what it is told. An answer is addresses, or what to raise, or None: never."""

    def __init__(self, answers: Answers) -> None:
        self.answers = dict(answers)
        self.calls: list[str] = []

    async def resolve(self, host: str) -> Sequence[str]:
        self.calls.append(host)
        answer = self.answers.get(host, OSError(None, "Domain name not found"))
        if answer is None:
            await asyncio.Event().wait()
            raise AssertionError
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        pass


class Dialler:
    """Opens sockets that note what is dialled and refuse, except for what leads to `origin`.

    With `stands_for`, the origin also stands in for that address.
    """

    def __init__(self, origin: Origin | None = None, *, stands_for: str | None = None) -> None:
        self.origin = origin
        self.stands_for = stands_for
        self.opened: list[tuple[int, int, int]] = []
        self.dialled: list[tuple[str, int]] = []

    def __call__(self, family: int, kind: int, protocol: int) -> socket.socket:
        self.opened.append((family, kind, protocol))
        return _NotedSocket(self, family, kind, protocol)

    @property
    def elsewhere(self) -> list[tuple[str, int]]:
        """What was dialled except the origin itself."""
        return [
            to for to in self.dialled if self.origin is None or to != (self.origin.host, self.origin.port)
        ]


class _NotedSocket(socket.socket):
    def __init__(self, dialler: Dialler, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self._dialler = dialler

    # Both event loops call this, with the address they were asked to connect to.
    def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]  # no AF_UNIX here
        dialler, to = self._dialler, (address[0], address[1])
        dialler.dialled.append(to)
        if dialler.origin is not None:
            real = (dialler.origin.host, dialler.origin.port)
            if to == real or to[0] == dialler.stands_for:
                return super().connect(real)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


@contextlib.asynccontextmanager
async def fetching(
    *origins: Origin,
    ports: Sequence[int] = (),
    networks: Sequence[Network] = LOOPBACK,
    names: Names | Answers | None = None,
    dialler: OpenSocket = socket.socket,
    **options: Any,  # Any: the Fetcher's, of several types
) -> AsyncIterator[Fetcher]:
    """A Fetcher for these origins, of which nothing is left afterwards: no socket, no task."""
    resolver = names if isinstance(names, Names) else Names(names or {})
    ports = [*(origin.port for origin in origins), *ports]
    usual = {
        "metrics": Metrics(),
        "version": "1.2.3",
        "timeout_s": 30,
        "max_bytes": 100_000,
        "max_redirects": 3,
        "formats": ON,
    }
    fetcher = Fetcher(
        URLPolicy(allowed_ports=frozenset(ports), addresses=AddressPolicy(tuple(networks))),
        resolver=lambda: resolver,
        open_socket=dialler,
        **{**usual, **options},
    )
    sockets, tasks = open_sockets(), asyncio.all_tasks()
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()
    await until(lambda: all(origin.connections.open == 0 for origin in origins))
    await until(lambda: open_sockets() <= sockets)
    await until(lambda: asyncio.all_tasks() <= tasks)


def open_sockets() -> int:
    """In this process. Other descriptors are the event loops' own: uvloop opens /dev/null to keep."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed the folder
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count


async def until(condition: Callable[[], object], *, within_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        await asyncio.sleep(0.005)


async def outcome(fetched: Awaitable[bytes]) -> Outcome:
    """All that a client can see of a fetch."""
    try:
        body = await fetched
    except EmbedderError as exc:
        return type(exc), exc.code, str(exc)
    return bytes, "", f"{len(body)} bytes"


async def cancelled(fetches: Sequence[asyncio.Future[bytes]]) -> None:
    for fetch in fetches:
        fetch.cancel()
    for result in await asyncio.gather(*fetches, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError)


def failures(metrics: Metrics) -> dict[str, float]:
    """The reasons that were counted, and how often."""
    (family,) = metrics.fetch_failures.collect()
    totals = [sample for sample in family.samples if sample.name.endswith("_total") and sample.value]
    return {sample.labels["reason"]: sample.value for sample in totals}


class Rendezvous:
    """Answer nobody before `count` requests are there."""

    def __init__(self, count: int, answer: bytes) -> None:
        self.waiting = 0
        self.count = count
        self.answer = answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.waiting += 1
        await until(lambda: self.waiting >= self.count)
        await says(self.answer)(reader, writer)


@contextlib.contextmanager
def black_holes(*hosts: str) -> Iterator[int]:
    """A port that takes SYNs at these addresses and never answers: its queue is full."""
    with contextlib.ExitStack() as stack:
        port = 0
        for host in hosts:
            listener = stack.enter_context(socket.create_server((host, port), backlog=0))
            port = listener.getsockname()[1]
            # A queue of length 0 takes one connection.
            stack.enter_context(socket.create_connection((host, port)))
        yield port
