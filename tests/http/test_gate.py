"""What is answered to those who ask for what is not there, with a wrong method, or without a key."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from starlette.types import Message, Receive, Scope, Send

from embedder.http.api_keys import APIKeys
from embedder.http.gate import LINGER_BYTES, LINGER_S, ROUTES, Door
from tests.server import Server, assert_error

OLD, NEW = "the-key-until-tomorrow", "the-key-from-today-on"
HEALTH = ("/health", "/livez", "/readyz", "/healthz")
# What socket buffers on both sides may take of a body that nobody reads.
BUFFERED_BYTES = 16_000_000
DOCS = ("/", "/docs", "/docs.json", "/schema.json", "/static_content/swagger-ui.css")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Server]:
    """A service with two keys, of which one is about to be withdrawn; its metrics are open."""
    environ = {
        "BENTOML_HOME": str(store),
        "EMBEDDER_API_KEYS": f"{OLD},{NEW}",
        "EMBEDDER_OPEN_ROUTES": "metrics",
        "EMBEDDER_WORKERS": "1",
    }
    with Server(tmp_path_factory.mktemp("keyed") / "log", environ) as keyed:
        yield keyed


# Routes


@pytest.mark.parametrize("path", ["/nothing", "/embed/x", "/Embed", "//", "//embed", "/static", "/../etc"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_route_is_404_in_our_shape(server: Server, method: str, path: str) -> None:
    assert_error(requests.request(method, server.url + path), 404, "not_found")


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE")


@pytest.mark.parametrize(
    ("method", "path"), [(m, path) for path, taken in ROUTES.items() for m in METHODS if m not in taken]
)
def test_each_route_names_the_methods_that_it_takes(server: Server, method: str, path: str) -> None:
    answer = requests.request(method, server.url + path)
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == ", ".join(ROUTES[path])


@pytest.mark.parametrize("path", [path for path, methods in ROUTES.items() if "GET" in methods])
def test_every_route_to_get_is_there(server: Server, path: str) -> None:
    assert server.get(path).status_code == 200


@pytest.mark.parametrize("path", [path for path in ROUTES if path != "/"])
def test_a_route_with_a_slash_behind_it_is_that_route(server: Server, path: str) -> None:
    # Not a redirect: it would name a host and a scheme that only a proxy in front can know.
    headers = {"Host": "elsewhere.example", "X-Forwarded-Proto": "https"}
    method, body = ("POST", {"url": "ftp://x", "urls": []}) if "POST" in ROUTES[path] else ("GET", None)
    answers = [
        requests.request(method, server.url + path + slash, json=body, headers=headers, allow_redirects=False)
        for slash in ("", "/")
    ]
    assert answers[0].status_code == answers[1].status_code != 307
    assert answers[0].headers["Content-Type"] == answers[1].headers["Content-Type"]
    assert path == "/metrics" or answers[0].content == answers[1].content


def test_a_slash_behind_a_route_opens_nothing(keyed: Server) -> None:
    for path in ("/embed/", "/embed_batch/"):
        assert_error(requests.post(keyed.url + path, json={"url": "ftp://x"}), 401, "unauthorized")
    assert_error(requests.get(f"{keyed.url}/info/"), 401, "unauthorized")
    assert_error(requests.get(f"{keyed.url}/embed/", headers={"X-API-Key": NEW}), 405, "method_not_allowed")


def test_paths_that_are_not_there_leave_no_metrics(server: Server) -> None:
    for number in range(50):
        requests.get(f"{server.url}/random-{number}")
        requests.get(f"{server.url}/static_content/random-{number}")
        for path in ("/health", "/livez", "/embed", "/", "/static_content/swagger-ui.css"):
            for slash in ("/", "%2f"):
                answer = requests.get(server.url + path + slash * (number + 2))
                assert_error(answer, 404, "not_found")
    endpoints = {
        sample.labels["endpoint"]
        for name in ("bentoml_service_request_total", "bentoml_service_request_in_progress")
        for sample in server.samples(name)
    }
    assert endpoints <= ROUTES.keys()


def test_a_body_that_would_be_unpickled_is_refused_in_our_shape(server: Server) -> None:
    answer = requests.post(
        f"{server.url}/embed", data=b"\x80", headers={"Content-Type": "application/vnd.bentoml+pickle"}
    )
    assert_error(answer, 415, "unsupported_media_type")
    assert "Traceback" not in server.log.read_text()


# Keys


@pytest.mark.parametrize("key", [OLD, NEW])
@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_each_key_opens_every_route(keyed: Server, key: str, header: str) -> None:
    headers = {header: f"Bearer {key}" if header == "Authorization" else key}
    answer = requests.post(f"{keyed.url}/embed", json={"url": "ftp://x"}, headers=headers)
    assert_error(answer, 422, "url_not_allowed")
    for path in (*HEALTH, *DOCS, "/info", "/metrics"):
        assert requests.get(keyed.url + path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "the-key-of-yesterday"}, {"Authorization": f"Basic {OLD}"}]
)
def test_without_one_of_the_keys_nothing_but_health_and_what_was_opened_is_answered(
    keyed: Server, headers: dict[str, str]
) -> None:
    for path in (*HEALTH, "/metrics"):
        assert requests.get(keyed.url + path, headers=headers).status_code == 200
    for path in (*DOCS, "/info"):
        answer = requests.get(keyed.url + path, headers=headers)
        assert_error(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/embed", "/embed_batch"):
        assert_error(
            requests.post(keyed.url + path, json={"url": "ftp://x"}, headers=headers), 401, "unauthorized"
        )


def test_a_body_without_a_key_is_not_read(keyed: Server) -> None:
    answer = requests.post(f"{keyed.url}/embed", data=b"x" * 40_000_000)
    assert_error(answer, 401, "unauthorized")
    connection = http.client.HTTPConnection("127.0.0.1", keyed.port, timeout=10)
    connection.putrequest("POST", "/embed")
    connection.putheader("Content-Length", "40000000")
    connection.endheaders()  # and no body
    assert connection.getresponse().status == 401
    connection.close()


def test_the_document_of_a_keyed_service_says_how_to_send_one(keyed: Server, server: Server) -> None:
    document = requests.get(f"{keyed.url}/docs.json", headers={"X-API-Key": NEW}).json()
    assert document["security"] == [{"bearer": []}, {"key": []}]
    assert document["components"]["securitySchemes"].keys() == {"bearer", "key"}
    assert "security" not in server.get("/docs.json").json()


def test_keys_are_in_no_log_and_no_answer(keyed: Server) -> None:
    info = requests.get(f"{keyed.url}/info", headers={"X-API-Key": NEW}).text
    for text in (keyed.log.read_text(), info, keyed.get("/metrics").text):
        assert not re.search(f"{OLD}|{NEW}", text)


# Bodies that are not read


def test_who_sends_on_after_a_refusal_is_cut_off_and_has_the_answer(keyed: Server) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=30) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 400000000\r\n\r\n")
        answer = connection.recv(65536)
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(400):
                connection.sendall(bytes(1_000_000))
                sent += 1_000_000
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer
    assert sent < LINGER_BYTES + BUFFERED_BYTES


def test_who_goes_on_dripping_after_a_refusal_is_cut_off(keyed: Server) -> None:
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=0.1) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        answer = bytearray()
        deadline = time.monotonic() + LINGER_S + 10
        while True:
            assert time.monotonic() < deadline
            try:
                connection.sendall(b"x")
                chunk = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not chunk:
                break
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_what_still_comes_after_a_refusal_is_taken_before_the_connection_is_closed() -> None:
    events: list[str] = []
    scope: Scope = {
        "type": "http",
        "path": "/nothing",
        "method": "POST",
        "headers": [(b"transfer-encoding", b"chunked")],
    }

    async def receive() -> Message:
        events.append("receive")
        return {"type": "http.request", "body": b"x", "more_body": events.count("receive") < 3}

    async def send(message: Message) -> None:
        events.append(f"send {message['type'].rpartition('.')[2]}, more: {message.get('more_body', False)}")

    door = Door(answering(200, b""), keys=APIKeys([]), timeout_s=60)  # type: ignore[arg-type]
    asyncio.run(door(scope, receive, send))
    answer = ["send start, more: False", "send body, more: True"]
    assert events == [*answer, "receive", "receive", "receive", "send body, more: False"]


@pytest.mark.parametrize("body", [b"{", b'{"url": 5}', b'{"url": "ftp://x"}'])
def test_an_error_about_a_body_that_was_read_keeps_the_connection(server: Server, body: bytes) -> None:
    answer = requests.post(f"{server.url}/embed", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code >= 400
    assert "Connection" not in answer.headers


def test_a_request_without_a_body_keeps_the_connection(keyed: Server) -> None:
    assert "Connection" not in requests.get(f"{keyed.url}/info").headers
    assert "Connection" not in requests.post(f"{keyed.url}/embed").headers  # Content-Length: 0


# What the application behind it does


async def passed(
    app: object, path: str = "/embed", *, timeout_s: float = 60, leaves: bool = False
) -> list[Message]:
    """What a client gets of `app` behind the door. One that `leaves` does so once its body is read."""
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
    if leaves:
        messages.append({"type": "http.disconnect"})
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    scope: Scope = {
        "type": "http",
        "path": path,
        "method": ROUTES[path][0],
        "headers": [],
    }
    door = Door(app, keys=APIKeys([]), timeout_s=timeout_s)  # type: ignore[arg-type]  # an ASGI application
    await door(scope, receive, send)
    return sent


def answering(status: int, body: bytes) -> object:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})

    return app


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (500, 500, "internal_error"),
        (504, 429, "overloaded"),
        (503, 429, "overloaded"),
        (400, 400, "invalid_request"),
    ],
)
def test_an_error_that_bentoml_shaped_gets_our_shape(status: int, told: int, code: str) -> None:
    start, body = asyncio.run(passed(answering(status, b'[{"error": "theirs"}]')))
    assert start["status"] == told
    assert f'"code":"{code}"'.encode() in body["body"]


def test_an_error_of_ours_and_any_success_pass_unchanged() -> None:
    ours = b'{"error": "sentence", "code": "bad_image"}'
    start, body = asyncio.run(passed(answering(422, ours)))
    assert (start["status"], body["body"]) == (422, ours)
    assert [m.get("body") for m in asyncio.run(passed(answering(200, b"123456")))] == [None, b"123", b"456"]


def test_what_health_says_is_not_reshaped(server: Server) -> None:
    start, *_ = asyncio.run(passed(answering(503, b"not ready"), path="/readyz"))
    assert start["status"] == 503


def test_a_part_of_a_page_that_is_not_there_is_refused_in_our_shape(server: Server) -> None:
    for part in ("bytes=99999999-", "bytes=abc", "lines=1-2"):
        answer = requests.get(f"{server.url}/static_content/swagger-ui.css", headers={"Range": part})
        assert_error(answer, 400, "invalid_request")


def test_an_application_that_fails_is_answered_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("a bug")

    start, body = asyncio.run(passed(app))
    assert start["status"] == 500
    assert b'"code":"internal_error"' in body["body"]
    assert b"a bug" not in body["body"]


class Endless:
    """An application that reads the body and is then never done, before or after it has begun to answer."""

    def __init__(self, *, begins: bool = False) -> None:
        self.ended = False
        self._begins = begins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if self._begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


def test_a_request_that_takes_too_long_is_ended_and_answered() -> None:
    app = Endless()
    start, body = asyncio.run(passed(app, timeout_s=0.05))
    assert app.ended
    assert start["status"] == 429
    assert (b"retry-after", b"1") in start["headers"]
    assert b"the request was not finished within 0.05 s" in body["body"]


def test_a_request_whose_client_leaves_is_ended_without_a_word() -> None:
    app = Endless()
    assert asyncio.run(passed(app, leaves=True)) == []
    assert app.ended


@pytest.mark.parametrize("leaves", [False, True])
def test_an_answer_that_has_begun_is_not_cut_short(leaves: bool) -> None:
    async def run() -> None:
        app = Endless(begins=True)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(passed(app, timeout_s=0.05, leaves=leaves), 0.5)

    asyncio.run(run())


def test_whoever_ends_a_request_from_outside_is_not_answered_for() -> None:
    async def run() -> None:
        task = asyncio.ensure_future(passed(Endless()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
