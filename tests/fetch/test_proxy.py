"""All downloads through the operator's proxy: absolute-form for http, CONNECT for https."""

from __future__ import annotations

import base64
import logging

import pytest

from embedder.errors import URLNotAllowed
from embedder.metrics.measures import Metrics
from tests.answers import BUSYWORK, CAT, Flood, hang, says, with_length
from tests.fetch.certificates import Certificates, tls_origin
from tests.fetch.fetching import BROKEN, SHORT_S, UNREACHABLE, Dialler, Names, failures, fetching, outcome
from tests.fetch.job import CAT_CAME, Job, run_in_namespace, run_job
from tests.fetch.proxy import Proxy
from tests.origin import Origin

NAMES = {"images.test": "127.0.0.1"}
REFUSALS = ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway", "503 No DNS", "504 Late"]


@pytest.mark.anyio
async def test_http_goes_through_the_proxy_in_absolute_form_and_names_are_the_proxys(origin: Origin) -> None:
    names = Names({})
    with Proxy(NAMES) as proxy:
        url = origin.url("/cat.jpg?a=1", host="images.test")
        # No network is allowed: the proxy's address is the operator's.
        async with fetching(origin, networks=(), names=names, proxy=proxy.url("")) as fetcher:
            assert await fetcher.fetch(url) == CAT
    assert [(request.method, request.path) for request in proxy.requests] == [("GET", url)]
    assert origin.requests[0].headers["host"] == f"images.test:{origin.port}"
    assert names.calls == []


@pytest.mark.anyio
async def test_the_proxys_own_name_is_looked_up(origin: Origin) -> None:
    names = Names({"proxy.test": ["127.0.0.1"]})
    with Proxy(NAMES) as proxy:
        url = proxy.url("", host="proxy.test")
        async with fetching(origin, networks=(), names=names, proxy=url) as fetcher:
            assert await fetcher.fetch(origin.url("/cat.jpg", host="images.test")) == CAT
    assert names.calls == ["proxy.test"]


@pytest.mark.parametrize("on_uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_https_goes_through_a_tunnel(on_uvloop: bool, certificates: Certificates) -> None:
    with Proxy(NAMES) as proxy, tls_origin(certificates.good) as origin:
        urls = [origin.url("/cat.jpg?a=1", host="images.test")] * 2
        job = Job(on_uvloop, urls, ports=[origin.port], proxy=proxy.url(""))
        assert run_job(job, authority=certificates.authority).outcomes == [CAT_CAME] * 2
        assert [(request.method, request.path) for request in proxy.requests] == [
            ("CONNECT", f"images.test:{origin.port}")
        ]
        assert [request.path for request in origin.requests] == ["/cat.jpg?a=1"] * 2


@pytest.mark.anyio
async def test_the_certificate_that_counts_is_the_origins(
    certificates: Certificates, metrics: Metrics
) -> None:
    with Proxy(NAMES) as proxy, tls_origin(certificates.misnamed) as origin:
        async with fetching(origin, proxy=proxy.url(""), metrics=metrics) as fetcher:
            got = await outcome(fetcher.fetch(origin.url("/cat.jpg", host="images.test")))
    assert got[2].startswith("the certificate of the image's server is not valid: ")
    assert failures(metrics) == {"tls": 1}


@pytest.mark.anyio
async def test_the_password_goes_to_the_proxy_and_nowhere_else(
    origin: Origin, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Proxy(NAMES) as proxy, tls_origin(certificates.good) as secure:
        url = proxy.url("").replace("//", "//some%40body:pass%3Aword@")
        async with fetching(origin, secure, proxy=url) as fetcher:
            assert await fetcher.fetch(origin.url("/cat.jpg", host="images.test")) == CAT
            await outcome(fetcher.fetch(secure.url("/cat.jpg", host="images.test")))
            proxy.refusal = with_length(b"").replace(b"200 OK", b"407 No")
            await outcome(fetcher.fetch(origin.url("/dog.png", host="images.test")))
            await outcome(fetcher.fetch(secure.url("/dog.png", host="images.test")))
    credentials = f"Basic {base64.b64encode(b'some@body:pass:word').decode()}"
    assert [request.headers["proxy-authorization"] for request in proxy.requests] == [credentials] * 4
    assert "proxy-authorization" not in origin.requests[0].headers
    told = caplog.text + repr(fetcher)
    assert all(secret not in told for secret in ("pass:word", "pass%3Aword", credentials))


def test_in_a_tunnel_the_origin_is_not_told_the_password(certificates: Certificates) -> None:
    with Proxy(NAMES) as proxy, tls_origin(certificates.good) as origin:
        url = proxy.url("").replace("//", "//somebody:secret@")
        job = Job(False, [origin.url("/cat.jpg", host="images.test")], ports=[origin.port], proxy=url)
        assert run_job(job, authority=certificates.authority).outcomes == [CAT_CAME]
        assert set(origin.requests[0].headers) == {"host", "user-agent", "accept", "accept-encoding"}


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.anyio
async def test_a_proxy_that_refuses_looks_like_an_origin_that_cannot_be_reached(
    origin: Origin, status: str, metrics: Metrics
) -> None:
    refusal = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nX-Squid-Error: ERR_INSIDE\r\n\r\n".encode()
    with Proxy(NAMES, refusal=refusal) as proxy:
        async with fetching(origin, proxy=proxy.url(""), metrics=metrics) as fetcher:
            for scheme in ("http", "https"):
                url = f"{scheme}://images.test:{origin.port}/cat.jpg"
                assert await outcome(fetcher.fetch(url)) == UNREACHABLE
    assert failures(metrics) == {"connection": 2}


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 2OO\r\n\r\n"], ids=["nothing", "ssh", "broken"]
)
@pytest.mark.anyio
async def test_a_tunnel_that_breaks_off_is_the_proxys_failure(
    origin: Origin, answer: bytes, metrics: Metrics
) -> None:
    with Origin() as proxy:
        proxy.raw(f"images.test:{origin.port}", says(answer))
        async with fetching(origin, proxy=proxy.url(""), metrics=metrics) as fetcher:
            url = f"https://images.test:{origin.port}/cat.jpg"
            assert await outcome(fetcher.fetch(url)) == UNREACHABLE
    assert failures(metrics) == {"connection": 1}


@pytest.mark.parametrize("host", ["nowhere.test", "closed.test"])
@pytest.mark.anyio
async def test_a_proxy_that_cannot_be_reached_is_a_failure_of_connection(
    origin: Origin, host: str, metrics: Metrics
) -> None:
    names = {"closed.test": ["127.0.0.1"]}
    proxy = f"http://{host}:3128"
    async with fetching(origin, names=names, proxy=proxy, metrics=metrics, dialler=Dialler()) as fetcher:
        for scheme in ("http", "https"):
            got = await outcome(fetcher.fetch(f"{scheme}://images.test:{origin.port}/cat.jpg"))
            assert got == UNREACHABLE
    assert failures(metrics) == {"connection": 2}


@pytest.mark.anyio
async def test_a_proxy_that_hangs_costs_the_deadline(origin: Origin, metrics: Metrics) -> None:
    with Origin() as proxy:
        proxy.raw(f"images.test:{origin.port}", hang)
        async with fetching(origin, proxy=proxy.url(""), timeout_s=SHORT_S, metrics=metrics) as fetcher:
            await outcome(fetcher.fetch(f"https://images.test:{origin.port}/cat.jpg"))
    assert failures(metrics) == {"timeout": 1}


@pytest.mark.anyio
async def test_addresses_in_urls_and_redirects_are_judged_here_all_the_same(origin: Origin) -> None:
    origin.redirect("/old", "http://169.254.169.254/latest/")
    with Proxy(NAMES) as proxy:
        async with fetching(origin, networks=(), ports=[80], proxy=proxy.url("")) as fetcher:
            with pytest.raises(URLNotAllowed):
                await fetcher.fetch("http://127.0.0.1/")
            with pytest.raises(URLNotAllowed):
                await fetcher.fetch("https://[64:ff9b::7f00:1]:80/")
            _, code, text = await outcome(fetcher.fetch(origin.url("/old", host="images.test")))
    assert code == "fetch_failed"
    assert text.startswith("the image's server redirects to a URL that is not allowed: ")
    assert [request.path for request in proxy.requests] == [origin.url("/old", host="images.test")]


def test_a_flood_in_a_tunnel_is_cut_off_like_any_other(certificates: Certificates) -> None:
    with Proxy(NAMES) as proxy, tls_origin(certificates.good) as origin:
        flood = Flood(*BUSYWORK["one-byte chunks"])
        origin.raw("/flood", flood)
        urls = [origin.url("/flood", host="images.test")]
        job = Job(False, urls, ports=[origin.port], proxy=proxy.url(""))
        assert run_job(job, authority=certificates.authority).outcomes == [("FetchFailed", *BROKEN[1:])]


def test_an_own_address_in_a_url_does_not_reach_the_proxy() -> None:
    # The canary on 127.0.0.1 is the proxy.
    job = Job(False, ["http://93.184.216.34:{port}/cat.jpg"], proxy="http://127.0.0.1:{port}")
    job.canaries = ["127.0.0.1"]
    result = run_in_namespace(job, "ip addr add 93.184.216.34/24 dev lo")
    assert result.outcomes == [("FetchFailed", *UNREACHABLE[1:])]
    assert result.canary_connections == 0
