"""`deploy/nginx.conf`: what nginx passes on to the service, what it refuses, and with which answers."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from embedder.errors import BodyTooLarge, NotFound, Overloaded
from embedder.settings import ROWS, Settings
from tests.answers import Held, hang, with_length
from tests.deploy.deadlines import deadlines_s
from tests.deploy.proxy import CONFIGURATION, NGINX, Proxy, replaced
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import Server, assert_error, free_port, until

pytestmark = pytest.mark.skipif(
    NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx-light)"
)

MAX_BODY_BYTES = Settings().max_body_bytes
DEADLINE_S = 2
DEADLINES = {"client_header_timeout": f"{DEADLINE_S}s", "client_body_timeout": f"{DEADLINE_S}s"}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Proxy]:
    """In front of the service, with short deadlines."""
    with Proxy(tmp_path_factory.mktemp("nginx"), f"127.0.0.1:{server.port}", **DEADLINES) as proxy:
        yield proxy


@pytest.fixture
def upstream() -> Iterator[Origin]:
    """Something in the service's place that shows what nginx sends there."""
    with Origin() as upstream:
        yield upstream


@pytest.fixture
def recording(tmp_path: Path, upstream: Origin) -> Iterator[Proxy]:
    """In front of `upstream`."""
    with Proxy(tmp_path, f"127.0.0.1:{upstream.port}", limit_conn="by_address 4") as recording:
        yield recording


# The file


def test_nginx_takes_the_file_without_a_warning_and_what_is_commented_out_too(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, "127.0.0.1:8000")
    assert "warn" not in proxy.check()
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    files: list[str | Path] = ["-keyout", tmp_path / "privkey.pem", "-out", tmp_path / "fullchain.pem"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    # Prose has a blank after "#", what is to be used has none.
    text = re.sub(r"^( *)#(?=\S)", r"\1", proxy.configuration.read_text(), flags=re.MULTILINE)
    text = text.replace("/etc/nginx/tls", str(tmp_path))
    text = replaced(text, rf"^listen {proxy.port} default_server;", "")
    for port in (443, 80):
        text = replaced(text, rf"^ *listen {port} ", f"listen {free_port()} ")
    proxy.configuration.write_text(text)
    assert "warn" not in proxy.check()


def test_its_numbers_fit_the_services() -> None:
    text = CONFIGURATION.read_text()
    assert re.findall(r"client_max_body_size +(\d+);", text) == [str(MAX_BODY_BYTES), "1"]
    (read_timeout_s,) = re.findall(r"proxy_read_timeout +(\d+)s;", text)
    *_, longest_fetch_s = ROWS["EMBEDDER_FETCH_TIMEOUT_S"].kind.takes.split()
    request_s, _ = deadlines_s(EMBEDDER_FETCH_TIMEOUT_S=longest_fetch_s)
    assert int(read_timeout_s) > request_s


# What passes


def test_an_image_gets_the_vector_that_the_service_gives(
    proxy: Proxy, server: Server, origin: Origin, photo: bytes
) -> None:
    origin.serve("/proxied.jpg", photo)
    for url in (origin.url("/proxied.jpg"), data_url(photo)):
        direct = server.post("/embed", {"url": url})
        answer = requests.post(f"{proxy.url}/embed", json={"url": url})
        assert (answer.status_code, answer.content) == (200, direct.content)
        assert answer.headers["X-Embedding-Model"] == direct.headers["X-Embedding-Model"]


UNCHANGED: dict[str, tuple[str, str, dict[str, object]]] = {
    "not JSON": ("POST", "/embed", {"data": b"{", "headers": {"Content-Type": "application/json"}}),
    "no such type": ("POST", "/embed", {"data": b"x", "headers": {"Content-Type": "text/plain"}}),
    "an origin that fails": ("POST", "/embed", {"json": {"url": "http://127.0.0.1:443/"}}),
    "no such route": ("POST", "/nothing", {"json": {}}),
    "no such method": ("DELETE", "/embed", {}),
    **{
        path: ("GET", path, {})
        for path in ("/health", "/livez", "/readyz", "/info", "/docs", "/docs.json", "/")
    },
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_the_services_answers_pass_unchanged(proxy: Proxy, server: Server, case: str) -> None:
    method, path, options = UNCHANGED[case]
    direct, answer = (
        requests.request(method, url + path, **options)  # type: ignore[arg-type]
        for url in (server.url, proxy.url)
    )
    assert (answer.status_code, answer.content) == (direct.status_code, direct.content)
    for header in ("Content-Type", "Allow"):
        assert answer.headers.get(header) == direct.headers.get(header)
    assert answer.headers["Server"] == "nginx"


@pytest.mark.parametrize(("status", "retry_after"), [(429, "1"), (503, "2"), (500, None)])
def test_an_error_keeps_its_retry_after(
    recording: Proxy, upstream: Origin, status: int, retry_after: str | None
) -> None:
    headers = {"Content-Type": "application/json"} | ({"Retry-After": retry_after} if retry_after else {})
    upstream.serve("/embed", b'{"error":"as it was","code":"x"}', status=status, headers=headers)
    answer = requests.get(f"{recording.url}/embed")
    assert (answer.status_code, answer.json()["error"]) == (status, "as it was")
    assert answer.headers.get("Retry-After") == retry_after


def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(proxy: Proxy, server: Server) -> None:
    body = b'{"url": "ftp://x"}'.ljust(MAX_BODY_BYTES)
    for url in (proxy.url, server.url):  # the service itself draws the line there, too
        answer = requests.post(f"{url}/embed", data=body, headers={"Content-Type": "application/json"})
        assert_error(answer, 422, "url_not_allowed")
    size = len(body) + 1
    for sent in (
        POST + b"Content-Length: %d\r\n\r\n%b " % (size, body),
        POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b \r\n0\r\n\r\n" % (size, body),
    ):
        (answer,) = exchange(proxy, sent)
        assert_error(answer, 413, "body_too_large")
        assert answer.json()["error"] == str(BodyTooLarge(limit_bytes=MAX_BODY_BYTES))


def test_what_a_client_says_of_itself_is_not_passed_on(recording: Proxy, upstream: Origin) -> None:
    upstream.serve("/info", b"{}")
    forged = {f"X-Forwarded-{name}": "203.0.113.7" for name in ("For", "Proto", "Host")}
    forged |= {"X-Real-IP": "203.0.113.7", "Forwarded": "for=203.0.113.7"}
    requests.get(f"{recording.url}/info", headers={**forged, "X-API-Key": "kept", "Host": "name:81"})
    sent = upstream.requests[0].headers
    assert (sent["x-forwarded-for"], sent["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert sent["host"] == sent["x-forwarded-host"] == "name:81"
    assert sent["x-api-key"] == "kept"
    assert not sent.keys() & {"x-real-ip", "forwarded"}


def test_the_access_log_has_paths_and_no_query_strings(proxy: Proxy) -> None:
    requests.get(f"{proxy.url}/health?token=hidden-one")
    requests.post(f"{proxy.url}/embed?token=hidden-two", json={"url": "ftp://hidden-three"})
    until(lambda: '"POST /embed" 422' in proxy.access_log.read_text())
    text = proxy.access_log.read_text()
    assert '"GET /health" 200' in text
    assert "hidden" not in text


# What does not pass

METRICS = """
    /metrics /metrics/ /metrics?x /%6detrics /metrics%2f //metrics /./metrics /x/../metrics /metrics/../metrics
    /METRICS /metrics;x http://127.0.0.1/metrics /%2fmetrics
"""


@pytest.mark.parametrize("target", METRICS.split())
def test_metrics_are_not_there_for_clients(proxy: Proxy, server: Server, target: str) -> None:
    assert "# HELP" in server.get("/metrics").text
    (answer,) = exchange(proxy, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert "# HELP" not in answer.text
    assert answer.status_code in (400, 404)


def test_metrics_and_the_errors_own_places_look_like_routes_that_are_not_there(proxy: Proxy) -> None:
    for path in ("/metrics", *re.findall(r"location = (/proxy-error/\S+)", CONFIGURATION.read_text())):
        answer = requests.get(proxy.url + path)
        assert_error(answer, 404, "not_found")
        assert answer.json()["error"] == str(NotFound())


REFUSED = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_request"),
    "no host": (b"GET /info HTTP/1.1\r\n\r\n", 400, "invalid_request"),
    "long URL": (b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 9000), 400, "invalid_request"),
    "long header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 9000), 400, "invalid_request"),
    "no such method": (b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "method_not_allowed"),
    "body for health": (
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", 413, "body_too_large"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_nginx_refuses_itself_has_the_form_of_all_errors(proxy: Proxy, case: str) -> None:
    request, status, code = REFUSED[case]
    (answer,) = exchange(proxy, request)
    assert_error(answer, status, code)


def test_a_service_that_is_down_or_hangs_gives_an_error_of_the_same_form(
    tmp_path: Path, upstream: Origin
) -> None:
    upstream.raw("/info", hang)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refuses, and nobody else can take it
        for port, status in ((closed.getsockname()[1], 502), (upstream.port, 504)):
            (tmp_path / str(status)).mkdir()
            with Proxy(tmp_path / str(status), f"127.0.0.1:{port}", proxy_read_timeout="1s") as proxy:
                answer = requests.get(f"{proxy.url}/info")
            assert_error(answer, status, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0


# Several services


def test_a_post_that_was_sent_is_not_sent_to_another(tmp_path: Path) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with Origin() as one, Origin() as other:
        for origin in (one, other):
            origin.raw("/embed", leave)
        with Proxy(tmp_path, f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}") as proxy:
            for count in range(1, 5):
                answer = requests.post(f"{proxy.url}/embed", json={})
                assert_error(answer, 502, "unavailable")
                assert 1 <= len(one.requests) + len(other.requests) <= count


def test_a_post_that_could_not_be_sent_goes_to_another(tmp_path: Path, upstream: Origin) -> None:
    upstream.serve("/embed", b"{}")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        addresses = (f"127.0.0.1:{closed.getsockname()[1]}", f"127.0.0.1:{upstream.port}")
        with Proxy(tmp_path, *addresses) as proxy:
            for _ in range(4):
                assert requests.post(f"{proxy.url}/embed").status_code == 200


# Slow clients, and many


def test_half_sent_headers_are_closed_while_others_are_served(proxy: Proxy) -> None:
    with proxy.connect() as silent, proxy.connect() as dripping:
        for connection in (silent, dripping):
            connection.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nX: ")
        assert requests.get(f"{proxy.url}/info").status_code == 200
        # A byte well within every deadline between two reads: only one for all of the headers closes this.
        until(lambda: is_closed(dripping, send=b"x"))
        until(lambda: is_closed(silent))


def test_a_slow_body_does_not_reach_the_service_and_one_that_stops_is_closed(
    proxy: Proxy, server: Server
) -> None:
    before = served(server, "/embed")
    with proxy.connect() as connection:
        connection.sendall(POST + b"Content-Length: 99\r\n\r\n")
        for _ in range(5):  # slowly, but with no pause as long as a deadline
            assert not is_closed(connection, send=b" ")
            assert in_progress(server, "/embed") == 0
        assert requests.post(f"{proxy.url}/embed", json={"url": "ftp://x"}).status_code == 422
        until(lambda: is_closed(connection))
    assert served(server, "/embed") == before + 1


def test_one_address_has_so_many_requests_at_a_time_and_others_have_theirs(
    recording: Proxy, upstream: Origin
) -> None:
    hold = Held(with_length(b""))
    upstream.raw("/embed", hold)
    for path in ("/info", "/health"):
        upstream.serve(path, b"{}")
    with ThreadPoolExecutor(4) as clients:
        try:
            held = [clients.submit(requests.get, f"{recording.url}/embed") for _ in range(4)]
            for _ in held:
                assert hold.arrived.acquire(timeout=10)
            refused = requests.get(f"{recording.url}/info")
            health = requests.get(f"{recording.url}/health")
            neighbour = status_from("127.0.0.2", recording, "/info")
        finally:
            hold.release()
        assert [answer.result().status_code for answer in held] == [200] * 4
    assert_error(refused, 429, Overloaded.code)
    assert int(refused.headers["Retry-After"]) > 0
    assert (health.status_code, neighbour) == (200, 200)
    assert requests.get(f"{recording.url}/info").status_code == 200


def status_from(address: str, proxy: Proxy, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, source_address=(address, 0), timeout=30)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


# Requests that two readers could read differently

POST = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SECOND = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
AMBIGUOUS = {
    "length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND,
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}" + SECOND,
    "length with a sign": POST + b"Content-Length: +2\r\n\r\n{}" + SECOND,
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SECOND,
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SECOND,
    "folded header": POST + b"X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}" + SECOND,
    "bare carriage return": POST + b"X: a\rContent-Length: 40\r\nContent-Length: 2\r\n\r\n{}" + SECOND,
    "chunk that is longer": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n" + SECOND,
    "two hosts": b"GET /info HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + SECOND,
}
PASSED = {
    "bare line feeds": POST.replace(b"\r", b"") + b"Content-Length: 2\n\n{}",
    "trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 40\r\n\r\n",
    "a second request as a body": POST + b"Content-Length: %d\r\n\r\n" % len(SECOND) + SECOND,
    "length by underscore": POST + b"Content_Length: 40\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_request_that_could_be_two_is_refused_and_nothing_of_it_served(
    proxy: Proxy, server: Server, case: str
) -> None:
    before = served(server)
    (answer,) = exchange(proxy, AMBIGUOUS[case])
    assert_error(answer, 400, "invalid_request")
    assert served(server) == before


@pytest.mark.parametrize("case", PASSED)
def test_a_request_that_looks_like_two_is_served_as_one(proxy: Proxy, server: Server, case: str) -> None:
    before, info = served(server), served(server, "/info")
    answer, last = exchange(proxy, PASSED[case] + LAST)
    assert_error(answer, 400, "invalid_request")  # the service's: there is no URL in it
    assert last.json() == {"status": "healthy"}
    assert served(server) == before + 2
    assert served(server, "/info") == info


def exchange(proxy: Proxy, sent: bytes) -> list[requests.Response]:
    """Every answer to what is sent on a connection of its own, until nginx closes that."""
    with proxy.connect() as connection:
        data = bytearray()
        with suppress(ConnectionError):  # it may have answered before it read all: the answer counts
            connection.sendall(sent)
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                data += part
        return parsed(bytes(data))


def parsed(data: bytes) -> list[requests.Response]:
    """The answers in `data`, each with a length."""
    answers = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        status_line, *lines = head.decode().split("\r\n")
        answer = requests.Response()
        answer.status_code = int(status_line.split()[1])
        for line in lines:
            name, value = line.split(": ", 1)
            answer.headers[name] = value
        length = int(answer.headers["Content-Length"])
        answer._content, data = data[:length], data[length:]
        answers.append(answer)
    return answers


def is_closed(connection: socket.socket, *, send: bytes = b"") -> bool:
    """Whether the other side has closed it, with or without an answer."""
    try:
        connection.sendall(send)
        connection.setblocking(False)
        return connection.recv(65536) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(30)


def served(server: Server, endpoint: str | None = None) -> int:
    """How many requests the service has answered."""
    of = {"endpoint": endpoint} if endpoint else {}
    return int(server.metric("bentoml_service_request_total", **of))


def in_progress(server: Server, endpoint: str) -> int:
    """How many requests the service is working on."""
    return int(server.metric("bentoml_service_request_in_progress", endpoint=endpoint))
