"""What clients send on one connection: several requests at once, too much, other protocols, no HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import runpy
import secrets
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embedder.http import client as http_client
from embedder.http import uvicorn_private
from embedder.http.client import Client as AnswerTo
from embedder.http.uvicorn_private import MAX_HEAD_BYTES, MAX_WAITING
from tests.answers import Held, with_length
from tests.origin import Origin
from tests.server import KEYS, Server, until

KEY = KEYS[0]
CHUNKED = f"POST /embed HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nTransfer-Encoding: chunked\r\n".encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADES = (
    # What curl --http2 and Java's HttpClient send: RFC 7540 section 3.2.
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    # RFC 6455 section 4.1, with the key of its example.
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",  # not even a whole handshake
    b"Upgrade: TLS/1.0\r\nConnection: keep-alive, Upgrade\r\n",
)


class Client:
    """A connection to 127.0.0.1 on which anything can be sent."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()

    def send(self, *pieces: bytes) -> None:
        """Each of `pieces` by itself. A server that refuses them may have closed meanwhile."""
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                self._socket.sendall(piece)

    def status(self) -> int:
        """The next answer's."""
        return self._answer()[0]

    def refusal(self) -> str:
        """The sentence of a request that can't be read, which is the last answer."""
        status, content = self._answer()
        assert (status, content["code"], len(content)) == (400, "invalid_request", 2)
        assert self.is_closed()
        return str(content["error"])

    def is_closed(self) -> bool:
        """Waits for more; False when something comes."""
        with suppress(ConnectionResetError):
            return self._answers.read(1) == b""
        return True

    def has_answer(self, *, within_s: float) -> bool:
        """Also when the server has closed."""
        return bool(select.select([self._socket], [], [], within_s)[0])

    def _answer(self) -> tuple[int, dict[str, object]]:
        status = int(self._answers.readline().split()[1])
        headers = http.client.parse_headers(self._answers)
        return status, json.loads(self._answers.read(int(headers["Content-Length"])))


def post(body: bytes, *, path: str = "/embed", head: bytes = b"") -> bytes:
    start = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n"
    return start.encode() + head + b"\r\n" + body


URL = b'{"url": "ftp://x"}'
CONNECT = b"CONNECT /embed HTTP/1.1\r\nHost: x\r\nX-API-Key: %b\r\n\r\n" % KEY.encode()
LARGE_HEADS = {
    "field": HEALTH[:-2] + b"X-Name: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "fields": HEALTH[:-2] + b"".join(b"X-%04d: x\r\n" % number for number in range(10_000)) + b"\r\n",
    "target": b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}
ENDLESS_HEADS = {
    "target": (b"GET /", b"x"),
    "fields": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n"),
    "value": (b"GET / HTTP/1.1\r\nHost: x\r\nX-Name: ", b"x"),
    "name": (b"GET / HTTP/1.1\r\nHost: x\r\nX-", b"x"),
    "trailers": (CHUNKED + b"\r\n2\r\n{}\r\n0\r\n", b"a: b\r\n"),
    "chunk extension": (CHUNKED + b"\r\n2;", b"x"),
}
GARBAGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "length and chunks": post(b"{}", head=b"Transfer-Encoding: chunked\r\n"),
    "two lengths": post(b"{}", head=b"Content-Length: 3\r\n"),
    "all bytes": bytes(range(256)),
    "broken chunks": CHUNKED + b"\r\n2\r\n{}\r\nno length\r\n2\r\n{}\r\n",
    "a proxy's CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n\x16\x03",
}
HEAD_TOO_LARGE = f"the request's head has over {MAX_HEAD_BYTES} bytes"


def offering(upgrade: bytes) -> list[bytes]:
    """Requests that offer another protocol; one body would be a request, if it were taken for one."""
    chunks = b"\r\n12\r\n" + URL + b"\r\n0\r\n\r\n"
    get = HEALTH[:-2] + upgrade + b"\r\n"
    return [*(post(body, head=upgrade) for body in (URL, HEALTH, b"")), CHUNKED + upgrade + chunks, get]


ANSWERED: dict[str, tuple[Sequence[bytes], list[int]]] = {
    "in their order": (
        [b"".join([HEALTH, *(post(body) for body in (b"{", b'{"url": 5}', URL)), HEALTH])],
        [200, 400, 400, 422, 200],
    ),
    "as many as may wait": ([HEALTH * (1 + MAX_WAITING)], [200] * (1 + MAX_WAITING)),
    "CONNECT": ([CONNECT + HEALTH + CONNECT], [405, 200, 405]),
    "a head just below the limit": ([HEALTH[:-2], b"X-Name: ", *[b"x" * 1000] * 64, b"\r\n\r\n"], [200]),
    "a large body": ([post(b"{}".ljust(3 * MAX_HEAD_BYTES))], [400]),
    **{
        f"offer {number}, pieces of {size}": (
            [sent[start : start + size] for sent in offering(upgrade) for start in range(0, len(sent), size)],
            [422, 400, 400, 422, 200],
        )
        for number, upgrade in enumerate(UPGRADES)
        for size in (1000, 90)
    },
    **{
        f"offer {number}, in one": ([b"".join(offering(upgrade))], [422, 400, 400, 422, 200])
        for number, upgrade in enumerate(UPGRADES)
    },
}
REFUSED: dict[str, tuple[Sequence[bytes], list[int], str]] = {
    "one more than may wait": (
        [HEALTH * (3 + MAX_WAITING)],
        [200] * (1 + MAX_WAITING),
        "more than 16 requests wait for the answer to another",
    ),
    **{
        f"a length of {len(digits)} digits": (
            [b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n{}" % digits],
            [],
            "the Content-Length has over 20 digits",
        )
        for digits in (b"0" * 5000 + b"2", b"0" * 20 + b"2")
    },
    **{
        # Ten times the limit: what comes in one go is not counted exactly.
        f"a {name} without end behind {len(before)}": (
            [b"".join(before) + start, *[repeated * (MAX_HEAD_BYTES // 4 // len(repeated))] * 40],
            [200] * len(before),
            HEAD_TOO_LARGE,
        )
        for name, (start, repeated) in ENDLESS_HEADS.items()
        for before in ([], [HEALTH])
    },
    **{
        f"a large {name} behind {len(before)} bytes": ([before + head], statuses, HEAD_TOO_LARGE)
        for name, head in LARGE_HEADS.items()
        for before, statuses in ((b"", []), (HEALTH, [200]), (post(b"{}".ljust(MAX_HEAD_BYTES)), [400]))
    },
    **{
        f"{name} behind {before}": ([HEALTH * before + garbage], [200] * before, "the request is not HTTP")
        for name, garbage in GARBAGE.items()
        for before in (0, 3)
    },
}


@pytest.mark.parametrize("case", ANSWERED)
def test_whatever_is_sent_at_once_is_answered_and_the_connection_goes_on(locked: Server, case: str) -> None:
    pieces, statuses = ANSWERED[case]
    with Client(locked.port) as client:
        for _ in range(3):
            client.send(*pieces)
            assert [client.status() for _ in statuses] == statuses


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_read_is_refused_in_our_shape_after_what_came_before_it(
    locked: Server, case: str
) -> None:
    pieces, statuses, sentence = REFUSED[case]
    with Client(locked.port) as client:
        client.send(*pieces)
        assert [client.status() for _ in statuses] == statuses
        assert client.refusal() == sentence


@pytest.mark.parametrize("flood", [b"GET /x HTTP/1.1\r\n\r\n", b"a: b\r\n"], ids=["requests", "fields"])
def test_what_is_sent_without_end_takes_no_memory(locked: Server, flood: bytes) -> None:
    (worker,) = locked.workers()
    before = locked.resident_bytes()[worker]
    with Client(locked.port) as client:
        client.send(b"GET / HTTP/1.1\r\n", *[flood * (1_000_000 // len(flood))] * 20)
        assert locked.resident_bytes()[worker] - before < 10_000_000


def test_a_client_that_leaves_gives_back_the_places_of_its_requests(locked: Server, origin: Origin) -> None:
    held = Held(with_length(b"no image"))
    origin.raw("/of-a-client-that-leaves.jpg", held)
    urls = [f"{origin.url('/of-a-client-that-leaves.jpg')}?{number}" for number in range(40)]
    body = json.dumps({"urls": urls}).encode()
    with Client(locked.port) as client:
        client.send(post(body, path="/embed_batch") + HEALTH + post(body, path="/embed_batch"))
        until(lambda: locked.metric("embedder_in_flight_images") == len(urls))
    try:
        until(lambda: locked.metric("embedder_in_flight_images") == 0)
    finally:
        held.release()


def test_a_websocket_to_nowhere_leaves_no_metric(locked: Server) -> None:
    unheard_of = secrets.token_hex()
    with Client(locked.port) as client:
        client.send(f"GET /{unheard_of} HTTP/1.1\r\nHost: x\r\n".encode() + UPGRADES[1] + b"\r\n")
        assert client.status() == 404
    assert unheard_of not in locked.get("/metrics").text


def test_a_trailer_is_no_header(locked: Server) -> None:
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    with Client(locked.port) as client:
        client.send(head, b"\r\n2\r\n{}\r\n0\r\nX-API-Key: %b\r\n\r\n" % KEY.encode())
        assert client.status() == 401


def test_what_is_in_work_is_answered_before_garbage_is_refused(locked: Server, origin: Origin) -> None:
    held = Held(with_length(b"no image"))
    origin.raw("/before-garbage.jpg", held)
    body = json.dumps({"url": origin.url("/before-garbage.jpg")}).encode()
    with Client(locked.port) as client:
        client.send(post(body) + HEALTH, b"garbage\r\n\r\n", b"and more")
        assert held.arrived.acquire(timeout=60)
        held.release()
        assert [client.status() for _ in range(2)] == [422, 200]
        assert client.refusal() == "the request is not HTTP"


def test_a_body_that_breaks_after_its_answer_gets_no_other(locked: Server) -> None:
    with Client(locked.port) as client:
        client.send(CHUNKED.replace(KEY.encode(), b"none") + b"\r\n")
        assert client.status() == 401
        client.send(b"no length\r\n")
        assert client.is_closed()


# In a server of its own

HEAD_TIMEOUT_S = 1.0
WORK_S = 1.5
KEEP_ALIVE_S = 0.3
LARGE = bytes(64_000_000)  # more than the buffers of both sockets hold
LATE = f"the request's head did not arrive within {HEAD_TIMEOUT_S:g} s"
WORK = HEALTH.replace(b"/health", b"/work")


class Hasty:
    """uvicorn with these connections, which wait HEAD_TIMEOUT_S for heads, and KEEP_ALIVE_S between requests.

    Its application takes WORK_S for "/work", and answers "/large" with LARGE.
    """

    def __init__(self, loop: str) -> None:
        config = uvicorn.Config(
            self._app,
            http=uvicorn_private.Connection,
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
        self.large = threading.Semaphore(0)
        """Released whenever a large answer is over, read or not."""
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
        body = LARGE if scope["path"] == "/large" else b"{}"
        if scope["path"] == "/work":
            await asyncio.sleep(WORK_S)
        client = AnswerTo(scope, receive, send)
        length = (b"content-length", b"%d" % len(body))
        await client.send({"type": "http.response.start", "status": 200, "headers": [length]})
        await client.send({"type": "http.response.body", "body": body})
        if body is LARGE:
            self.large.release()


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def hasty(request: pytest.FixtureRequest) -> Iterator[Hasty]:
    with pytest.MonkeyPatch.context() as patch, Hasty(request.param) as server:
        patch.setattr(uvicorn_private, "HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)
        patch.setattr(http_client, "READ_TIMEOUT_S", HEAD_TIMEOUT_S)
        patch.setattr(http_client, "READ_BYTES_PER_S", 10 * len(LARGE))
        yield server


def test_who_sends_nothing_is_cut_off(hasty: Hasty) -> None:
    with Client(hasty.port) as client:
        assert client.is_closed()


@pytest.mark.parametrize("before", [0, 1])
def test_a_head_that_drips_is_refused(hasty: Hasty, before: int) -> None:
    with Client(hasty.port) as client:
        client.send(HEALTH * before)
        for _ in range(before):
            assert client.status() == 200
        client.send(HEALTH[:-2] + b"X-Name: ")
        while not client.has_answer(within_s=0.05):
            client.send(b"x")
        assert client.refusal() == LATE


def test_a_line_that_begins_no_request_keeps_no_connection(hasty: Hasty) -> None:
    with Client(hasty.port) as client:
        client.send(HEALTH)
        assert client.status() == 200
        client.send(b"\r\n")  # RFC 9112 section 2.2 has servers step over it
        assert client.is_closed()


def test_half_a_head_behind_a_request_in_work_waits_with_it(hasty: Hasty) -> None:
    with Client(hasty.port) as client:
        client.send(WORK + WORK[:30])
        assert client.status() == 200
        client.send(WORK[30:])
        assert client.status() == 200


def test_half_a_head_behind_an_answer_is_not_waited_for_without_end(hasty: Hasty) -> None:
    with Client(hasty.port) as client:
        client.send(WORK + HEALTH[:30])
        assert client.status() == 200
        assert client.refusal() == LATE


def test_a_body_has_no_deadline_here(hasty: Hasty) -> None:
    with Client(hasty.port) as client, Client(hasty.port) as silent:
        client.send(b"POST /work HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        assert silent.is_closed()  # when the time for a head has passed
        client.send(b"{}")
        assert client.status() == 200


def test_a_client_that_does_not_read_its_answer_is_cut_off(hasty: Hasty) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=60) as client:
        client.sendall(HEALTH.replace(b"/health", b"/large"))
        assert hasty.large.acquire(timeout=60)
        received = 0
        with suppress(ConnectionResetError):
            while piece := client.recv(1 << 20):
                received += len(piece)
    assert received < len(LARGE)


@pytest.mark.parametrize("name", ["on_response_complete", "_start_asgi_task"])
def test_another_uvicorn_is_refused_with_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(HttpToolsProtocol, name, lambda self: None)
    with pytest.raises(ImportError, match=r"this uvicorn is not as .*: install requirements\.lock"):
        runpy.run_path(str(uvicorn_private.__file__))
