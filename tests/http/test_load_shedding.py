"""What is answered while nothing more can be taken in: at once, counted, and on connections that stay."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from starlette.types import Message, Receive, Scope, Send

from embedder.errors import Draining, Overloaded
from embedder.http.load_shedding import SMALL_BODY_BYTES, SMALL_BODY_TIMEOUT_S, LoadShedding
from tests.answers import Held, with_length
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import ROOT, Server, assert_error, plain_environ

KEY = "the-key-of-a-client"
SITE = "https://shop.example"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, store: Path, origin: Origin) -> Iterator[Server]:
    """A service that takes one image, which it has, and that a page of SITE may ask."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "bentoml.yaml").write_text(
        "services: {image_embedder: {http: {cors: {enabled: true, "
        f"access_control_allow_methods: [POST], access_control_allow_origins: ['{SITE}']}}}}}}}}"
    )
    environ = {
        "BENTOML_HOME": str(store),
        "BENTOML_CONFIG": str(folder / "bentoml.yaml"),
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
        "EMBEDDER_API_KEYS": KEY,
        "EMBEDDER_FETCH_TIMEOUT_S": "40",
        "EMBEDDER_MAX_IN_FLIGHT_IMAGES": "1",
        "EMBEDDER_MAX_URLS": "1",
        "EMBEDDER_OPEN_ROUTES": "metrics",
        "EMBEDDER_WORKERS": "1",
    }
    held = Held(with_length(b"no image"))
    origin.raw("/held.jpg", held)
    with Server(folder / "log", environ) as server, ThreadPoolExecutor(1) as client:
        first = client.submit(post, server, {"url": origin.url("/held.jpg")})
        assert held.arrived.acquire(timeout=10)
        yield server
        assert not first.done()
        held.release()
        assert_error(first.result(), 422, "unsupported_format")
        # And then there is room again.
        assert_error(post(server, {"url": "ftp://x"}), 422, "url_not_allowed")


def post(server: Server, body: object, path: str = "/embed", **headers: str) -> requests.Response:
    return server.post(path, body, headers={"X-API-Key": KEY, **headers})


@pytest.mark.parametrize("path", ["/embed", "/embed_batch"])
def test_who_comes_when_all_places_are_taken_is_told_when_to_come_back(
    full: Server, path: str, photo: bytes
) -> None:
    url = data_url(photo)
    bodies: list[dict[str, object]] = [{"url": url}, {"urls": [url]}, {"urls": []}, {}]
    for body in bodies:
        answer = post(full, body, path)
        assert_error(answer, 429, "overloaded")
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["error"] == "1 images are in work and the limit is 1: no room for 1 more now"


def test_what_is_wrong_with_a_request_itself_is_still_told(full: Server) -> None:
    assert_error(full.post("/embed", {}), 401, "unauthorized")
    assert_error(post(full, {}, "/embed/x"), 404, "not_found")
    assert_error(requests.get(f"{full.url}/embed", headers={"X-API-Key": KEY}), 405, "method_not_allowed")
    assert_error(post(full, {}, **{"Content-Type": "text/plain"}), 415, "unsupported_media_type")


def test_all_else_is_answered(full: Server) -> None:
    for path in ("/health", "/livez", "/readyz", "/metrics", "/info", "/docs.json"):
        assert requests.get(full.url + path, headers={"X-API-Key": KEY}).status_code == 200
    preflight = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
    assert requests.options(f"{full.url}/embed", headers=preflight).status_code == 200


def test_what_is_no_preflight_needs_a_key_and_one_that_is_refused_has_our_shape(full: Server) -> None:
    for headers in ({}, {"Origin": SITE}, {"Access-Control-Request-Method": "POST"}):
        assert_error(requests.options(f"{full.url}/embed", headers=headers), 401, "unauthorized")
    foreign = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    assert_error(requests.options(f"{full.url}/embed", headers=foreign), 400, "invalid_request")


def test_a_page_of_another_site_may_read_that_it_is_refused(full: Server) -> None:
    answer = post(full, {}, Origin=SITE)
    assert_error(answer, 429, "overloaded")
    assert answer.headers["Access-Control-Allow-Origin"] == SITE


def test_refusals_are_counted_as_requests_and_as_errors(full: Server) -> None:
    def counts() -> tuple[float, float, float]:
        by_bentoml = {"endpoint": "/embed", "http_response_code": "429"}
        return (
            full.metric("bentoml_service_request_total", **by_bentoml),
            full.metric("bentoml_service_request_duration_seconds_count", **by_bentoml),
            full.metric("embedder_request_errors_total", code="overloaded"),
        )

    post(full, {})
    before = counts()
    for _ in range(3):
        post(full, {})
    assert counts() == tuple(count + 3 for count in before)


def test_a_small_body_is_read_so_that_the_connection_stays(full: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", full.port, timeout=10)
    for size in (0, 2, SMALL_BODY_BYTES):
        connection.putrequest("POST", "/embed")
        connection.putheader("Content-Length", str(size))
        connection.putheader("X-API-Key", KEY)
        connection.endheaders(b" " * (size // 2))
        connection.send(b" " * (size - size // 2))
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Connection"]) == (429, None)
        assert json.loads(answer.read())["code"] == "overloaded"
    connection.close()


@pytest.mark.parametrize(
    "header", [("Content-Length", str(SMALL_BODY_BYTES + 1)), ("Transfer-Encoding", "chunked")]
)
def test_a_body_that_is_large_or_may_be_is_not_waited_for(full: Server, header: tuple[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", full.port, timeout=10)
    connection.putrequest("POST", "/embed")
    connection.putheader(*header)
    connection.putheader("X-API-Key", KEY)
    connection.endheaders()  # and no body
    begin_s = time.monotonic()
    answer = connection.getresponse()
    assert time.monotonic() - begin_s < SMALL_BODY_TIMEOUT_S
    assert (answer.status, answer.headers["Connection"]) == (429, "close")
    connection.close()


def test_a_small_body_that_does_not_come_is_not_waited_for_long(full: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", full.port, timeout=10)
    connection.putrequest("POST", "/embed")
    connection.putheader("Content-Length", "10")
    connection.putheader("X-API-Key", KEY)
    connection.endheaders(b"{")
    begin_s = time.monotonic()
    answer = connection.getresponse()
    assert SMALL_BODY_TIMEOUT_S - 0.1 < time.monotonic() - begin_s < SMALL_BODY_TIMEOUT_S + 2
    assert (answer.status, answer.headers["Connection"]) == (429, "close")
    connection.close()


# By itself


@pytest.mark.parametrize("error", [Overloaded("full"), Draining()])
def test_what_is_refused_reaches_nothing_behind_it(error: Overloaded | Draining) -> None:
    def check_room() -> None:
        raise error

    sent, passed_on = run("POST", LoadShedding(app, check_room=check_room))
    assert not passed_on
    assert sent[0]["status"] == error.status
    assert json.loads(sent[1]["body"]) == {"error": str(error), "code": error.code}
    assert run("GET", LoadShedding(app, check_room=check_room))[1]


def test_what_there_is_room_for_passes_untouched() -> None:
    sent, passed_on = run("POST", LoadShedding(app, check_room=lambda: None))
    assert passed_on == [{"type": "http.request", "body": b"{}", "more_body": False}]
    assert sent == [{"type": "app's"}]


def test_a_client_that_leaves_in_its_body_is_not_waited_for() -> None:
    def check_room() -> None:
        raise Draining

    sent, _ = run("POST", LoadShedding(app, check_room=check_room), {"type": "http.disconnect"})
    assert sent[0]["status"] == 503


def run(method: str, application: LoadShedding, *messages: Message) -> tuple[list[Message], list[Message]]:
    """What is sent for a request, and what `app` has read of its body."""
    sent: list[Message] = []
    left = list(messages or [{"type": "http.request", "body": b"{}", "more_body": False}])
    passed_on: list[Message] = []

    async def receive() -> Message:
        return left.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": method,
        "path": "/embed",
        "headers": [(b"content-length", b"2")],
        "passed_on": passed_on,
    }
    asyncio.run(application(scope, receive, send))
    return sent, passed_on


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    scope["passed_on"].append(await receive())
    await send({"type": "app's"})


# While a process leaves

STOPPING = """
import service
from starlette.testclient import TestClient

client = TestClient(service.ImageEmbedder.to_asgi())
for stopping in (False, True):
    service.drain.stopping = stopping
    service.intake.in_flight_images = service.settings.max_in_flight_images
    answer = client.post("/embed", json={"url": "ftp://x"})
    print(answer.status_code, answer.json()["code"], answer.headers["Retry-After"])
"""


def test_a_process_that_stops_sends_clients_to_another_one(store: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPING],
        cwd=ROOT,
        env={**plain_environ(), "BENTOML_HOME": str(store)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["429 overloaded 1", "503 draining 2"]
