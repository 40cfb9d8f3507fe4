"""Which addresses are dialled: names, literal addresses, this machine's own; and no room for a socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_network

import pytest

from embedder.errors import FetchTimeout, URLNotAllowed
from embedder.fetch.addresses import AddressPolicy
from embedder.fetch.dialling import MAX_ADDRESSES_PER_ANSWER, MAX_ADDRESSES_PER_NAME
from embedder.fetch.fetcher import Fetcher
from embedder.fetch.urls import URLPolicy
from embedder.images.formats import ON
from embedder.metrics.measures import Metrics
from tests.answers import CAT
from tests.fetch.fetching import (
    CAME,
    FORBIDDEN,
    LOOPBACK,
    NO_ROOM,
    PUBLIC,
    SHORT_S,
    UNREACHABLE,
    Dialler,
    Names,
    cancelled,
    fetching,
    outcome,
)
from tests.fetch.job import CAT_CAME, Job, JobResult, run_in_namespace
from tests.origin import Origin


@pytest.mark.anyio
async def test_the_default_resolver_knows_localhost(origin: Origin) -> None:
    policy = URLPolicy(allowed_ports=frozenset({origin.port}), addresses=AddressPolicy(LOOPBACK))
    fetcher = Fetcher(
        policy, metrics=Metrics(), version="0", max_bytes=100_000, timeout_s=30, max_redirects=0, formats=ON
    )
    await fetcher.start()
    try:
        assert await fetcher.fetch(origin.url("/cat.jpg", host="localhost")) == CAT
    finally:
        await fetcher.close()


# Names.


@pytest.mark.parametrize(
    "answer",
    [
        *([address] for address in FORBIDDEN), ["fe80::1%1"], [PUBLIC, "10.0.0.7"],
        ["10.0.0.7", PUBLIC], ["2606:4700:4700::1111", "10.0.0.7"],
        [*(f"93.184.216.{i}" for i in range(1, 200)), "10.0.0.7"],  # beyond what would be dialled anyway
    ],
    ids=lambda answer: ",".join(answer)[:40],
)  # fmt: skip
@pytest.mark.anyio
async def test_a_name_with_a_forbidden_address_is_never_dialled_and_looks_unreachable(
    answer: list[str],
) -> None:
    dialler, names = Dialler(), {"inside.test": answer}
    async with fetching(networks=(), ports=[80, 443], names=names, dialler=dialler) as fetcher:
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
        pytest.param(TimeoutError(), id="timeout"),
        pytest.param(OSError(errno.ETIMEDOUT, "Timeout while contacting DNS servers"), id="ETIMEDOUT"),
        pytest.param(UnicodeError("label too long"), id="UnicodeError"),
        pytest.param(RuntimeError("resolver is closed"), id="RuntimeError"),
        pytest.param(KeyError("host"), id="KeyError"),
        pytest.param([PUBLIC, "no address"], id="no-address"),
    ],
)
@pytest.mark.anyio
async def test_refused_and_unresolvable_names_look_the_same(answer: Sequence[str] | Exception) -> None:
    names = {"outside.test": answer}
    async with fetching(networks=(), ports=[80], names=names, dialler=Dialler()) as fetcher:
        # The second one joins the first one's look-up.
        fetches = [outcome(fetcher.fetch("http://outside.test/cat.jpg")) for _ in range(2)]
        assert await asyncio.gather(*fetches) == [UNREACHABLE] * 2


@pytest.mark.parametrize("answer", [PUBLIC, "2606:4700:4700::1111"])
@pytest.mark.anyio
async def test_a_public_name_is_looked_up_once_and_dialled_at_its_very_address(answer: str) -> None:
    names, dialler = Names({"outside.test": [answer]}), Dialler()
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch("http://outside.test/cat.jpg")) == UNREACHABLE
    assert names.calls == ["outside.test"]
    assert set(dialler.dialled) == {(answer, 80)}
    family = socket.AF_INET6 if ":" in answer else socket.AF_INET
    assert set(dialler.opened) == {(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)}


@pytest.mark.anyio
async def test_the_host_header_keeps_the_name(origin: Origin) -> None:
    dialler = Dialler(origin, stands_for=PUBLIC)
    async with fetching(origin, networks=(), names={"outside.test": [PUBLIC]}, dialler=dialler) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg", host="outside.test")) == CAT
    assert origin.requests[0].headers["host"] == f"outside.test:{origin.port}"
    assert dialler.dialled == [(PUBLIC, origin.port)]


@pytest.mark.anyio
async def test_an_address_that_turns_private_at_the_second_look_up_is_not_dialled() -> None:
    names, dialler = Names({"rebind.test": [PUBLIC]}), Dialler()
    # Answers are kept for a while per name and port: the second port makes it a second look-up.
    async with fetching(networks=(), ports=[80, 443], names=names, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch("http://rebind.test/cat.jpg")) == UNREACHABLE
        names.answers["rebind.test"] = ["10.0.0.7"]
        assert await outcome(fetcher.fetch("http://rebind.test/cat.jpg")) == UNREACHABLE
        assert await outcome(fetcher.fetch("http://rebind.test:443/cat.jpg")) == UNREACHABLE
    assert set(dialler.dialled) == {(PUBLIC, 80)}
    assert names.calls == ["rebind.test", "rebind.test"]


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.anyio
async def test_of_256_addresses_eight_are_dialled_once_and_of_257_none(extra: int) -> None:
    answer = [f"93.184.{i // 250}.{i % 250 + 1}" for i in range(MAX_ADDRESSES_PER_ANSWER + extra)]
    dialler = Dialler()
    async with fetching(networks=(), ports=[80], names={"many.test": answer}, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch("http://many.test/cat.jpg")) == UNREACHABLE
    expected = [] if extra else answer[:MAX_ADDRESSES_PER_NAME]
    assert sorted(dialler.dialled) == sorted((address, 80) for address in expected)


@pytest.mark.anyio
async def test_a_look_up_that_never_answers_ends_at_the_deadline() -> None:
    async with fetching(networks=(), ports=[80], names={"never.test": None}, timeout_s=SHORT_S) as fetcher:
        # The second one joins the first one's look-up.
        fetches = [outcome(fetcher.fetch("http://never.test/")) for _ in range(2)]
        late = (FetchTimeout, "fetch_timeout", "the image did not arrive within 0.4 s")
        assert await asyncio.gather(*fetches) == [late] * 2


@pytest.mark.anyio
async def test_a_name_that_never_answers_does_not_hold_up_other_names(origin: Origin) -> None:
    names = {"never.test": None, "good.test": ["127.0.0.1"]}
    async with fetching(origin, names=names) as fetcher:
        urls = [origin.url("/", host="never.test")] * 100
        waiting = [asyncio.ensure_future(fetcher.fetch(url)) for url in urls]
        assert await outcome(fetcher.fetch(origin.url("/cat.jpg", host="good.test"))) == CAME
        await cancelled(waiting)


@pytest.mark.parametrize("answer", [["::1", "127.0.0.1"], ["127.0.0.1", "10.0.0.7"], [PUBLIC, "127.0.0.1"]])
@pytest.mark.anyio
async def test_where_the_operator_allows_an_address_of_a_name_only_that_one_is_dialled(
    origin: Origin, answer: list[str]
) -> None:
    dialler = Dialler(origin)
    async with fetching(origin, names={"mine.test": answer}, dialler=dialler) as fetcher:
        assert await fetcher.fetch(origin.url("/cat.jpg", host="mine.test")) == CAT
    assert dialler.dialled == [("127.0.0.1", origin.port)]


@pytest.mark.anyio
async def test_with_nat64_allowed_only_translated_public_addresses_are_dialled() -> None:
    names = {"out.test": ["64:ff9b::5db8:d822"], "metadata.test": ["64:ff9b::a9fe:a9fe"]}
    names["both.test"] = ["64:ff9b::5db8:d822", "64:ff9b::a9fe:a9fe"]
    dialler, networks = Dialler(), [ip_network("64:ff9b::/96")]
    async with fetching(networks=networks, ports=[80], names=names, dialler=dialler) as fetcher:
        for name in names:
            assert await outcome(fetcher.fetch(f"http://{name}/")) == UNREACHABLE
        with pytest.raises(URLNotAllowed):
            await fetcher.fetch("http://[64:ff9b::169.254.169.254]/")
    assert set(dialler.dialled) == {("64:ff9b::5db8:d822", 80)}


# Literal addresses.


@pytest.mark.parametrize("host", [PUBLIC, "[2606:4700:4700::1111]"])
@pytest.mark.anyio
async def test_a_public_literal_is_dialled_without_a_look_up(host: str) -> None:
    names, dialler = Names({}), Dialler()
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        assert await outcome(fetcher.fetch(f"http://{host}/cat.jpg")) == UNREACHABLE
    assert names.calls == []
    assert set(dialler.dialled) == {(host.strip("[]"), 80)}


@pytest.mark.parametrize("host", FORBIDDEN)
@pytest.mark.anyio
async def test_a_forbidden_literal_is_refused_by_its_url(host: str) -> None:
    names, dialler = Names({}), Dialler()
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        with pytest.raises(URLNotAllowed):
            await fetcher.fetch(f"http://[{host}]/" if ":" in host else f"http://{host}/")
    assert (names.calls, dialler.opened) == ([], [])


# No room for a socket.


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


@pytest.mark.parametrize("host", ["outside.test", PUBLIC])
@pytest.mark.anyio
async def test_an_address_that_cannot_be_judged_is_not_dialled_and_no_fault_of_the_origin(host: str) -> None:
    names, dialler = {"outside.test": [PUBLIC]}, Dialler()
    async with fetching(networks=(), ports=[80], names=names, dialler=dialler) as fetcher:
        with no_descriptor_left():
            got = await outcome(fetcher.fetch(f"http://{host}/cat.jpg"))
    assert got == NO_ROOM
    assert (dialler.opened, dialler.dialled) == ([], [])


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.anyio
async def test_a_socket_that_there_is_no_room_for_is_no_fault_of_the_origin(code: int) -> None:
    def full(family: int, kind: int, protocol: int) -> socket.socket:
        raise OSError(code, os.strerror(code))

    names = {"outside.test": [PUBLIC, "2606:4700:4700::1111"]}
    async with fetching(networks=(), ports=[80], names=names, dialler=full) as fetcher:
        assert await outcome(fetcher.fetch("http://outside.test/cat.jpg")) == NO_ROOM


# This machine's own addresses, in a network namespace.

CANT_BE_REACHED = ("FetchFailed", *UNREACHABLE[1:])
OWN = """
ip addr add 93.184.216.34/24 dev lo
ip addr add 93.184.216.35/24 dev lo
ip -6 addr add 2606:4700::1234/64 dev lo nodad
ip route add local 93.184.218.0/24 dev lo
"""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def on_uvloop(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def fetched_where_addresses_are_own(job: Job) -> JobResult:
    job.canaries = ["93.184.216.34", "93.184.216.35", "2606:4700::1234", "93.184.218.9"]
    job.names = {"own.test": ["93.184.216.34"], "mixed.test": ["93.184.217.1", "2606:4700::1234"]}
    return run_in_namespace(job, OWN)


def test_the_machines_own_public_addresses_are_not_reached(on_uvloop: bool) -> None:
    hosts = [
        *("93.184.216.34", "[2606:4700::1234]", "own.test", "mixed.test"),
        "93.184.216.35",  # the second one in a subnet
        "93.184.218.9",  # routed to the machine, as cloud agents do for the addresses of a load balancer
    ]
    job = Job(on_uvloop, [f"http://{host}:{{port}}/cat.jpg" for host in hosts])
    result = fetched_where_addresses_are_own(job)
    assert result.outcomes == [CANT_BE_REACHED] * len(hosts)
    assert result.canary_connections == 0


def test_the_machines_own_public_address_is_reached_when_its_network_is_allowed(on_uvloop: bool) -> None:
    urls = ["http://93.184.216.34:{port}/cat.jpg", "http://own.test:{port}/cat.jpg"]
    result = fetched_where_addresses_are_own(Job(on_uvloop, urls, networks=["93.184.216.34/32"]))
    assert result.outcomes == [CAT_CAME] * 2
    assert result.canary_connections == 1 + 1  # another host name is another connection


def test_an_own_address_is_not_reached_by_its_ipv4_mapped_form_either() -> None:
    job = Job(False, ["http://[::ffff:93.184.216.34]:{port}/cat.jpg"], networks=["::ffff:0:0/96"])
    result = fetched_where_addresses_are_own(job)
    assert result.outcomes == [CANT_BE_REACHED]
    assert result.canary_connections == 0


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_the_start_fails_in_one_sentence_where_every_address_looks_own(family: str) -> None:
    setting = f"net.{family}.ip_nonlocal_bind"
    job = Job(False, [f"http://{PUBLIC}/cat.jpg"], ports=[80])
    result = run_in_namespace(job, f"echo 1 > /proc/sys/{setting.replace('.', '/')}")
    text = (
        f"{setting} is 1 on this machine, so its own addresses can't be told from others and every image "
        f"would be refused: set it to 0 (sysctl -w {setting}=0)"
    )
    assert result.outcomes == [("StartError", "", text)]
