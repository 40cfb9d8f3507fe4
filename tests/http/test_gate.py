"""What is answered to requests for what is not there, with a wrong method, or without a key."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
from contextlib import suppress

import pytest
import requests
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedder.http.api_keys import APIKeys
from embedder.http.client import LINGER_BYTES
from embedder.http.dialects.embed import Embed
from embedder.http.dialects.embed_batch import EmbedBatch
from embedder.http.gate import ALWAYS_OPEN, Gate, Routes
from embedder.http.pages import docs, playground
from embedder.metrics.measures import Metrics
from tests.server import KEYS, Server, assert_error, until

ROUTES = Routes([Embed(), EmbedBatch(64)], docs.paths(), (), playground.paths())
METHODS = ROUTES.methods()
PARTS = (*ROUTES.docs, *ROUTES.open_pages)
PAGES = [path for path, methods in METHODS.items() if "GET" in methods and path not in PARTS]
WITHOUT_CONTENT = ("/.well-known/live", "/.well-known/ready")
OPEN = (*ALWAYS_OPEN, "/metrics", *ROUTES.open_pages)  # of the locked service
LOCKED = [path for path in (*PAGES, *ROUTES.docs) if path not in OPEN]
KEY = {"X-API-Key": KEYS[1]}
# What socket buffers on both sides may take of a body that nobody reads.
BUFFERED_BYTES = 16_000_000


# Routes


@pytest.mark.parametrize("path", ["/nothing", "/embed/x", "/Embed", "//", "//embed", "/static", "/../etc"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_route_is_404_in_our_shape(server: Server, method: str, path: str) -> None:
    assert_error(requests.request(method, server.url + path), 404, "not_found")


@pytest.mark.parametrize("path", [*PAGES, *ROUTES.docs, "/embed", "/embed_batch"])
def test_each_route_names_the_methods_that_it_takes(server: Server, path: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"):
        if method not in METHODS[path]:
            answer = requests.request(method, server.url + path)
            assert_error(answer, 405, "method_not_allowed")
            assert answer.headers["Allow"] == ", ".join(METHODS[path])


@pytest.mark.parametrize("path", [*PAGES, *PARTS])
def test_every_page_and_every_part_of_it_is_there(server: Server, path: str) -> None:
    assert server.get(path).status_code == (204 if path in WITHOUT_CONTENT else 200)


@pytest.mark.parametrize("path", [*PAGES, "/embed", "/embed_batch"])
def test_a_route_with_a_slash_behind_it_is_that_route(server: Server, path: str) -> None:
    # Not a redirect: it would name a host and a scheme that only a proxy in front can know.
    headers = {"Host": "elsewhere.example", "X-Forwarded-Proto": "https"}
    method, body = ("POST", {"url": "ftp://x", "urls": []}) if "POST" in METHODS[path] else ("GET", None)
    answers = [
        requests.request(method, server.url + path + slash, json=body, headers=headers, allow_redirects=False)
        for slash in ("", "/")
    ]
    assert answers[0].status_code == answers[1].status_code != 307
    assert answers[0].headers.get("Content-Type") == answers[1].headers.get("Content-Type")
    assert path == "/metrics" or answers[0].content == answers[1].content


def test_paths_that_are_not_there_leave_no_metrics(server: Server) -> None:
    for number in range(20):
        for path in (f"/random-{number}", f"/static_content/random-{number}"):
            assert_error(server.get(path), 404, "not_found")
        for path in ("/health", "/embed", "/", "/static_content/swagger-ui.css"):
            for slash in ("/", "%2f"):
                assert_error(server.get(path + slash * (number + 2)), 404, "not_found")
    endpoints = {
        sample.labels["endpoint"]
        for name in ("bentoml_service_request_total", "bentoml_service_request_in_progress")
        for sample in server.samples(name)
    }
    others = {"/v1/embeddings", "/vectors", "/vectorize"}
    models = {path for path in endpoints if path.startswith(("/v1/models", "/models"))}
    assert endpoints <= METHODS.keys() | others | models
    assert len(models) <= 6


# Keys


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_each_key_opens_every_route(locked: Server, key: str, header: str) -> None:
    headers = {header: f"Bearer {key}" if header == "Authorization" else key}
    assert_error(locked.post("/embed", {"url": "ftp://x"}, headers=headers), 422, "url_not_allowed")
    for path in (*OPEN, *LOCKED):
        assert locked.get(path, headers=headers).ok


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "the-key-of-yesterday"}, {"Authorization": f"Basic {KEYS[0]}"}]
)
def test_without_one_of_the_keys_nothing_but_health_and_what_was_opened_is_answered(
    locked: Server, headers: dict[str, str]
) -> None:
    for path in OPEN:
        assert locked.get(path, headers=headers).ok
    for path in (*LOCKED, "/info/"):
        answer = locked.get(path, headers=headers)
        assert_error(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/embed", "/embed_batch", "/embed/"):
        assert_error(locked.post(path, {"url": "ftp://x"}, headers=headers), 401, "unauthorized")


def test_a_body_without_a_key_is_not_read(locked: Server) -> None:
    answer = requests.post(f"{locked.url}/embed", data=b"x" * 40_000_000)
    assert_error(answer, 401, "unauthorized")
    connection = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=60)
    connection.putrequest("POST", "/embed")
    connection.putheader("Content-Length", "40000000")
    connection.endheaders()  # and no body
    assert connection.getresponse().status == 401
    connection.close()


def test_the_document_of_a_locked_service_says_how_to_send_a_key(locked: Server, server: Server) -> None:
    document = locked.get("/docs.json", headers=KEY).json()
    assert document["security"] == [{"bearer": []}, {"key": []}]
    assert document["components"]["securitySchemes"].keys() == {"bearer", "key"}
    assert "security" not in server.get("/docs.json").json()


def test_keys_are_in_no_log_and_no_answer(locked: Server) -> None:
    info = locked.get("/info", headers=KEY).text
    for text in (locked.log.read_text(), info, locked.get("/metrics").text):
        assert not re.search("|".join(KEYS), text)


# Bodies that are not read


def test_a_client_that_sends_on_after_a_refusal_is_cut_off_and_has_the_answer(locked: Server) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", locked.port), timeout=60) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 400000000\r\n\r\n")
        answer = connection.recv(65536)
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(400):
                connection.sendall(bytes(1_000_000))
                sent += 1_000_000
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer
    assert sent < LINGER_BYTES + BUFFERED_BYTES


def test_a_client_that_goes_on_dripping_after_a_refusal_is_cut_off(locked: Server) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), timeout=0.1) as connection:

        def is_cut_off() -> bool:
            try:
                connection.sendall(b"x")
                return connection.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        until(is_cut_off)


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

    asyncio.run(gate(answering(200, b""))(scope, receive, send))
    answer = ["send start, more: False", "send body, more: True"]
    assert events == [*answer, "receive", "receive", "receive", "send body, more: False"]


def test_a_body_that_was_read_or_is_not_there_keeps_the_connection(server: Server, locked: Server) -> None:
    for body in ({}, {"url": 5}, {"url": "ftp://x"}):
        assert "Connection" not in server.post("/embed", body).headers
    assert "Connection" not in locked.get("/info").headers
    assert "Connection" not in requests.post(f"{locked.url}/embed").headers  # Content-Length: 0


# What the application behind it does


def gate(app: ASGIApp, *, timeout_s: float = 60) -> Gate:
    return Gate(app, ROUTES, keys=APIKeys([]), metrics=Metrics(), timeout_s=timeout_s)


async def passed(
    app: ASGIApp, path: str = "/embed", *, timeout_s: float = 60, leaves: bool = False
) -> list[Message]:
    """What a client gets of `app` behind the gate. One that `leaves` does so once its body is read."""
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

    scope: Scope = {"type": "http", "path": path, "method": METHODS.get(path, ["OPTIONS"])[0], "headers": []}
    await gate(app, timeout_s=timeout_s)(scope, receive, send)
    return sent


def answering(status: int, body: bytes) -> ASGIApp:
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
        (429, 429, "overloaded"),
        (400, 400, "invalid_request"),
    ],
)
def test_an_error_that_bentoml_shaped_gets_our_shape(status: int, told: int, code: str) -> None:
    start, body = asyncio.run(passed(answering(status, b'[{"error": "theirs"}]')))
    assert start["status"] == told
    assert f'"code":"{code}"'.encode() in body["body"]
    assert (told == 429) is ((b"retry-after", b"1") in start["headers"])


def test_success_passes_unchanged_and_so_does_what_health_says() -> None:
    sent = asyncio.run(passed(answering(200, b"123456")))
    assert [message.get("body") for message in sent] == [None, b"123", b"456"]
    start, *_ = asyncio.run(passed(answering(503, b"not ready"), path="/readyz"))
    assert start["status"] == 503


def test_a_request_for_the_server_itself_is_404() -> None:
    start, body = asyncio.run(passed(answering(200, b""), path="*"))  # `OPTIONS *`, which has no path
    assert start["status"] == 404
    assert b'"code":"not_found"' in body["body"]


def test_a_part_of_a_page_that_is_not_there_is_refused_in_our_shape(server: Server) -> None:
    for part in ("bytes=99999999-", "bytes=abc", "lines=1-2"):
        answer = server.get("/static_content/swagger-ui.css", headers={"Range": part})
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
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await passed(Endless(begins=True), timeout_s=0.05, leaves=leaves)

    asyncio.run(run())


def test_whoever_ends_a_request_from_outside_is_not_answered_for() -> None:
    async def run() -> None:
        task = asyncio.ensure_future(passed(Endless()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
