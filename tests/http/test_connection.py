"""What clients send on one connection: several requests at once, too much, other protocols, no HTTP."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from embedder.http import connection
from embedder.http.connection import MAX_HEAD_BYTES, MAX_WAITING
from tests.answers import Held, with_length
from tests.origin import Origin
from tests.server import Server, until

KEY = "the-key-of-a-client"
CHUNKED = f"POST /embed HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nTransfer-Encoding: chunked\r\n".encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADES = (
    # What curl --http2 and Java's HttpClient send: RFC 7540 section 3.2.
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    # RFC 6455 section 4.1, with the key of its example.
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",  # which is not even a whole handshake
    b"Upgrade: TLS/1.0\r\nConnection: keep-alive, Upgrade\r\n",
)


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory, store: Path, origin: Origin) -> Iterator[Server]:
    """A worker that wants a key and waits long for images."""
    environ = {
        "BENTOML_HOME": str(store),
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
        "EMBEDDER_API_KEYS": KEY,
        "EMBEDDER_FETCH_TIMEOUT_S": "40",
        "EMBEDDER_OPEN_ROUTES": "metrics",
        "EMBEDDER_WORKERS": "1",
    }
    with Server(tmp_path_factory.mktemp("lone") / "log", environ) as server:
        yield server
        assert "Traceback" not in server.log.read_text()
        assert "Exception" not in server.log.read_text()


class HasPort(Protocol):
    port: int


class Client:
    """A connection on which anything can be sent."""

    def __init__(self, server: HasPort) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self._received = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *pieces: bytes) -> None:
        """Each of `pieces` by itself. Whoever does not want them may have closed meanwhile."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                self._socket.sendall(piece)

    def answer(self) -> tuple[int, dict[str, object]]:
        """The next answer's status and JSON."""
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        (length,) = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return int(head.split()[1]), json.loads(body)

    def statuses(self) -> list[int]:
        """Those of all answers until the server closes."""
        statuses = []
        with suppress(EOFError, ConnectionResetError):
            while True:
                statuses.append(self.answer()[0])
        assert not self._received
        return statuses

    def _receive(self) -> None:
        received = self._socket.recv(1 << 16)
        if not received:
            raise EOFError
        self._received += received


def post(body: bytes, *, path: str = "/embed", head: bytes = b"") -> bytes:
    start = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n"
    return start.encode() + head + b"\r\n" + body


def refused_for(answer: tuple[int, dict[str, object]]) -> str:
    """The sentence of a request that can't be read."""
    status, content = answer
    assert (status, content["code"], len(content)) == (400, "invalid_request", 2)
    return str(content["error"])


# Several at once


def test_requests_sent_at_once_are_answered_in_their_order(lone: Server) -> None:
    wrong = [post(body) for body in (b"{", b'{"url": 5}', b'{"url": "ftp://x"}', b'{"url": "data:,x"}')]
    with Client(lone) as client:
        client.send(b"".join([HEALTH, *wrong, HEALTH]))
        assert [client.answer()[0] for _ in range(6)] == [200, 400, 400, 422, 422, 200]
        client.send(HEALTH)
        assert client.answer() == (200, {"status": "healthy"})


def test_as_many_requests_as_may_wait_are_answered_and_no_more(lone: Server) -> None:
    with Client(lone) as client:
        client.send(HEALTH * (1 + MAX_WAITING))
        assert [client.answer()[0] for _ in range(1 + MAX_WAITING)] == [200] * (1 + MAX_WAITING)
        client.send(HEALTH * (3 + MAX_WAITING))
        assert [client.answer()[0] for _ in range(1 + MAX_WAITING)] == [200] * (1 + MAX_WAITING)
        assert refused_for(client.answer()) == "more than 16 requests wait for the answer to another"
        assert client.statuses() == []


def test_requests_that_nobody_reads_the_answers_of_take_no_memory(lone: Server) -> None:
    (worker,) = lone.workers()
    before = lone.resident_bytes()[worker]
    flood = b"GET /x HTTP/1.1\r\n\r\n" * 50_000
    with Client(lone) as client:
        client.send(*[flood] * 20)  # 19 MB
        assert lone.resident_bytes()[worker] - before < 10_000_000


def test_who_leaves_with_requests_behind_the_one_in_work_gives_its_places_back(
    lone: Server, origin: Origin
) -> None:
    held = Held(with_length(b"no image"))
    origin.raw("/of-who-leaves.jpg", held)
    urls = [f"{origin.url('/of-who-leaves.jpg')}?{number}" for number in range(40)]
    body = json.dumps({"urls": urls}).encode()
    with Client(lone) as client:
        client.send(post(body, path="/embed_batch") + HEALTH + post(body, path="/embed_batch"))
        until(lambda: lone.metric("embedder_in_flight_images") == len(urls))
    try:
        until(lambda: lone.metric("embedder_in_flight_images") == 0)
    finally:
        held.release()


# Another protocol


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("in_one", [True, False])
def test_an_offer_of_another_protocol_is_not_taken_and_changes_nothing(
    lone: Server, upgrade: bytes, in_one: bool
) -> None:
    # A body that would be a request by itself, if it were taken for one.
    bodies = [b'{"url": "ftp://x"}', HEALTH, b""]
    with Client(lone) as client:
        for body in bodies:
            request = post(body, head=upgrade)
            cut = len(request) - len(body)
            client.send(*([request] if in_one else [request[:cut], request[cut:]]))
            status, content = client.answer()
            expected = (422, "url_not_allowed") if body.startswith(b"{") else (400, "invalid_request")
            assert (status, content["code"]) == expected
        client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n" + HEALTH)
        assert [client.answer()[0], client.answer()[0]] == [200, 200]


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_a_chunked_body_behind_such_an_offer_is_read(lone: Server, upgrade: bytes) -> None:
    with Client(lone) as client:
        client.send(CHUNKED + upgrade + b'\r\n12\r\n{"url": "ftp://x"}\r\n0\r\n\r\n' + HEALTH)
        assert [client.answer()[0], client.answer()[0]] == [422, 200]


def test_a_websocket_to_nowhere_leaves_no_metric(lone: Server) -> None:
    unheard_of = secrets.token_hex()
    with Client(lone) as client:
        client.send(f"GET /{unheard_of} HTTP/1.1\r\nHost: x\r\n".encode() + UPGRADES[1] + b"\r\n")
        assert client.answer()[1]["code"] == "not_found"
    assert unheard_of not in lone.get("/metrics").text


def test_connect_is_a_method_that_no_route_takes(lone: Server) -> None:
    with Client(lone) as client:
        connect = b"CONNECT /embed HTTP/1.1\r\nHost: x\r\nX-API-Key: %b\r\n\r\n" % KEY.encode()
        client.send(connect + HEALTH + connect)
        assert [client.answer()[0] for _ in range(3)] == [405, 200, 405]
        client.send(HEALTH)
        assert client.answer()[0] == 200
    with Client(lone) as client:
        client.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        assert refused_for(client.answer())


# Too much, and no HTTP


def test_a_length_of_thousands_of_digits_is_refused(lone: Server) -> None:
    for digits in (b"0" * 5000 + b"2", b"0" * 20 + b"2"):
        with Client(lone) as client:
            client.send(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n{}" % digits)
            assert refused_for(client.answer()) == "the Content-Length has over 20 digits"
            assert client.statuses() == []


@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        (b"GET /", b"x"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Name: ", b"x"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-", b"x"),
        (
            CHUNKED + b"\r\n2\r\n{}\r\n0\r\n",
            b"a: b\r\n",
        ),
        (CHUNKED + b"\r\n2;", b"x"),
        (HEALTH + b"GET / HTTP/1.1\r\nHost: x\r\nX-Name: ", b"x"),
    ],
)
def test_a_head_without_end_is_refused(lone: Server, start: bytes, repeated: bytes) -> None:
    (worker,) = lone.workers()
    before = lone.resident_bytes()[worker]
    piece = repeated * (MAX_HEAD_BYTES // 4 // len(repeated))
    with Client(lone) as client:
        client.send(start, *[piece] * 40)  # ten times the limit: what came in one go is not counted exactly
        if start.startswith(HEALTH.partition(b"\r\n")[0]):
            assert client.answer()[0] == 200
        assert refused_for(client.answer()) == f"the request's head has over {MAX_HEAD_BYTES} bytes"
        client.send(*[piece] * 1000)
        assert client.statuses() == []
    assert lone.resident_bytes()[worker] - before < 10_000_000


def test_a_head_just_below_the_limit_is_read(lone: Server) -> None:
    with Client(lone) as client:
        for _ in range(3):
            client.send(HEALTH[:-2], b"X-Name: ", *[b"x" * 1000] * 64, b"\r\n\r\n")
            assert client.answer()[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        HEALTH[:-2] + b"X-Name: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        HEALTH[:-2] + b"".join(b"X-%04d: x\r\n" % number for number in range(10_000)) + b"\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["field", "fields", "target"],
)
@pytest.mark.parametrize("before", [b"", HEALTH, post(b"{}".ljust(MAX_HEAD_BYTES))])
def test_a_head_over_the_limit_is_refused_in_one_piece_too(lone: Server, head: bytes, before: bytes) -> None:
    with Client(lone) as client:
        client.send(before + head)
        if before:
            client.answer()
        assert refused_for(client.answer()) == f"the request's head has over {MAX_HEAD_BYTES} bytes"
        assert client.statuses() == []


def test_a_body_beside_its_head_is_no_part_of_it(lone: Server) -> None:
    with Client(lone) as client:
        for _ in range(3):
            client.send(post(b"{}".ljust(3 * MAX_HEAD_BYTES)))
            assert client.answer()[0] == 400


def test_what_is_behind_a_body_is_no_header(lone: Server) -> None:
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    with Client(lone) as client:
        client.send(head, b"\r\n2\r\n{}\r\n0\r\nX-API-Key: %b\r\n\r\n" % KEY.encode())
        assert client.answer()[0] == 401


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS, to where there is none
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        bytes(range(256)),
    ],
)
def test_what_is_no_http_is_refused_in_our_shape(lone: Server, garbage: bytes) -> None:
    for before in (0, 3):
        with Client(lone) as client:
            client.send(HEALTH * before + garbage)
            assert [client.answer()[0] for _ in range(before)] == [200] * before
            assert refused_for(client.answer()) == "the request is not HTTP"
            assert client.statuses() == []


def test_what_comes_before_no_http_is_answered_first(lone: Server, origin: Origin) -> None:
    held = Held(with_length(b"no image"))
    origin.raw("/before-garbage.jpg", held)
    url = origin.url("/before-garbage.jpg")
    with Client(lone) as client:
        client.send(post(json.dumps({"url": url}).encode()) + HEALTH, b"garbage\r\n\r\n", b"and more")
        assert held.arrived.acquire(timeout=10)
        held.release()
        assert [client.answer()[0] for _ in range(2)] == [422, 200]
        assert refused_for(client.answer())
        assert client.statuses() == []


def test_a_body_that_breaks_after_its_answer_gets_no_other(lone: Server) -> None:
    with Client(lone) as client:
        client.send(CHUNKED.replace(KEY.encode(), b"none") + b"\r\n")
        assert client.answer()[0] == 401
        client.send(b"no length\r\n")
        assert client.statuses() == []


@pytest.mark.parametrize("before", [0, 2])
def test_a_body_that_breaks_off_into_no_http_is_refused(lone: Server, before: int) -> None:
    with Client(lone) as client:
        client.send(HEALTH * before + CHUNKED + b"\r\n", b"2\r\n{}\r\nno length\r\n", b"2\r\n{}\r\n")
        assert [client.answer()[0] for _ in range(before)] == [200] * before
        assert refused_for(client.answer()) == "the request is not HTTP"
        assert client.statuses() == []


# Too late

HEAD_TIMEOUT_S = 0.5
WORK_S = 0.8
KEEP_ALIVE_S = 0.3


class Hasty:
    """uvicorn with these connections, which wait for heads no longer than HEAD_TIMEOUT_S.

    Nor for anything longer than KEEP_ALIVE_S, between requests.
    Its application takes WORK_S for "/work".
    """

    def __init__(self, loop: str) -> None:
        config = uvicorn.Config(
            self._app,
            http=connection.Connection,
            loop=loop,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            port=0,
        )
        config.timeout_keep_alive = KEEP_ALIVE_S  # type: ignore[assignment]  # it takes what timers take
        self._server = uvicorn.Server(config)
        self._socket = config.bind_socket()
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> Hasty:
        self._thread.start()
        until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/work":
            await asyncio.sleep(WORK_S)
        length = (b"content-length", b"2")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def hasty(request: pytest.FixtureRequest) -> Iterator[Hasty]:
    with pytest.MonkeyPatch.context() as patch, Hasty(request.param) as server:
        patch.setattr(connection, "HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)
        yield server


LATE = f"the request's head did not arrive within {HEAD_TIMEOUT_S:g} s"


def test_who_sends_nothing_is_cut_off(hasty: Hasty) -> None:
    begin_s = time.monotonic()
    with Client(hasty) as client:
        assert client.statuses() == []
    assert time.monotonic() - begin_s > HEAD_TIMEOUT_S - 0.1


@pytest.mark.parametrize("before", [0, 1])
def test_a_head_that_drips_is_refused(hasty: Hasty, before: int) -> None:
    with Client(hasty) as client:
        client.send(HEALTH * before)
        for _ in range(before):
            assert client.answer()[0] == 200
        begin_s = time.monotonic()
        for byte in HEALTH[:-4]:
            client.send(bytes([byte]))
            time.sleep(0.05)  # for twice the time in all
        assert refused_for(client.answer()) == LATE
        assert client.statuses() == []
    assert time.monotonic() - begin_s > HEAD_TIMEOUT_S - 0.1


def test_a_line_that_begins_no_request_keeps_no_connection(hasty: Hasty) -> None:
    with Client(hasty) as client:
        client.send(HEALTH)
        assert client.answer()[0] == 200
        client.send(b"\r\n")  # RFC 9112 section 2.2 has servers step over it
        assert client.statuses() == []


def test_half_a_head_behind_a_request_in_work_waits_with_it(hasty: Hasty) -> None:
    work = HEALTH.replace(b"/health", b"/work")
    with Client(hasty) as client:
        client.send(work + work[:30])
        assert client.answer()[0] == 200
        client.send(work[30:])
        assert client.answer()[0] == 200


def test_half_a_head_is_waited_for_from_the_end_of_the_answer_before_it(hasty: Hasty) -> None:
    work = HEALTH.replace(b"/health", b"/work")
    with Client(hasty) as client:
        client.send(work + HEALTH[:30])
        assert client.answer()[0] == 200
        begin_s = time.monotonic()
        assert refused_for(client.answer()) == LATE
        assert time.monotonic() - begin_s > HEAD_TIMEOUT_S - 0.1
        assert client.statuses() == []


def test_a_body_is_waited_for_by_who_reads_it(hasty: Hasty) -> None:
    with Client(hasty) as client:
        client.send(b"POST /work HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        time.sleep(2 * HEAD_TIMEOUT_S)
        client.send(b"{}")
        assert client.answer()[0] == 200
