"""https: certificates, names, and connections that are cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.answers import CAT, OK
from tests.fetch.certificates import Certificates, server_context, tls_origin
from tests.fetch.fetching import BROKEN, BUFFERED_BYTES, CAME, fetching, outcome
from tests.fetch.job import CAT_CAME, Job, run_job
from tests.origin import Origin

FAILED = "FetchFailed", "fetch_failed"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def on_uvloop(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def fetched(
    on_uvloop: bool, certificates: Certificates, urls: list[str], *origins: Origin
) -> list[tuple[str, str, str]]:
    job = Job(
        on_uvloop,
        urls,
        ports=[origin.port for origin in origins],
        networks=["127.0.0.0/8"],
        names={"images.test": ["127.0.0.1"]},
    )
    return run_job(job, authority=certificates.authority).outcomes


def test_https_works_and_asks_for_the_name(on_uvloop: bool, certificates: Certificates) -> None:
    names_asked: list[str | None] = []
    with tls_origin(certificates.good, names_asked=names_asked) as origin:
        urls = [origin.url("/cat.jpg", host="images.test")] * 2 + [origin.url("/cat.jpg")]
        assert fetched(on_uvloop, certificates, urls, origin) == [CAT_CAME] * 3
        hosts = [request.headers["host"].split(":")[0] for request in origin.requests]
        assert hosts == ["images.test", "images.test", "127.0.0.1"]
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
        outcomes = fetched(on_uvloop, certificates, urls, *origins)
        assert [origin.requests for origin in origins] == [[], [], []]
    reasons = [
        "certificate has expired",
        "Hostname mismatch, certificate is not valid for 'images.test'.",
        "self-signed certificate",
        "IP address mismatch, certificate is not valid for '127.0.0.1'.",
    ]
    texts = [f"the certificate of the image's server is not valid: {reason}" for reason in reasons]
    assert outcomes == [(*FAILED, text) for text in texts]


@pytest.mark.anyio
async def test_an_authority_that_is_not_trusted_is_refused(certificates: Certificates) -> None:
    with tls_origin(certificates.good) as origin:
        async with fetching(origin) as fetcher:
            _, code, text = await outcome(fetcher.fetch(origin.url("/cat.jpg")))
    assert code == "fetch_failed"
    assert text.startswith("the certificate of the image's server is not valid: ")


@pytest.mark.anyio
async def test_plain_http_on_an_https_url_and_the_reverse_are_failures(
    origin: Origin, certificates: Certificates
) -> None:
    with tls_origin(certificates.good) as secure:
        async with fetching(origin, secure) as fetcher:
            got = await outcome(fetcher.fetch(f"https://127.0.0.1:{origin.port}/cat.jpg"))
            assert got[1:] == ("fetch_failed", "the TLS connection to the image's server failed")
            assert await outcome(fetcher.fetch(f"http://127.0.0.1:{secure.port}/cat.jpg")) == BROKEN
            assert await outcome(fetcher.fetch(origin.url("/cat.jpg"))) == CAME


def test_a_redirect_may_go_up_to_https_but_not_down(
    on_uvloop: bool, origin: Origin, certificates: Certificates
) -> None:
    with tls_origin(certificates.good) as secure:
        origin.redirect("/up", secure.url("/cat.jpg"))
        origin.redirect("/up-and-down", secure.url("/down"))
        secure.redirect("/down", origin.url("/cat.jpg"))
        urls = [origin.url("/up"), secure.url("/down"), origin.url("/up-and-down")]
        outcomes = fetched(on_uvloop, certificates, urls, origin, secure)
    refused = (*FAILED, "the image's server redirects from https to http")
    assert outcomes == [CAT_CAME, refused, refused]
    assert "/cat.jpg" not in [request.path for request in origin.requests]


# What is cut is not waited for. `run_job` asserts that no socket stays, and that stderr is empty.


@contextlib.contextmanager
def peer(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that gives `serve` its one connection, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: serve(listener.accept()[0]))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_flood_over_tls_is_cut_without_waiting_for_a_farewell(
    on_uvloop: bool, certificates: Certificates
) -> None:
    context = server_context(certificates.good)
    sent: list[int] = []

    def flood(connection: socket.socket) -> None:
        """Without a look at what the client says."""
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(65536)
            secure.sendall(OK + b"\r\n" + CAT)
            while sum(sent) < BUFFERED_BYTES:
                sent.append(secure.send(bytes(65536)))

    with peer(flood) as port:
        job = Job(on_uvloop, [f"https://127.0.0.1:{port}/"], ports=[port], networks=["127.0.0.0/8"])
        result = run_job(job, authority=certificates.authority)
    assert [kind for kind, _, _ in result.outcomes] == ["ImageTooLarge"]
    assert sum(sent) < BUFFERED_BYTES


def test_a_connection_that_is_made_as_its_fetch_is_cancelled_is_cut(
    on_uvloop: bool, certificates: Certificates
) -> None:
    context = server_context(certificates.good)

    def say_no_farewell(connection: socket.socket) -> None:
        secure = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with contextlib.suppress(OSError):
            secure.do_handshake()
        with socket.socket(fileno=secure.detach()) as silent, contextlib.suppress(OSError):
            while silent.recv(65536):
                pass

    with peer(say_no_farewell) as port:
        job = Job(on_uvloop, [f"https://127.0.0.1:{port}/"], ports=[port], networks=["127.0.0.0/8"])
        job.cancelled_when_connected = True
        result = run_job(job, authority=certificates.authority)
    assert result.outcomes == [("CancelledError", "", "")]
