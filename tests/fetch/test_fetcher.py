"""URL → bytes, against a real origin on 127.0.0.1, on both event loops.

Nothing but 127.0.0.0/8 is ever dialled: where an address must be refused, the sockets are a `Dialler`'s,
which notes who would have been dialled and refuses; or the test runs in a network namespace of its own.

Run as a program, this file fetches what the JSON in its first argument says (`Job`) and prints what came of
it: for the namespace, and for certificate authorities, which are read once per process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import logging
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

import embedder.fetch.fetcher
from embedder.errors import (
    Draining,
    EmbedderError,
    FetchFailed,
    FetchTimeout,
    ImageTooLarge,
    Overloaded,
    UnsupportedFormat,
    URLNotAllowed,
)
from embedder.fetch.addresses import AddressPolicy, Network
from embedder.fetch.fetcher import (
    CONNECT_TIMEOUT_S,
    MAX_ADDRESSES_PER_ANSWER,
    MAX_ADDRESSES_PER_NAME,
    MAX_CONNECTIONS_PER_HOST,
    Fetcher,
    OpenSocket,
    _is_this_machines,
    _OneAnswer,
    _stall_is_to_blame,
)
from embedder.fetch.urls import URLPolicy
from tests.answers import (
    BAD_CHUNKS,
    BUSYWORK,
    CAT,
    DOG,
    ENDLESS_BODIES,
    ENDLESS_HEADS,
    HANGS,
    HEADER_FLOODS,
    HTML,
    NOT_HTTP,
    OK,
    Flood,
    chunked,
    drop,
    hang,
    reset,
    says,
    with_length,
)
from tests.origin import Handler, Origin

pytestmark = pytest.mark.anyio

LOOPBACK = (ip_network("127.0.0.0/8"),)
PUBLIC = "93.184.216.34"
MAX_BYTES = 100_000
# What socket buffers on both sides may swallow of a flood before the flood notices that nobody reads.
BUFFERED_BYTES = 16_000_000
# Where a deadline is what is tested; far above what an answer takes here, far below what a test may take.
SHORT_S = 0.4
SOON_S = 2.0
UNREACHABLE = (FetchFailed, "fetch_failed", "the image's server can't be reached")
NO_ROOM = (Overloaded, "overloaded", "the service has no room for another connection now")
BROKEN = (FetchFailed, "fetch_failed", "the image's server broke off or did not speak HTTP")


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        origin.serve("/cat.jpg", CAT)
        origin.serve("/dog.png", DOG)
        yield origin


@pytest.fixture(autouse=True)
def _logs_stay_empty(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING] == []


class Names(AbstractResolver):
    """A name server that knows what it is told. An answer is addresses, or what to raise, or None: never."""

    def __init__(self, answers: Mapping[str, Sequence[str] | Exception | None]) -> None:
        self.answers = dict(answers)
        self.calls: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.calls.append(host)
        answer = self.answers.get(host, OSError(None, "Domain name not found"))
        if answer is None:
            await asyncio.Event().wait()
            raise AssertionError
        if isinstance(answer, Exception):
            raise answer
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in answer
        ]

    async def close(self) -> None:
        pass


class Dialler:
    """Opens sockets that note who is dialled and refuse, except for what leads to `origin`.

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
        """Who was dialled except the origin itself."""
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
    max_bytes: int = MAX_BYTES,
    timeout_s: float = 10.0,
    max_redirects: int = 3,
    max_connections: int = 256,
    names: Names | Mapping[str, Sequence[str] | Exception | None] | None = None,
    dialler: OpenSocket = socket.socket,
) -> AsyncIterator[Fetcher]:
    """A Fetcher for these origins, of which nothing is left afterwards: no socket, no task."""
    resolver = names if isinstance(names, Names) else Names(names or {})
    fetcher = Fetcher(
        URLPolicy(
            allowed_ports=frozenset([*(origin.port for origin in origins), *ports]),
            addresses=AddressPolicy(tuple(networks)),
        ),
        max_bytes=max_bytes,
        timeout_s=timeout_s,
        max_redirects=max_redirects,
        max_connections=max_connections,
        resolver=lambda: resolver,
        open_socket=dialler,
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


async def until(condition: Callable[[], object], *, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


Outcome = tuple[type[BaseException] | type[bytes], str, str]


async def outcome(fetched: Awaitable[bytes]) -> Outcome:
    """All that a client can see of a fetch."""
    try:
        body = await fetched
    except EmbedderError as exc:
        return type(exc), exc.code, str(exc)
    return bytes, "", f"{len(body)} bytes"


async def timed(fetched: Awaitable[bytes]) -> tuple[Outcome, float]:
    began = time.monotonic()
    return await outcome(fetched), time.monotonic() - began


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


# A well-behaved origin.


async def test_an_image_comes_back_byte_for_byte(origin: Origin) -> None:
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert await fetcher.fetch(origin.url("/dog.png")) == DOG


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(with_length(CAT), id="content-length"),
        pytest.param(chunked(CAT[:10], CAT[10:5000], CAT[5000:], b""), id="chunked"),
        pytest.param(chunked(*(CAT[i : i + 1] for i in range(200)), CAT[200:], b""), id="one-byte-chunks"),
        pytest.param(OK + b"\r\n" + CAT, id="close-delimited"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + CAT, id="http-1.0"),
        pytest.param(OK + b"Transfer-Encoding: Chunked\r\n\r\n1;a=b\r\n\xff\r\n%x\r\n%b\r\n0\r\nA: b\r\n\r\n"
                     % (len(CAT) - 1, CAT[1:]), id="chunk-extension-and-trailer"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + with_length(CAT), id="after-103"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + with_length(CAT), id="after-100"),
        pytest.param(with_length(CAT, b"Content-Encoding: identity\r\n"), id="content-encoding-identity"),
        pytest.param(OK + b"Transfer-Encoding: identity\r\n\r\n" + CAT, id="transfer-encoding-identity"),
    ],
)  # fmt: skip
async def test_every_framing_gives_the_same_bytes(origin: Origin, answer: bytes) -> None:
    origin.raw("/framed", says(answer))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/framed")) == CAT


async def test_two_fetches_use_one_connection(origin: Origin) -> None:
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert await fetcher.fetch(origin.url("/dog.png")) == DOG
    assert origin.connections.accepted == 1


async def test_a_redirect_and_its_target_use_one_connection(origin: Origin) -> None:
    origin.redirect("/old", "/cat.jpg")
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/old")) == CAT
    assert origin.connections.accepted == 1


async def test_a_connection_made_for_one_name_serves_no_other(origin: Origin) -> None:
    names = {"one.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    async with fetching(origin, names=names) as fetcher:
        for name in ("one.test", "other.test", "one.test"):
            assert await fetcher.fetch(origin.url("/cat.jpg", host=name)) == CAT
    seen = [(request.headers["host"].split(":")[0], request.connection) for request in origin.requests]
    assert seen == [("one.test", 1), ("other.test", 2), ("one.test", 1)]


async def test_a_connection_that_the_origin_closed_while_idle_is_not_a_failure(origin: Origin) -> None:
    origin.raw("/once", says(with_length(CAT)))
    async with fetching(origin) as fetcher:
        for _ in range(3):
            assert await fetcher.fetch(origin.url("/once")) == CAT


@pytest.mark.parametrize("end", [drop, reset])
async def test_kept_connections_that_are_closed_as_they_are_used_again_are_not_a_failure(
    origin: Origin, end: Handler
) -> None:
    together = Rendezvous(20, with_length(CAT))

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await together(reader, writer)
        await reader.readuntil(b"\r\n\r\n")
        await end(reader, writer)

    origin.raw("/once", once)
    async with fetching(origin) as fetcher:
        fetches = (fetcher.fetch(origin.url("/once")) for _ in range(20))
        assert await asyncio.gather(*fetches) == [CAT] * 20
        assert await fetcher.fetch(origin.url("/once")) == CAT
    assert origin.connections.accepted == 20 + 1


async def test_64_fetches_run_at_once(origin: Origin) -> None:
    origin.raw("/together", Rendezvous(64, with_length(CAT)))
    async with fetching(origin) as fetcher:
        bodies = await asyncio.gather(*(fetcher.fetch(origin.url(f"/together?{i}")) for i in range(64)))
    assert bodies == [CAT] * 64


async def test_the_request_carries_exactly_the_fixed_headers(origin: Origin) -> None:
    async with fetching(origin) as fetcher:
        await fetcher.fetch(origin.url("/cat.jpg?a=%2F&b=c"))
    (request,) = origin.requests
    assert (request.method, request.path, request.version) == ("GET", "/cat.jpg?a=%2F&b=c", "HTTP/1.1")
    assert sorted(request.header_lines) == [
        ("Accept", "image/jpeg,image/png,image/webp,image/gif"),
        ("Accept-Encoding", "identity"),
        ("Host", f"127.0.0.1:{origin.port}"),
        ("User-Agent", "image-embedder"),
    ]


async def test_nothing_is_carried_from_one_request_to_the_next(origin: Origin) -> None:
    cookie = {"Set-Cookie": "session=1; Path=/", "Location": "/cat.jpg?secret"}
    origin.serve("/set", CAT, headers=cookie)
    origin.serve("/set-and-go", status=302, headers=cookie)
    # By name: a cookie jar keeps none of an address's.
    async with fetching(origin, names={"shop.test": [origin.host]}) as fetcher:
        for path in ("/set", "/set-and-go", "/cat.jpg"):
            await fetcher.fetch(origin.url(path, host="shop.test"))
    assert len(origin.requests) == 4
    assert {frozenset(request.headers) for request in origin.requests} == {
        frozenset({"accept", "accept-encoding", "host", "user-agent"})
    }


async def test_proxies_and_netrc_of_the_environment_change_nothing(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Origin() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with fetching(origin) as fetcher:
            assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert proxy.connections.accepted == 0
    assert "authorization" not in origin.requests[0].headers


async def test_the_default_resolver_knows_localhost(origin: Origin) -> None:
    fetcher = Fetcher(
        URLPolicy(allowed_ports=frozenset({origin.port}), addresses=AddressPolicy(LOOPBACK)),
        max_bytes=MAX_BYTES,
        timeout_s=5,
        max_redirects=0,
    )
    await fetcher.start()
    try:
        assert await fetcher.fetch(origin.url("/cat.jpg", host="localhost")) == CAT
    finally:
        await fetcher.close()


# Which addresses are dialled. The policy is the service's own; the dialler lets nothing out.

FORBIDDEN_ADDRESSES = [
    "0.0.0.1", "10.0.0.7", "100.64.0.1", "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254",
    "172.16.0.1", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:93.184.216.34", "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "fc00::1",
    "fd00:ec2::254", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "2606:4700:0:0:0:5efe:a00:7",
]  # fmt: skip
FORBIDDEN_ANSWERS = [
    *([address] for address in FORBIDDEN_ADDRESSES),
    [PUBLIC, "10.0.0.7"],
    ["10.0.0.7", PUBLIC],
    ["2606:4700:4700::1111", "10.0.0.7"],
    ["::1", PUBLIC],
    # Beyond what would be dialled anyway.
    [*(f"93.184.216.{i}" for i in range(1, 200)), "10.0.0.7"],
]


@pytest.mark.parametrize("answer", FORBIDDEN_ANSWERS, ids=lambda answer: ",".join(answer)[:40])
async def test_a_name_with_a_forbidden_address_is_never_dialled_and_looks_unreachable(
    answer: list[str],
) -> None:
    dialler = Dialler()
    async with fetching(
        networks=(), ports=[80, 443], names={"inside.test": answer}, dialler=dialler
    ) as fetcher:
        assert await outcome(fetcher.fetch("http://inside.test/cat.jpg")) == UNREACHABLE
        assert await outcome(fetcher.fetch("https://inside.test/cat.jpg")) == UNREACHABLE
    assert (dialler.opened, dialler.dialled) == ([], [])


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([PUBLIC], id="refused"),
        pytest.param([], id="empty"),
        pytest.param(OSError(None, "Domain name not found"), id="unresolvable"),
        pytest.param(socket.gaierror(socket.EAI_AGAIN, "try again"), id="failing"),
        pytest.param(OSError(errno.ECONNREFUSED, "Could not contact DNS servers"), id="no-name-server"),
        pytest.param(asyncio.TimeoutError(), id="timeout"),
        pytest.param(OSError(errno.ETIMEDOUT, "Timeout while contacting DNS servers"), id="ETIMEDOUT"),
        pytest.param(ValueError("no such flag"), id="ValueError"),
        pytest.param(UnicodeError("label too long"), id="UnicodeError"),
        pytest.param(RuntimeError("resolver is closed"), id="RuntimeError"),
        pytest.param(KeyError("host"), id="KeyError"),
        pytest.param(["no address"], id="no-address"),
        pytest.param([PUBLIC, ""], id="empty-address"),
    ],
)
async def test_refused_and_unresolvable_names_look_the_same(answer: Sequence[str] | Exception) -> None:
    dialler = Dialler()
    async with fetching(networks=(), ports=[80], names={"outside.test": answer}, dialler=dialler) as fetcher:
        # The second one joins the first one's look-up.
        fetches = [outcome(fetcher.fetch("http://outside.test/cat.jpg")) for _ in range(2)]
        assert await asyncio.gather(*fetches) == [UNREACHABLE] * 2


@pytest.mark.parametrize("name", ["localhost", "localhost.", "inside", "inside.test."])
async def test_special_names_are_judged_by_their_addresses(name: str) -> None:
    dialler = Dialler()
    answers = {spelling: ["127.0.0.1", "::1"] for spelling in (name, name.rstrip("."))}
    async with fetching(networks=(), ports=[80], names=answers, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch(f"http://{name}/cat.jpg")) == UNREACHABLE
    assert dialler.dialled == []


@pytest.mark.parametrize("answer", [["93.184.216.34"], ["2606:4700:4700::1111"]])
async def test_a_public_name_is_looked_up_once_and_dialled_at_its_very_address(
    origin: Origin, answer: list[str]
) -> None:
    names = Names({"outside.test": answer})
    dialler = Dialler()
    async with fetching(origin, networks=(), names=names, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/cat.jpg", host="outside.test"))) == UNREACHABLE
    assert names.calls == ["outside.test"]
    assert set(dialler.dialled) == {(answer[0], origin.port)}
    family = socket.AF_INET6 if ":" in answer[0] else socket.AF_INET
    assert set(dialler.opened) == {(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)}


@pytest.mark.parametrize("host", ["93.184.216.34", "[2606:4700:4700::1111]"])
async def test_a_public_literal_is_dialled_without_a_look_up(host: str) -> None:
    names, dialler = Names({}), Dialler()
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch(f"http://{host}/cat.jpg")) == UNREACHABLE
    assert names.calls == []
    assert set(dialler.dialled) == {(host.strip("[]"), 80)}


async def test_the_host_header_keeps_the_name(origin: Origin) -> None:
    dialler = Dialler(origin, stands_for=PUBLIC)
    async with fetching(origin, networks=(), names={"outside.test": [PUBLIC]}, dialler=dialler) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg", host="outside.test")) == CAT
    assert origin.requests[0].headers["host"] == f"outside.test:{origin.port}"
    assert dialler.dialled == [(PUBLIC, origin.port)]


@pytest.mark.parametrize(
    "host", [address for address in FORBIDDEN_ADDRESSES if "%" not in address], ids=lambda host: host
)
async def test_a_forbidden_literal_is_refused_by_its_url(host: str) -> None:
    names, dialler = Names({}), Dialler()
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        with pytest.raises(URLNotAllowed):
            await fetcher.fetch(f"http://[{host}]/" if ":" in host else f"http://{host}/")
    assert (names.calls, dialler.opened) == ([], [])


async def test_an_address_that_turns_private_at_the_second_look_up_is_not_dialled() -> None:
    names, dialler = Names({"rebind.test": [PUBLIC]}), Dialler()
    # Answers are kept for a while per name and port: the second port makes it a second look-up.
    async with fetching(networks=(), ports=[80, 443], names=names, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch("http://rebind.test/cat.jpg")) == UNREACHABLE
        dialled = list(dialler.dialled)
        names.answers["rebind.test"] = ["10.0.0.7"]
        assert await outcome(fetcher.fetch("http://rebind.test/cat.jpg")) == UNREACHABLE
        assert await outcome(fetcher.fetch("http://rebind.test:443/cat.jpg")) == UNREACHABLE
    assert set(dialled) == set(dialler.dialled) == {(PUBLIC, 80)}
    assert names.calls == ["rebind.test", "rebind.test"]


async def test_of_256_addresses_only_a_few_are_dialled() -> None:
    answer = [f"93.184.{i // 250}.{i % 250 + 1}" for i in range(MAX_ADDRESSES_PER_ANSWER)]
    dialler = Dialler()
    async with fetching(networks=(), ports=[80], names={"many.test": answer}, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch("http://many.test/cat.jpg")) == UNREACHABLE
    assert set(dialler.dialled) == {(address, 80) for address in answer[:MAX_ADDRESSES_PER_NAME]}


async def test_names_with_thousands_of_addresses_do_not_hold_up_the_event_loop() -> None:
    answer = [f"93.184.{i // 250}.{i % 250 + 1}" for i in range(4000)]  # what fits into an answer over TCP
    names, dialler = {f"{i}.test": answer for i in range(32)}, Dialler()
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        began_s = time.thread_time()
        fetches = [outcome(fetcher.fetch(f"http://{name}/")) for name in names]
        assert await asyncio.gather(*fetches) == [UNREACHABLE] * len(names)
        assert time.thread_time() - began_s < 1  # 2 s where each address is looked at
    assert dialler.dialled == []


async def test_no_address_of_a_name_is_dialled_twice_in_one_fetch() -> None:
    dialler = Dialler()
    names = {"many.test": [f"93.184.216.{i}" for i in range(1, 9)]}
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        await outcome(fetcher.fetch("http://many.test/cat.jpg"))
    assert len(dialler.dialled) == 8


async def test_a_look_up_that_never_answers_ends_at_the_deadline() -> None:
    async with fetching(networks=(), ports=[80], names={"never.test": None}, timeout_s=SHORT_S) as fetcher:
        # The second one joins the first one's look-up.
        fetches = [timed(fetcher.fetch("http://never.test/")) for _ in range(2)]
        for got, took_s in await asyncio.gather(*fetches):
            assert got == (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")
            assert took_s < SOON_S


async def test_a_name_that_never_answers_does_not_hold_up_other_names(origin: Origin) -> None:
    names = {"never.test": None, "good.test": ["127.0.0.1"]}
    async with fetching(origin, names=names) as fetcher:
        waiting = [
            asyncio.ensure_future(fetcher.fetch(origin.url("/", host="never.test"))) for _ in range(100)
        ]
        got, took_s = await timed(fetcher.fetch(origin.url("/cat.jpg", host="good.test")))
        assert got == (bytes, "", f"{len(CAT)} bytes")
        assert took_s < SOON_S
        await cancelled(waiting)


@pytest.mark.parametrize(
    "answer",
    [["::1", "127.0.0.1"], ["127.0.0.1", "10.0.0.7"], ["127.0.0.1", PUBLIC], [PUBLIC, "127.0.0.1"]],
)
async def test_where_the_operator_vouches_for_an_address_only_that_one_is_dialled(
    origin: Origin, answer: list[str]
) -> None:
    dialler = Dialler(origin)
    async with fetching(origin, names={"mine.test": answer}, dialler=dialler) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg", host="mine.test")) == CAT
    assert dialler.dialled == [("127.0.0.1", origin.port)]


def test_the_machines_own_addresses_are_recognised() -> None:
    assert _is_this_machines(ip_address("127.0.0.1"))
    assert not _is_this_machines(ip_address("192.0.2.1"))


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_address_never_counts_as_foreign_when_it_cannot_be_looked_at() -> None:
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        _is_this_machines(ip_address("127.0.0.1"))


@pytest.mark.parametrize("host", ["outside.test", PUBLIC])
async def test_an_address_that_cannot_be_looked_at_is_not_dialled_and_no_fault_of_the_origin(
    host: str,
) -> None:
    names, dialler = {"outside.test": [PUBLIC]}, Dialler()
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        with no_descriptor_left():
            got = await outcome(fetcher.fetch(f"http://{host}/cat.jpg"))
    assert got == NO_ROOM
    assert (dialler.opened, dialler.dialled) == ([], [])


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("answer", [[PUBLIC], [PUBLIC, "2606:4700:4700::1111"]])
async def test_a_socket_that_there_is_no_room_for_is_no_fault_of_the_origin(
    answer: list[str], code: int
) -> None:
    def full(family: int, kind: int, protocol: int) -> socket.socket:
        raise OSError(code, os.strerror(code))

    names = {"outside.test": answer}
    async with fetching(networks=(), ports=[80], names=names, dialler=full) as fetcher:
        assert await outcome(fetcher.fetch("http://outside.test/cat.jpg")) == NO_ROOM


# Redirects.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(origin: Origin, status: int) -> None:
    origin.redirect("/old", "/cat.jpg", status=status)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/old")) == CAT
    assert [request.method for request in origin.requests] == ["GET", "GET"]


@pytest.mark.parametrize("status", [300, 304, 305, 306])
async def test_other_3xx_are_failures(origin: Origin, status: int) -> None:
    origin.redirect("/old", "/cat.jpg", status=status)
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/old")))
    assert got == (FetchFailed, "fetch_failed", f"the image's server answered {status}")
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/cat.jpg", "/cat.jpg"),
        ("cat.jpg", "/a/cat.jpg"),
        ("../cat.jpg", "/cat.jpg"),
        ("../../../cat.jpg", "/cat.jpg"),
        ("?size=1", "/a/old?size=1"),
        ("//127.0.0.1:{port}/cat.jpg", "/cat.jpg"),
        ("http://127.0.0.1:{port}/cat.jpg", "/cat.jpg"),
        ("HTTP://127.0.0.1:{port}/cat.jpg#fragment", "/cat.jpg"),
        ("/cat%2F.jpg?a=%20&b=+", "/cat%2F.jpg?a=%20&b=+"),
        ("/ö.jpg", "/%C3%B6.jpg"),
        ("/cat.jpg%0d%0aX-Injected:%201", "/cat.jpg%0d%0aX-Injected:%201"),
    ],
)
async def test_locations_lead_where_they_say(origin: Origin, location: str, path: str) -> None:
    origin.redirect("/a/old", location.format(port=origin.port))
    for known in ("/a/cat.jpg", "/cat%2F.jpg", "/%C3%B6.jpg", "/cat.jpg%0d%0aX-Injected:%201"):
        origin.serve(known, CAT)
    async with fetching(origin) as fetcher:
        if path == "/a/old?size=1":
            assert (await outcome(fetcher.fetch(origin.url("/a/old"))))[0] is FetchFailed
        else:
            assert await fetcher.fetch(origin.url("/a/old")) == CAT
    assert origin.requests[1].path == path
    assert "x-injected" not in origin.requests[1].headers


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd", "ftp://127.0.0.1:{port}/cat.jpg", "gopher://127.0.0.1:{port}/_GET",
        "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "javascript:alert(1)", "ws://127.0.0.1:{port}/cat.jpg",
        "http://10.0.0.7:{port}/cat.jpg", "http://169.254.169.254:{port}/latest/", "//10.0.0.7:{port}/x",
        "http://[::1]:{port}/cat.jpg", "http://[::ffff:127.0.0.1]:{port}/cat.jpg",
        "http://0x7f000001:{port}/cat.jpg", "http://2130706433:{port}/cat.jpg", "http://127.1:{port}/cat.jpg",
        "http://127.0.0.1/cat.jpg", "http://127.0.0.1:22/cat.jpg", "http://127.0.0.1:0/cat.jpg",
        "http://127.0.0.1:99999/cat.jpg", "http://user@127.0.0.1:{port}/cat.jpg",
        "http://user:secret@127.0.0.1:{port}/cat.jpg", "http://127.0.0.1:{port}\\@10.0.0.7/cat.jpg",
        "http://[::1/cat.jpg", "http://%31%32%37.0.0.1:{port}/",
        "/cat.jpg\t", "/cat .jpg", "\\\\10.0.0.7\\cat.jpg", "/cat\u0085.jpg", "/\udcff.jpg", "/" + "a" * 2048,
        "/" + "a" * 7000,
    ],
    ids=lambda location: ascii(location)[1:40],
)  # fmt: skip
async def test_a_redirect_to_what_may_not_be_fetched_is_refused(origin: Origin, location: str) -> None:
    # OWS around a header's value is not part of it: the tab must stand inside.
    origin.redirect("/old", location.replace("{port}", str(origin.port)).replace("\t", "\tx"))
    dialler = Dialler(origin)
    async with fetching(origin, dialler=dialler) as fetcher:
        kind, code, text = await outcome(fetcher.fetch(origin.url("/old")))
        assert (kind, code) == (FetchFailed, "fetch_failed")
        assert text.startswith("the image's server redirects to a URL that is not allowed: ")
        assert len(text) < 300
        assert text.isprintable()
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
    assert [request.path for request in origin.requests] == ["/old", "/cat.jpg"]
    assert dialler.elsewhere == []


@pytest.mark.parametrize("location", ["http:///cat.jpg", "///cat.jpg", "http:/cat.jpg", "http:cat.jpg"])
async def test_a_redirect_to_a_url_without_a_host_is_refused_not_repaired(
    origin: Origin, location: str
) -> None:
    origin.redirect("/old", location)
    async with fetching(origin) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/old"))))[0] is FetchFailed
    assert len(origin.requests) == 1


@pytest.mark.parametrize("answer", [*FORBIDDEN_ANSWERS, []], ids=lambda answer: ",".join(answer)[:40])
async def test_a_redirect_to_a_forbidden_name_looks_unreachable(origin: Origin, answer: list[str]) -> None:
    origin.redirect("/old", origin.url("/cat.jpg", host="inside.test"))
    names = {"outside.test": [PUBLIC], "inside.test": answer}
    dialler = Dialler(origin, stands_for=PUBLIC)
    async with fetching(origin, networks=(), names=names, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/old", host="outside.test"))) == UNREACHABLE
    assert dialler.dialled == [(PUBLIC, origin.port)]


@pytest.mark.parametrize("host", FORBIDDEN_ADDRESSES, ids=lambda host: host)
async def test_a_redirect_to_a_forbidden_literal_is_refused(origin: Origin, host: str) -> None:
    origin.redirect("/old", origin.url("/cat.jpg", host=f"[{host}]" if ":" in host else host))
    names, dialler = Names({"outside.test": [PUBLIC]}), Dialler(origin, stands_for=PUBLIC)
    async with fetching(origin, networks=(), names=names, dialler=dialler) as fetcher:
        kind, code, _ = await outcome(fetcher.fetch(origin.url("/old", host="outside.test")))
    assert (kind, code) == (FetchFailed, "fetch_failed")
    assert names.calls == ["outside.test"]
    assert dialler.dialled == [(PUBLIC, origin.port)]


async def test_a_redirect_without_a_location_is_a_failure(origin: Origin) -> None:
    origin.serve("/old", status=302)
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/old")))
    assert got == (FetchFailed, "fetch_failed", "the image's server answered 302 without a Location")


@pytest.mark.parametrize("second", ["/dog.png", "/cat.jpg#", ""])
async def test_a_redirect_with_two_different_locations_is_a_failure(origin: Origin, second: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\nLocation: {second}\r\nContent-Length: 0\r\n\r\n"
    origin.raw("/old", says(head.encode()))
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/old")))
    assert got == (FetchFailed, "fetch_failed", "the image's server answered 302 with different Locations")
    assert len(origin.requests) == 1


async def test_a_location_that_is_sent_twice_is_one(origin: Origin) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\nlocation:  /cat.jpg\r\nContent-Length: 0\r\n\r\n"
    origin.raw("/old", says(head))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/old")) == CAT


@pytest.mark.parametrize("location", ["", "/old", "#", "?"])
async def test_a_redirect_to_itself_ends(origin: Origin, location: str) -> None:
    origin.redirect("/old", location)
    async with fetching(origin) as fetcher:
        kind, code, _ = await outcome(fetcher.fetch(origin.url("/old")))
    assert (kind, code) == (FetchFailed, "fetch_failed")
    assert len(origin.requests) <= 4


async def test_a_loop_of_two_ends(origin: Origin) -> None:
    origin.redirect("/ping", "/pong")
    origin.redirect("/pong", "/ping")
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/ping")))
    assert got == (FetchFailed, "fetch_failed", "the image's server redirects more than 3 times")
    assert len(origin.requests) == 4


@pytest.mark.parametrize("max_redirects", [0, 1, 3])
async def test_as_many_redirects_as_allowed_pass_and_one_more_fails(
    origin: Origin, max_redirects: int
) -> None:
    origin.serve("/0", CAT)
    for hop in range(1, 6):
        origin.redirect(f"/{hop}", f"/{hop - 1}")
    async with fetching(origin, max_redirects=max_redirects) as fetcher:
        assert await fetcher.fetch(origin.url(f"/{max_redirects}")) == CAT
        got = await outcome(fetcher.fetch(origin.url(f"/{max_redirects + 1}")))
    text = f"the image's server redirects more than {max_redirects} times"
    assert got == (FetchFailed, "fetch_failed", text)


async def test_slow_redirects_share_one_deadline(origin: Origin) -> None:
    for hop in range(3):
        head = b"HTTP/1.1 302 Found\r\nLocation: /%d\r\nContent-Length: 0\r\n\r\n" % (hop + 1)
        origin.raw(f"/{hop}", says(b"", every_s=0.25, then=says(head)), keep_alive=True)
    origin.serve("/3", CAT)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        got, took_s = await timed(fetcher.fetch(origin.url("/0")))
    assert got == (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")
    assert took_s < 0.7  # three hops of 0.25 s each would be 0.75 s
    assert len(origin.requests) == 2


async def test_the_body_of_a_redirect_is_not_read(origin: Origin) -> None:
    flood = Flood(b"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\n\r\n", bytes(65536))
    origin.raw("/old", flood)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/old")) == CAT
        await until(lambda: flood.over)
    assert flood.sent_bytes < BUFFERED_BYTES


# Statuses, and what is not an answer.


async def test_every_final_status_but_200_and_redirects_fails_with_its_number(origin: Origin) -> None:
    statuses = sorted(set(range(201, 600)) - {301, 302, 303, 307, 308})
    for status in statuses:
        bare = status in (204, 304)
        origin.serve(f"/{status}", b"" if bare else CAT, status=status, headers={"WWW-Authenticate": "Basic"})
    async with fetching(origin) as fetcher:
        for status in statuses:
            got = await outcome(fetcher.fetch(origin.url(f"/{status}")))
            assert got == (FetchFailed, "fetch_failed", f"the image's server answered {status}")
    assert len(origin.requests) == len(statuses)


async def test_switching_protocols_fails_with_its_number(origin: Origin) -> None:
    origin.raw(
        "/101", says(b"HTTP/1.1 101 Go\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + CAT, then=hang)
    )
    async with fetching(origin) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/101")))
        assert got == (FetchFailed, "fetch_failed", "the image's server answered 101")
        await until(lambda: origin.connections.open == 0)


@pytest.mark.parametrize("answer", [with_length(b""), chunked(b""), OK + b"\r\n"])
async def test_200_without_a_body_is_no_image(origin: Origin, answer: bytes) -> None:
    origin.raw("/empty", says(answer))
    async with fetching(origin) as fetcher:
        with pytest.raises((UnsupportedFormat, FetchFailed)):
            await fetcher.fetch(origin.url("/empty"))


@pytest.mark.parametrize("handler", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_an_answer_that_is_broken_or_not_http_is_a_failure(origin: Origin, handler: Handler) -> None:
    origin.raw("/broken", handler)
    async with fetching(origin) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/broken"))) == BROKEN
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


@pytest.mark.parametrize("bad", BAD_CHUNKS)
async def test_a_bad_chunk_that_comes_later_is_a_failure_at_once(origin: Origin, bad: bytes) -> None:
    origin.raw("/broken", says(chunked(CAT), bad, every_s=0.05))
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/broken"))) == BROKEN


async def test_a_body_without_a_length_that_ends_in_a_reset_is_a_failure(origin: Origin) -> None:
    origin.raw("/cut", says(OK + b"\r\n" + CAT, every_s=0.05, then=reset))
    async with fetching(origin) as fetcher:
        assert await outcome(fetcher.fetch(origin.url("/cut"))) == BROKEN


@pytest.mark.parametrize(
    "encoding",
    ["gzip", "GZIP", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "gzip, identity", "nonsense"],
)
async def test_a_content_encoding_is_refused(origin: Origin, encoding: str) -> None:
    origin.serve("/encoded", CAT, headers={"Content-Encoding": encoding})
    async with fetching(origin) as fetcher:
        kind, _, text = await outcome(fetcher.fetch(origin.url("/encoded")))
    assert kind is FetchFailed
    assert "Content-Encoding" in text


@pytest.mark.parametrize(
    "coding", ["gzip", "gzip, chunked", "chunked, identity", "xchunked", "chunked;q=1", "chunked, chunked"]
)
async def test_a_transfer_encoding_but_chunks_is_refused(origin: Origin, coding: str) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CAT), CAT) if "chunked" in coding else CAT
    origin.raw("/coded", says(OK + f"Transfer-Encoding: {coding}\r\n\r\n".encode() + body))
    async with fetching(origin) as fetcher:
        kind, code, _ = await outcome(fetcher.fetch(origin.url("/coded")))
    assert (kind, code) == (FetchFailed, "fetch_failed")


async def test_a_second_content_encoding_header_is_refused_too(origin: Origin) -> None:
    headers = b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"
    origin.raw("/encoded", says(with_length(CAT, headers)))
    async with fetching(origin) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/encoded"))))[0] is FetchFailed


async def test_a_body_longer_than_its_length_is_cut_there_or_refused(origin: Origin) -> None:
    origin.raw("/long", says(with_length(CAT, length=5000)))
    async with fetching(origin) as fetcher:
        with contextlib.suppress(FetchFailed):
            assert await fetcher.fetch(origin.url("/long")) == CAT[:5000]
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


async def test_a_second_answer_in_one_packet_answers_nobody(origin: Origin) -> None:
    origin.raw("/twice", says(with_length(CAT) + with_length(DOG), then=hang))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/twice")) == CAT
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


async def test_a_second_answer_behind_a_body_that_was_read_with_pauses_answers_nobody(origin: Origin) -> None:
    # More than aiohttp buffers: it keeps what came with the rest of it, and parses that when there is room.
    body = CAT + bytes(1_600_000)
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    origin.raw("/twice", says(chunked(*pieces, b"") + with_length(DOG), then=hang))
    async with fetching(origin, max_bytes=2_000_000, timeout_s=SOON_S) as fetcher:
        for _ in range(20):
            assert await fetcher.fetch(origin.url("/twice")) == body
            assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


SMALL = CAT[:100]
BEGINNINGS = {"one letter": b"H", "half a head": b"HTTP/1.1 200 OK\r\nX-Its: ", "no head": b"x"}


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(with_length(CAT), CAT, id="length"),
        pytest.param(with_length(SMALL), SMALL, id="small"),
        pytest.param(chunked(CAT, b""), CAT, id="chunks"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + with_length(SMALL), SMALL, id="interim"),
    ],
)
async def test_what_begins_behind_an_answer_is_never_part_of_the_next(
    origin: Origin, answer: bytes, body: bytes, beginning: bytes
) -> None:
    rests = []

    async def and_the_rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer + beginning)
        rests.append(await reader.read(1))  # of a next request: nothing when the connection was cut
        if rests[-1]:
            writer.write(with_length(DOG).removeprefix(beginning))

    origin.raw("/more", and_the_rest)
    async with fetching(origin) as fetcher:
        for _ in range(3):
            assert await fetcher.fetch(origin.url("/more")) == body
            assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        await until(lambda: len(rests) == 3)
    assert rests == [b""] * 3


async def test_text_behind_a_redirect_without_a_length_does_not_spoil_it(origin: Origin) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\nContent-Length: 0\r\n\r\n"
    origin.raw("/moved", says(head + b"<html>Found.</html>"))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/moved")) == CAT


@pytest.mark.parametrize(
    "rest", [b"x", b"HTTP/1.1 1", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9], ids=["byte", "head", "heads"]
)
async def test_what_comes_late_on_a_kept_connection_fails_no_other_fetch(origin: Origin, rest: bytes) -> None:
    late = asyncio.get_running_loop().create_future()

    async def and_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(with_length(CAT))
        request = await reader.read(1)
        writer.write(rest)
        await asyncio.sleep(0)
        late.get_loop().call_soon_threadsafe(late.set_result, request)

    origin.raw("/later", and_later)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/later")) == CAT
        assert await fetcher.fetch(origin.url("/dog.png")) == DOG
        assert await late == b"G"  # it was the request for the dog that it answered


async def test_the_same_on_a_new_connection_is_the_origins_answer(origin: Origin) -> None:
    origin.raw("/broken", says(b"x"))
    async with fetching(origin) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/broken"))))[0] is FetchFailed
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert (await outcome(fetcher.fetch(origin.url("/broken"))))[0] is FetchFailed
    # The last one was asked for on the kept connection first.
    assert len([request for request in origin.requests if request.path == "/broken"]) == 3


async def test_an_answer_on_an_idle_connection_answers_nobody(origin: Origin) -> None:
    late = asyncio.get_running_loop().create_future()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(with_length(CAT), every_s=0.05)(reader, writer)
        await says(with_length(DOG), every_s=0.05)(reader, writer)
        late.get_loop().call_soon_threadsafe(late.set_result, None)

    origin.raw("/twice", twice, keep_alive=True)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/twice")) == CAT
        await late
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        assert await fetcher.fetch(origin.url("/dog.png")) == DOG


@pytest.mark.parametrize("every_s", [0.0, 0.05], ids=["at once", "later"])
@pytest.mark.parametrize("status", ["000", "099", "101", "204", "404"])
async def test_an_answer_behind_one_without_a_body_answers_nobody(
    origin: Origin, status: str, every_s: float
) -> None:
    over = asyncio.get_running_loop().create_future()
    first = f"HTTP/1.1 {status} Status\r\nContent-Length: 0\r\n\r\n".encode()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if every_s:
            await says(first, with_length(DOG), every_s=every_s)(reader, writer)
        else:
            await says(first + with_length(DOG))(reader, writer)
        over.get_loop().call_soon_threadsafe(over.set_result, None)

    origin.raw("/twice", twice, keep_alive=True)
    async with fetching(origin) as fetcher:
        kind, code, _ = await outcome(fetcher.fetch(origin.url("/twice")))
        assert (kind, code) == (FetchFailed, "fetch_failed")
        await over
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


# Bytes.


async def test_a_body_of_exactly_the_limit_passes_in_every_framing(origin: Origin) -> None:
    body = CAT[:5000]
    origin.raw("/length", says(with_length(body)))
    origin.raw("/chunked", says(chunked(body, b"")))
    origin.raw("/close", says(OK + b"\r\n" + body))
    async with fetching(origin, max_bytes=5000) as fetcher:
        for path in ("/length", "/chunked", "/close"):
            assert await fetcher.fetch(origin.url(path)) == body


async def test_a_length_one_byte_over_the_limit_is_refused_without_the_body(origin: Origin) -> None:
    origin.raw("/over", says(with_length(b"", length=5001), then=hang))
    async with fetching(origin, max_bytes=5000) as fetcher:
        got = await outcome(fetcher.fetch(origin.url("/over")))
        assert got == (ImageTooLarge, "image_too_large", "the image is 0.005001 MB; the limit is 0.005 MB")
        await until(lambda: origin.connections.open == 0)


@pytest.mark.parametrize("answer", [chunked(CAT[:5001]), OK + b"\r\n" + CAT[:5001]], ids=["chunked", "close"])
async def test_a_body_one_byte_over_the_limit_is_refused_as_it_comes(origin: Origin, answer: bytes) -> None:
    origin.raw("/over", says(answer, then=hang))
    async with fetching(origin, max_bytes=5000) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/over"))))[0] is ImageTooLarge
        await until(lambda: origin.connections.open == 0)


@pytest.mark.parametrize(("head", "piece"), ENDLESS_BODIES.values(), ids=ENDLESS_BODIES)
async def test_an_endless_body_is_cut_off_soon_after_the_limit(
    origin: Origin, head: bytes, piece: bytes
) -> None:
    flood = Flood(head, piece)
    origin.raw("/endless", flood)
    async with fetching(origin) as fetcher:
        got, took_s = await timed(fetcher.fetch(origin.url("/endless")))
        await until(lambda: flood.over)
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
    assert got == (ImageTooLarge, "image_too_large", "the image is more than that; the limit is 0.1 MB")
    assert took_s < SOON_S
    assert flood.sent_bytes < BUFFERED_BYTES


async def test_what_begins_unlike_an_image_is_refused_before_the_rest_comes(origin: Origin) -> None:
    head = with_length(HTML, b"Content-Type: image/jpeg\r\n", length=90_000)
    origin.raw("/page.jpg", says(head, then=hang))
    async with fetching(origin) as fetcher:
        got, took_s = await timed(fetcher.fetch(origin.url("/page.jpg")))
        assert got[0] is UnsupportedFormat
        assert took_s < SOON_S
        await until(lambda: origin.connections.open == 0)


async def test_sixteen_bytes_that_are_no_image_are_enough(origin: Origin) -> None:
    origin.raw("/page.jpg", says(with_length(HTML[:16], length=90_000), then=hang))
    async with fetching(origin) as fetcher:
        got, took_s = await timed(fetcher.fetch(origin.url("/page.jpg")))
    assert got[0] is UnsupportedFormat
    assert took_s < SOON_S


async def test_the_content_type_does_not_matter(origin: Origin) -> None:
    origin.serve("/cat", CAT, headers={"Content-Type": "text/html; charset=utf-7"})
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/cat")) == CAT


async def test_an_image_that_arrives_byte_by_byte_is_recognised(origin: Origin) -> None:
    parts = [CAT[i : i + 1] for i in range(40)]
    origin.raw("/slow", says(with_length(b"", length=40), *parts, every_s=0.002))
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/slow")) == CAT[:40]


@pytest.mark.parametrize("size", [1, 15])
async def test_a_body_shorter_than_any_image_is_refused(origin: Origin, size: int) -> None:
    origin.serve("/short", CAT[:size])
    async with fetching(origin) as fetcher:
        assert (await outcome(fetcher.fetch(origin.url("/short"))))[0] is UnsupportedFormat


async def test_a_body_of_sixteen_bytes_is_long_enough(origin: Origin) -> None:
    origin.serve("/short", CAT[:16])
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/short")) == CAT[:16]


@pytest.mark.parametrize("answer", HEADER_FLOODS.values(), ids=HEADER_FLOODS)
async def test_a_header_flood_is_a_failure(origin: Origin, answer: bytes) -> None:
    origin.raw("/flood", says(answer + CAT, then=hang))
    async with fetching(origin) as fetcher:
        got, took_s = await timed(fetcher.fetch(origin.url("/flood")))
        assert got == BROKEN
        assert took_s < SOON_S
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


@pytest.mark.parametrize(("head", "piece"), ENDLESS_HEADS.values(), ids=ENDLESS_HEADS)
async def test_an_endless_head_is_cut_off(origin: Origin, head: bytes, piece: bytes) -> None:
    flood = Flood(head, piece)
    origin.raw("/endless", flood)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        got, took_s = await timed(fetcher.fetch(origin.url("/endless")))
        assert got[0] in (FetchFailed, FetchTimeout)
        assert took_s < SOON_S
        await until(lambda: flood.over)
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


@pytest.mark.parametrize(("head", "piece"), BUSYWORK.values(), ids=BUSYWORK)
async def test_busywork_ends_by_the_deadline_and_lets_others_through(
    origin: Origin, head: bytes, piece: bytes
) -> None:
    flood = Flood(head, piece)
    with Origin() as busy:
        busy.raw("/busy", flood)
        async with fetching(origin, busy, timeout_s=0.8, max_bytes=10_000_000) as fetcher:
            busywork = asyncio.ensure_future(timed(fetcher.fetch(busy.url("/busy"))))
            await until(lambda: flood.sent_bytes > 0)
            while not busywork.done():
                got, took_s = await timed(fetcher.fetch(origin.url("/cat.jpg")))
                assert got == (bytes, "", f"{len(CAT)} bytes")
                assert took_s < 0.7
            got, took_s = await busywork
            assert got[0] in (FetchFailed, FetchTimeout)
            assert took_s < SOON_S
            await until(lambda: flood.over)


@pytest.mark.parametrize("name", ["one-byte chunks", "chunk extension"])
async def test_tiny_chunks_are_cut_off_long_before_the_deadline(origin: Origin, name: str) -> None:
    flood = Flood(*BUSYWORK[name])
    origin.raw("/busy", flood)
    async with fetching(origin, max_bytes=10_000_000) as fetcher:
        got, took_s = await timed(fetcher.fetch(origin.url("/busy")))
        assert got == BROKEN
        assert took_s < SOON_S
        await until(lambda: flood.over)
    assert flood.sent_bytes < BUFFERED_BYTES


async def test_a_large_body_in_chunks_of_a_hundred_bytes_is_not_too_tiny(origin: Origin) -> None:
    body = CAT + bytes(2_000_000)
    pieces = [body[start : start + 112] for start in range(0, len(body), 112)]
    origin.raw("/small", says(chunked(*pieces, b"")))
    async with fetching(origin, max_bytes=len(body)) as fetcher:
        assert await fetcher.fetch(origin.url("/small")) == body


async def test_large_images_one_after_the_other_on_one_connection_are_not_too_much(origin: Origin) -> None:
    # What is not body is counted for each answer, and 200 kB are more than may be.
    bodies = {f"/large{number}": CAT + bytes([number]) * 200_000 for number in range(3)}
    for path, body in bodies.items():
        origin.serve(path, body)
    async with fetching(origin, max_bytes=300_000) as fetcher:
        for path, body in bodies.items():
            assert await fetcher.fetch(origin.url(path)) == body
    assert origin.connections.accepted == 1


# Time.


@pytest.mark.parametrize("handler", HANGS.values(), ids=HANGS)
async def test_an_origin_that_hangs_or_drips_costs_the_deadline_and_no_more(
    origin: Origin, handler: Handler
) -> None:
    origin.raw("/slow", handler)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        got, took_s = await timed(fetcher.fetch(origin.url("/slow")))
        assert got == (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")
        assert SHORT_S * 0.9 < took_s < SOON_S
        await until(lambda: origin.connections.open == 0)
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


@pytest.mark.parametrize("stall_s", [0.0, 1.5])
async def test_what_the_event_loop_itself_held_up_is_no_fault_of_the_origin(
    origin: Origin, stall_s: float
) -> None:
    origin.raw("/hang", hang)
    async with fetching(origin, timeout_s=SOON_S) as fetcher:
        fetch = asyncio.ensure_future(outcome(fetcher.fetch(origin.url("/hang"))))
        await until(lambda: origin.connections.open == 1)
        threading.Event().wait(stall_s)  # on the event loop's thread
        expected = {0.0: (FetchTimeout, "fetch_timeout"), 1.5: (Overloaded, "overloaded")}
        assert (await fetch)[:2] == expected[stall_s]


@pytest.mark.parametrize(
    ("stalled_s", "limit_s", "blamed"),
    [
        (1.5, 4.0, False),  # the origin had 2.5 s
        (2.0, 4.0, False),
        (2.1, 4.0, True),
        (0.9, 1.0, False),  # as wherever there is work
        (1.0, 1.0, False),
        (1.1, 1.0, True),
    ],
)
def test_a_stall_is_to_blame_when_it_took_half_of_the_time_and_more_than_a_second(
    stalled_s: float, limit_s: float, blamed: bool
) -> None:
    assert _stall_is_to_blame(stalled_s, limit_s=limit_s) is blamed


async def test_the_deadline_covers_waiting_for_a_connection(origin: Origin) -> None:
    origin.raw("/hang", hang)
    async with fetching(origin, timeout_s=SHORT_S) as fetcher:
        fetches = [timed(fetcher.fetch(origin.url("/hang"))) for _ in range(MAX_CONNECTIONS_PER_HOST + 5)]
        for got, took_s in await asyncio.gather(*fetches):
            assert got == (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")
            assert took_s < SOON_S
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT


async def test_a_host_that_holds_all_its_connections_delays_no_other(origin: Origin) -> None:
    with Origin() as hanging:
        hanging.raw("/hang", hang)
        async with fetching(origin, hanging) as fetcher:
            waiting = [
                asyncio.ensure_future(fetcher.fetch(hanging.url("/hang")))
                for _ in range(MAX_CONNECTIONS_PER_HOST + 100)
            ]
            await until(lambda: hanging.connections.open == MAX_CONNECTIONS_PER_HOST)
            got, took_s = await timed(fetcher.fetch(origin.url("/cat.jpg")))
            assert got == (bytes, "", f"{len(CAT)} bytes")
            assert took_s < SOON_S
            assert hanging.connections.accepted == MAX_CONNECTIONS_PER_HOST
            await cancelled(waiting)


async def test_all_hosts_together_get_no_more_than_max_connections(origin: Origin) -> None:
    origin.raw("/hang", hang)
    hosts = [f"{number}.test" for number in range(4)]
    names = {host: [origin.host] for host in hosts}
    async with fetching(origin, names=names, max_connections=3) as fetcher:
        *waiting, last = [
            asyncio.ensure_future(fetcher.fetch(origin.url("/hang", host=host))) for host in hosts
        ]
        await until(lambda: len(origin.requests) == 3)
        await asyncio.wait({last}, timeout=SHORT_S)
        assert origin.connections.accepted == 3
        await cancelled(waiting)
        await until(lambda: len(origin.requests) == 4)
        await cancelled([last])


async def test_no_more_connections_stay_idle_than_may_be_in_use(origin: Origin) -> None:
    hosts = [f"{number}.test" for number in range(20)]
    names = {host: [origin.host] for host in hosts}
    async with fetching(origin, names=names, max_connections=4) as fetcher:
        for host in hosts:
            assert await fetcher.fetch(origin.url("/cat.jpg", host=host)) == CAT
        await until(lambda: origin.connections.open == 4)
        for host in hosts[-4:]:  # of these connections none needs to be made again
            assert await fetcher.fetch(origin.url("/cat.jpg", host=host)) == CAT
        assert (origin.connections.open, origin.connections.accepted) == (4, len(hosts))


async def test_a_crowd_of_names_ends_no_idle_connection_that_was_used_in_between(origin: Origin) -> None:
    crowd = [f"{number}.test" for number in range(20)]
    names = {host: [origin.host] for host in [*crowd, "cdn.test"]}
    async with fetching(origin, names=names, max_connections=4) as fetcher:
        for host in crowd:  # it was there first
            await fetcher.fetch(origin.url("/dog.png", host=host))
        for host in crowd:
            await fetcher.fetch(origin.url("/cat.jpg", host="cdn.test"))
            await fetcher.fetch(origin.url("/dog.png", host=host))
    assert len({request.connection for request in origin.requests if request.path == "/cat.jpg"}) == 1


async def test_idle_connections_that_are_pushed_out_leave_those_in_use_alone(origin: Origin) -> None:
    entered, leave = threading.Event(), threading.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        entered.set()
        await until(leave.is_set)
        await says(with_length(CAT))(reader, writer)

    origin.raw("/wait", wait, keep_alive=True)
    crowd = [f"{number}.test" for number in range(10)]
    names = {host: [origin.host] for host in [*crowd, "slow.test"]}
    async with fetching(origin, names=names, max_connections=2) as fetcher:
        # Its connection was idle before, longer than all that come after it.
        await fetcher.fetch(origin.url("/cat.jpg", host="slow.test"))
        slow = asyncio.ensure_future(fetcher.fetch(origin.url("/wait", host="slow.test")))
        await until(entered.is_set)
        for host in crowd:
            assert await fetcher.fetch(origin.url("/cat.jpg", host=host)) == CAT
        leave.set()
        assert await slow == CAT
    first, second = (request for request in origin.requests if "slow.test" in request.headers["host"])
    assert first.connection == second.connection


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


async def test_a_black_hole_costs_the_connect_timeout_not_the_deadline() -> None:
    with black_holes("127.0.0.1") as port:
        async with fetching(ports=[port], timeout_s=30) as fetcher:
            got, took_s = await timed(fetcher.fetch(f"http://127.0.0.1:{port}/cat.jpg"))
    assert got[:2] == (FetchTimeout, "fetch_timeout")
    assert CONNECT_TIMEOUT_S * 0.9 < took_s < CONNECT_TIMEOUT_S + 1


async def test_a_black_hole_costs_no_more_than_a_short_deadline() -> None:
    with black_holes("127.0.0.1") as port:
        async with fetching(ports=[port], timeout_s=SHORT_S) as fetcher:
            got, took_s = await timed(fetcher.fetch(f"http://127.0.0.1:{port}/cat.jpg"))
    assert got == (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")
    assert took_s < 1


async def test_a_name_of_several_black_holes_costs_the_connect_timeout_not_the_deadline() -> None:
    hosts = [f"127.0.0.{i}" for i in range(1, 5)]
    with black_holes(*hosts) as port:
        async with fetching(ports=[port], names={"holes.test": hosts}, timeout_s=3.5) as fetcher:
            _, took_s = await timed(fetcher.fetch(f"http://holes.test:{port}/cat.jpg"))
    assert took_s < CONNECT_TIMEOUT_S + 1


async def test_the_second_address_is_used_when_the_first_is_a_black_hole(origin: Origin) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.2", origin.port), backlog=0))
        stack.enter_context(socket.create_connection(listener.getsockname()))
        names = {"two.test": ["127.0.0.2", "127.0.0.1"]}
        async with fetching(origin, names=names) as fetcher:
            assert await fetcher.fetch(origin.url("/cat.jpg", host="two.test")) == CAT


async def test_a_tls_handshake_that_hangs_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with fetching(ports=[port], timeout_s=SHORT_S) as fetcher:
            got, took_s = await timed(fetcher.fetch(f"https://127.0.0.1:{port}/cat.jpg"))
    assert got == (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")
    assert took_s < SOON_S


# What is left afterwards.


async def cancelled(fetches: Sequence[asyncio.Future[bytes]]) -> None:
    for fetch in fetches:
        fetch.cancel()
    for result in await asyncio.gather(*fetches, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError)


@pytest.mark.parametrize("handler", [hang, HANGS["in the body"], HANGS["dripping chunks"]])
async def test_cancelled_fetches_give_everything_back(origin: Origin, handler: Handler) -> None:
    origin.raw("/hang", handler)
    origin.raw("/together", Rendezvous(MAX_CONNECTIONS_PER_HOST, with_length(CAT)))
    async with fetching(origin) as fetcher:
        sockets = open_sockets()
        fetches = [
            asyncio.ensure_future(fetcher.fetch(origin.url("/hang")))
            for _ in range(MAX_CONNECTIONS_PER_HOST + 20)
        ]
        await until(lambda: len(origin.requests) == MAX_CONNECTIONS_PER_HOST)
        await cancelled(fetches)
        await until(lambda: origin.connections.open == 0)
        await until(lambda: open_sockets() <= sockets)
        # All slots are there again: so many can meet at the origin.
        together = (fetcher.fetch(origin.url("/together")) for _ in range(MAX_CONNECTIONS_PER_HOST))
        assert await asyncio.gather(*together) == [CAT] * MAX_CONNECTIONS_PER_HOST


@pytest.mark.parametrize("stage", ["look-up", "connect"])
async def test_a_fetch_cancelled_before_it_is_connected_gives_everything_back(stage: str) -> None:
    with black_holes("127.0.0.1") as port:
        names = {"hole.test": ["127.0.0.1"], "never.test": None}
        host = {"look-up": "never.test", "connect": "hole.test"}[stage]
        async with fetching(ports=[port], names=names) as fetcher:
            fetches = [asyncio.ensure_future(fetcher.fetch(f"http://{host}:{port}/")) for _ in range(20)]
            await asyncio.sleep(0.05)
            await cancelled(fetches)


async def test_a_thousand_failures_leave_no_socket(origin: Origin) -> None:
    paths = []
    for index, handler in enumerate(NOT_HTTP.values()):
        paths.append(f"/broken/{index}")
        origin.raw(paths[-1], handler)
    async with fetching(origin) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        sockets = open_sockets()
        for _ in range(1000 // len(paths)):
            got = await asyncio.gather(*(outcome(fetcher.fetch(origin.url(path))) for path in paths))
            assert set(got) == {BROKEN}
        assert await fetcher.fetch(origin.url("/cat.jpg")) == CAT
        await until(lambda: open_sockets() <= sockets + 2 * origin.connections.open)
        await until(lambda: origin.connections.open <= 1)


async def test_close_leaves_no_fetch_running_beyond_its_deadline(origin: Origin) -> None:
    origin.raw("/hang", hang)
    origin.raw("/body", HANGS["in the body"])
    async with fetching(origin, names={"never.test": None}, timeout_s=SOON_S) as fetcher:
        urls = [origin.url("/hang")] * 40 + [origin.url("/body")] * 40 + [origin.url("/", host="never.test")]
        fetches = [asyncio.ensure_future(fetcher.fetch(url)) for url in urls]
        await until(lambda: len(origin.requests) == MAX_CONNECTIONS_PER_HOST)
        await fetcher.close()
        done, pending = await asyncio.wait(fetches, timeout=2 * SOON_S)
        assert not pending
        # Those that waited for a connection or an address, aiohttp cancels.
        assert all(fetch.cancelled() or isinstance(fetch.exception(), EmbedderError) for fetch in done)


async def test_a_fetch_after_close_is_an_error_of_ours(origin: Origin) -> None:
    async with fetching(origin) as fetcher:
        await fetcher.close()
        with pytest.raises(Draining):
            await fetcher.fetch(origin.url("/cat.jpg"))


# In a process of its own.


@dataclass
class Job:
    """What this file does as a program: fetch `urls`, one after the other."""

    uvloop: bool
    urls: list[str]
    ports: list[int] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    cancelled_when_connected: bool = False
    """Cancel each fetch in the turn of the event loop in which its connection is made."""
    canaries: list[str] = field(default_factory=list)
    """Addresses to serve /cat.jpg at; "{port}" in `urls` is their port."""


@dataclass
class JobResult:
    outcomes: list[tuple[str, str, str]]
    """The error's class, code and text; or "bytes" and what there is of them."""
    canary_connections: int
    stderr: str = ""


def run_job(job: Job, *, within: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> JobResult:
    done = subprocess.run(
        [*within, sys.executable, "-W", "error", "-m", "tests.fetch.test_fetcher", json.dumps(asdict(job))],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    outcomes = [tuple(item) for item in result["outcomes"]]
    return JobResult(outcomes, result["canary_connections"], done.stderr)


def cancel_when_connected(fetch: asyncio.Future[Outcome]) -> None:
    """In a process of its own: it is for good."""

    class Cancelling(_OneAnswer):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            fetch.cancel()

    embedder.fetch.fetcher._OneAnswer = Cancelling  # type: ignore[misc]


async def work(job: Job) -> JobResult:
    with contextlib.ExitStack() as stack:
        canaries: list[Origin] = []
        for host in job.canaries:
            port = canaries[0].port if canaries else 0
            canaries.append(stack.enter_context(Origin(host=host, port=port)))
            canaries[-1].serve("/cat.jpg", CAT)
        outcomes = []
        networks = [ip_network(network) for network in job.networks]
        async with fetching(*canaries, ports=job.ports, networks=networks, names=job.names) as fetcher:
            for url in job.urls:
                url = url.replace("{port}", str(canaries[0].port if canaries else 0))
                fetch = asyncio.ensure_future(outcome(fetcher.fetch(url)))
                if job.cancelled_when_connected:
                    cancel_when_connected(fetch)
                try:
                    kind, code, text = await fetch
                except asyncio.CancelledError:
                    kind, code, text = asyncio.CancelledError, "", ""
                outcomes.append((kind.__name__, code, text))
        return JobResult(outcomes, sum(canary.connections.accepted for canary in canaries))


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    if job.uvloop:
        import uvloop

        result = uvloop.run(work(job))
    else:
        result = asyncio.run(work(job))
    json.dump(asdict(result), sys.stdout)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def on_uvloop(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


CAT_CAME = ("bytes", "", f"{len(CAT)} bytes")
CANT_BE_REACHED = ("FetchFailed", *UNREACHABLE[1:])
# A network of its own, where public addresses are this machine's.
NAMESPACE = ["unshare", "--map-root-user", "--net", "sh", "-ec"]
OWN_ADDRESSES = """
ip link set lo up
ip addr add 93.184.216.34/24 dev lo
ip addr add 93.184.216.35/24 dev lo
ip -6 addr add 2606:4700::1234/64 dev lo nodad
ip route add local 93.184.218.0/24 dev lo
exec "$@"
"""


@functools.cache
def why_no_namespace() -> str | None:
    try:
        tried = subprocess.run(
            [*NAMESPACE, OWN_ADDRESSES, "sh", "true"], capture_output=True, text=True, timeout=30
        )
    except FileNotFoundError as exc:
        return str(exc)
    return None if tried.returncode == 0 else tried.stderr.strip()


def run_in_namespace(job: Job) -> JobResult:
    if reason := why_no_namespace():
        pytest.skip(f"no network namespace here: {reason}")
    return run_job(job, within=[*NAMESPACE, OWN_ADDRESSES, "sh"])


def test_the_machines_own_public_addresses_are_not_reached(on_uvloop: bool) -> None:
    urls = [
        "http://93.184.216.34:{port}/cat.jpg",
        "http://[2606:4700::1234]:{port}/cat.jpg",
        "http://own.test:{port}/cat.jpg",
        "http://mixed.test:{port}/cat.jpg",
    ]
    names = {"own.test": ["93.184.216.34"], "mixed.test": ["93.184.217.1", "2606:4700::1234"]}
    result = run_in_namespace(
        Job(on_uvloop, urls, names=names, canaries=["93.184.216.34", "2606:4700::1234"])
    )
    assert result.outcomes == [CANT_BE_REACHED] * 4
    assert result.canary_connections == 0


def test_the_machines_second_address_in_a_subnet_is_not_reached(on_uvloop: bool) -> None:
    urls = ["http://93.184.216.35:{port}/cat.jpg"]
    result = run_in_namespace(Job(on_uvloop, urls, canaries=["93.184.216.35"]))
    assert result.outcomes == [CANT_BE_REACHED]
    assert result.canary_connections == 0


def test_an_address_routed_to_the_machine_is_not_reached(on_uvloop: bool) -> None:
    # As cloud agents do for the public addresses of a load balancer in front.
    urls = ["http://93.184.218.9:{port}/cat.jpg"]
    result = run_in_namespace(Job(on_uvloop, urls, canaries=["93.184.218.9"]))
    assert result.outcomes == [CANT_BE_REACHED]
    assert result.canary_connections == 0


def test_the_machines_own_public_address_is_reached_when_its_network_is_allowed(on_uvloop: bool) -> None:
    urls = ["http://93.184.216.34:{port}/cat.jpg", "http://own.test:{port}/cat.jpg"]
    job = Job(on_uvloop, urls, names={"own.test": ["93.184.216.34"]}, canaries=["93.184.216.34"])
    job.networks = ["93.184.216.34/32"]
    result = run_in_namespace(job)
    assert result.outcomes == [CAT_CAME] * 2
    assert result.canary_connections == 1 + 1  # another host name is another connection


# TLS.


@dataclass(frozen=True)
class Certificates:
    """A certificate authority of the tests' own, and what it signed; .pem files with key and certificate."""

    authority: Path
    good: Path
    """For images.test and 127.0.0.1."""
    expired: Path
    misnamed: Path
    """For other.test."""
    self_signed: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)

    def key_for(name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]

    def self_signed(name: str, *extensions: str) -> None:
        added = [part for extension in extensions for part in ("-addext", extension)]
        subject = ["-subj", f"/CN={name}", "-days", "2"]
        openssl("req", "-x509", *key_for(name), "-out", f"{name}.crt", *subject, *added)

    def signed(name: str, alternative_names: str, *validity: str) -> Path:
        openssl("req", *key_for(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "extensions").write_text(f"subjectAltName={alternative_names}\n")
        # `openssl ca` is the one that can set a date in the past.
        openssl("ca", "-batch", "-notext", "-config", "ca.conf", "-cert", "authority.crt",
                "-keyfile", "authority.key", "-in", f"{name}.csr", "-out", f"{name}.crt",
                "-extfile", "extensions", *validity)  # fmt: skip
        return with_key(name)

    def with_key(name: str) -> Path:
        pem = folder / f"{name}.pem"
        pem.write_text((folder / f"{name}.key").read_text() + (folder / f"{name}.crt").read_text())
        return pem

    (folder / "index.txt").touch()
    (folder / "serial.txt").write_text("1000\n")
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=ours\n[ours]\ndatabase=index.txt\nserial=serial.txt\nnew_certs_dir=.\ndefault_md=sha256\n"
        "default_days=2\npolicy=any\n[any]\ncommonName=supplied\n"
    )
    names = "DNS:images.test,IP:127.0.0.1"
    self_signed("authority", "keyUsage=critical,keyCertSign,cRLSign")
    self_signed("lonely", f"subjectAltName={names}")
    past = ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z")
    return Certificates(
        authority=folder / "authority.crt",
        good=signed("good", names),
        expired=signed("expired", names, *past),
        misnamed=signed("misnamed", "DNS:other.test"),
        self_signed=with_key("lonely"),
    )


@contextlib.contextmanager
def tls_origin(pem: Path, *, names_asked: list[str | None] | None = None) -> Iterator[Origin]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if names_asked is not None:
        context.sni_callback = lambda connection, name, context: names_asked.append(name)
    with Origin(tls=context) as origin:
        origin.serve("/cat.jpg", CAT)
        yield origin


def fetched_over_tls(
    on_uvloop: bool, certificates: Certificates, urls: list[str], *origins: Origin
) -> list[tuple[str, str, str]]:
    names = {"images.test": ["127.0.0.1"]}
    ports = [origin.port for origin in origins]
    job = Job(on_uvloop, urls, ports=ports, networks=["127.0.0.0/8"], names=names)
    result = run_job(job, environ={"SSL_CERT_FILE": str(certificates.authority)})
    assert result.stderr == ""
    return result.outcomes


def test_https_works_and_asks_for_the_name(on_uvloop: bool, certificates: Certificates) -> None:
    names_asked: list[str | None] = []
    with tls_origin(certificates.good, names_asked=names_asked) as origin:
        urls = [origin.url("/cat.jpg", host="images.test"), origin.url("/cat.jpg", host="images.test")]
        urls.append(origin.url("/cat.jpg"))
        assert fetched_over_tls(on_uvloop, certificates, urls, origin) == [CAT_CAME] * 3
        assert [request.headers["host"] for request in origin.requests] == [
            f"images.test:{origin.port}",
            f"images.test:{origin.port}",
            f"127.0.0.1:{origin.port}",
        ]
        # An address is not asked for: RFC 6066 section 3.
        assert (names_asked, origin.connections.accepted) == (["images.test", None], 2)


def test_an_invalid_certificate_is_a_failure_that_says_why(
    on_uvloop: bool, certificates: Certificates
) -> None:
    with (
        tls_origin(certificates.expired) as expired,
        tls_origin(certificates.misnamed) as misnamed,
        tls_origin(certificates.self_signed) as self_signed,
    ):
        origins = [expired, misnamed, self_signed]
        urls = [origin.url("/cat.jpg", host="images.test") for origin in origins]
        urls.append(misnamed.url("/cat.jpg"))
        outcomes = fetched_over_tls(on_uvloop, certificates, urls, *origins)
        assert [origin.requests for origin in origins] == [[], [], []]
    reasons = [
        "certificate has expired",
        "Hostname mismatch, certificate is not valid for 'images.test'.",
        "self-signed certificate",
        "IP address mismatch, certificate is not valid for '127.0.0.1'.",
    ]
    texts = [f"the certificate of the image's server is not valid: {reason}" for reason in reasons]
    assert outcomes == [("FetchFailed", "fetch_failed", text) for text in texts]


def test_an_authority_that_is_not_trusted_is_refused(on_uvloop: bool, certificates: Certificates) -> None:
    with tls_origin(certificates.good) as origin:
        job = Job(on_uvloop, [origin.url("/cat.jpg")], ports=[origin.port], networks=["127.0.0.0/8"])
        ((kind, code, text),) = run_job(job).outcomes
    assert (kind, code) == ("FetchFailed", "fetch_failed")
    assert text.startswith("the certificate of the image's server is not valid: ")


def test_plain_http_on_an_https_url_and_the_reverse_are_failures(
    on_uvloop: bool, origin: Origin, certificates: Certificates
) -> None:
    with tls_origin(certificates.good) as secure:
        urls = [f"https://127.0.0.1:{origin.port}/cat.jpg", f"http://127.0.0.1:{secure.port}/cat.jpg"]
        outcomes = fetched_over_tls(on_uvloop, certificates, urls, origin, secure)
    assert outcomes == [
        ("FetchFailed", "fetch_failed", "the TLS connection to the image's server failed"),
        ("FetchFailed", *BROKEN[1:]),
    ]


def test_what_is_cut_off_over_tls_is_not_waited_for(on_uvloop: bool, certificates: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.good)
    sent_bytes = 0

    def send_much(listener: socket.socket) -> None:
        """Without a look at what the client says."""
        nonlocal sent_bytes
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(listener.accept()[0], server_side=True) as peer,
        ):
            peer.recv(65536)
            peer.sendall(OK + b"\r\n" + CAT)
            while sent_bytes < BUFFERED_BYTES:
                sent_bytes += peer.send(bytes(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=send_much, args=[listener])
        sender.start()
        port = listener.getsockname()[1]
        job = Job(on_uvloop, [f"https://127.0.0.1:{port}/"], ports=[port], networks=["127.0.0.0/8"])
        # It asserts that no socket stays.
        result = run_job(job, environ={"SSL_CERT_FILE": str(certificates.authority)})
        sender.join()
    assert [kind for kind, _, _ in result.outcomes] == ["ImageTooLarge"]
    assert sent_bytes < BUFFERED_BYTES


def test_a_connection_that_is_made_as_its_fetch_is_cancelled_is_cut(
    on_uvloop: bool, certificates: Certificates
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.good)

    def say_no_farewell(listener: socket.socket) -> None:
        peer = context.wrap_socket(listener.accept()[0], server_side=True, do_handshake_on_connect=False)
        with contextlib.suppress(OSError):
            peer.do_handshake()
        with socket.socket(fileno=peer.detach()) as silent, contextlib.suppress(OSError):
            while silent.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        waiting = threading.Thread(target=say_no_farewell, args=[listener])
        waiting.start()
        port = listener.getsockname()[1]
        job = Job(on_uvloop, [f"https://127.0.0.1:{port}/"], ports=[port], networks=["127.0.0.0/8"])
        job.cancelled_when_connected = True
        # It asserts that no socket stays.
        result = run_job(job, environ={"SSL_CERT_FILE": str(certificates.authority)})
        waiting.join()
    assert result.outcomes == [("CancelledError", "", "")]
    assert result.stderr == ""


def test_a_redirect_may_go_up_to_https_but_not_down(
    on_uvloop: bool, origin: Origin, certificates: Certificates
) -> None:
    with tls_origin(certificates.good) as secure:
        origin.redirect("/up", secure.url("/cat.jpg"))
        origin.redirect("/up-and-down", secure.url("/down"))
        secure.redirect("/down", origin.url("/cat.jpg"))
        urls = [origin.url("/up"), secure.url("/down"), origin.url("/up-and-down")]
        outcomes = fetched_over_tls(on_uvloop, certificates, urls, origin, secure)
    refused = ("FetchFailed", "fetch_failed", "the image's server redirects from https to http")
    assert outcomes == [CAT_CAME, refused, refused]
    assert "/cat.jpg" not in [request.path for request in origin.requests]


if __name__ == "__main__":
    main()
