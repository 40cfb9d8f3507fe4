"""New requests: a few at each turn of the event loop, and none that there is no room for."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import requests
from starlette.types import Message, Receive, Scope, Send

from embedder.errors import Draining, EmbedderError, Overloaded
from embedder.http.admission import SMALL_BODY_BYTES, Admission
from embedder.http.dialects.embed import Embed
from embedder.http.exchange import Exchange
from embedder.metrics.measures import Metrics
from tests.answers import Held, with_length
from tests.conftest import Serving
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import KEYS, Server, assert_error

SITE = "https://shop.example"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, serving: Serving, origin: Origin) -> Iterator[Server]:
    """A service that has place for one image, and has that image. A page of SITE may ask it."""
    configuration = tmp_path_factory.mktemp("full") / "bentoml.yaml"
    configuration.write_text(
        "services: {image_embedder: {http: {cors: {enabled: true, "
        f"access_control_allow_methods: [POST], access_control_allow_origins: ['{SITE}']}}}}}}}}"
    )
    settings = {
        "BENTOML_CONFIG": str(configuration),
        "EMBEDDER_API_KEYS": KEYS[0],
        "EMBEDDER_MAX_IN_FLIGHT_IMAGES": "1",
        "EMBEDDER_MAX_URLS": "1",
        "EMBEDDER_OPEN_ROUTES": "metrics",
    }
    held = Held(with_length(b"no image"))
    origin.raw("/held.jpg", held)
    with serving(**settings) as server, ThreadPoolExecutor(1) as client:
        first = client.submit(post, server, {"url": origin.url("/held.jpg")})
        assert held.arrived.acquire(timeout=60)
        yield server
        assert not first.done()
        held.release()
        assert_error(first.result(), 422, "unsupported_format")
        # And then there is room again.
        assert_error(post(server, {"url": "ftp://x"}), 422, "url_not_allowed")


def post(server: Server, body: object, path: str = "/embed", **headers: str) -> requests.Response:
    return server.post(path, body, headers={"X-API-Key": KEYS[0], **headers})


@pytest.mark.parametrize("path", ["/embed", "/embed_batch"])
def test_a_request_when_all_places_are_taken_is_told_when_to_try_again(
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
    assert_error(full.get("/embed", headers={"X-API-Key": KEYS[0]}), 405, "method_not_allowed")
    assert_error(post(full, {}, **{"Content-Type": "text/plain"}), 415, "unsupported_media_type")


def test_all_else_is_answered(full: Server) -> None:
    for path in ("/health", "/livez", "/readyz", "/metrics", "/info", "/docs.json"):
        assert full.get(path, headers={"X-API-Key": KEYS[0]}).status_code == 200
    preflight = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
    assert requests.options(f"{full.url}/embed", headers=preflight).status_code == 200


def test_what_is_no_preflight_needs_a_key_and_other_sites_are_refused(full: Server) -> None:
    for headers in ({}, {"Origin": SITE}, {"Access-Control-Request-Method": "POST"}):
        assert_error(requests.options(f"{full.url}/embed", headers=headers), 401, "unauthorized")
    foreign = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    refused = requests.options(f"{full.url}/embed", headers=foreign)
    assert refused.status_code == 400
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_a_page_of_another_site_may_read_that_it_is_refused(full: Server) -> None:
    answer = post(full, {}, Origin=SITE)
    assert_error(answer, 429, "overloaded")
    assert answer.headers["Access-Control-Allow-Origin"] == SITE


def test_refusals_are_counted_as_errors(full: Server) -> None:
    before = full.metric("embedder_request_errors_total", code="overloaded")
    for _ in range(3):
        post(full, {})
    assert full.metric("embedder_request_errors_total", code="overloaded") == before + 3


def refusal(server: Server, header: tuple[str, str], *body: bytes) -> Mapping[str, str]:
    """The headers of the refusal of a request with that header and so much of its body."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.putrequest("POST", "/embed")
        connection.putheader(*header)
        connection.putheader("X-API-Key", KEYS[0])
        connection.endheaders()
        for piece in body:
            connection.send(piece)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (429, "overloaded")
        return dict(answer.headers)


@pytest.mark.parametrize("size", [0, 2, SMALL_BODY_BYTES])
def test_a_small_body_is_read_so_that_the_connection_stays(full: Server, size: int) -> None:
    halves = b" " * (size // 2), b" " * (size - size // 2)
    assert "connection" not in refusal(full, ("Content-Length", str(size)), *halves)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (("Content-Length", str(SMALL_BODY_BYTES + 1)), b""),  # large
        (("Transfer-Encoding", "chunked"), b""),  # of any size
        (("Content-Length", "10"), b"{"),  # small, and the rest never comes
    ],
)
def test_a_body_that_does_not_come_is_not_waited_for(
    full: Server, header: tuple[str, str], body: bytes
) -> None:
    assert refusal(full, header, body)["connection"] == "close"


# By itself, on both event loops


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


class Turns:
    """Counts the event loop's while the `with` block runs."""

    now = 0

    def __enter__(self) -> Turns:
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()

    def _count(self) -> None:
        self.now += 1
        self._handle = asyncio.get_running_loop().call_soon(self._count)


async def ask(application: Admission, *, method: str = "POST", leaves: bool = False) -> list[Message]:
    """What is sent for a request with a body of two bytes."""
    sent: list[Message] = []

    async def receive() -> Message:
        if leaves:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-length", b"2")]
    scope: Scope = {"type": "http", "method": method, "path": "/embed", "headers": headers}
    await application(Exchange([Embed()], Metrics()).enter(scope), receive, send)
    return sent


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it gets."""
    await send({"type": "app's", "message": await receive()})


def room() -> None:
    pass


def no_room(error: EmbedderError) -> Callable[[], None]:
    def check_room() -> None:
        raise error

    return check_room


@pytest.mark.anyio
@pytest.mark.parametrize("error", [Overloaded("full"), Draining()])
async def test_what_is_refused_reaches_nothing_behind_it(error: Overloaded | Draining) -> None:
    start, body = await ask(Admission(app, check_room=no_room(error)))
    assert start["status"] == error.status
    assert (b"retry-after", str(error.retry_after_s).encode()) in start["headers"]
    assert json.loads(body["body"]) == {"error": str(error), "code": error.code}
    assert (await ask(Admission(app, check_room=no_room(error)), method="GET"))[0]["type"] == "app's"


@pytest.mark.anyio
async def test_what_there_is_room_for_passes_untouched() -> None:
    body = {"type": "http.request", "body": b"{}", "more_body": False}
    assert await ask(Admission(app, check_room=room)) == [{"type": "app's", "message": body}]


@pytest.mark.anyio
async def test_a_client_that_leaves_in_its_body_is_not_waited_for() -> None:
    start, _ = await ask(Admission(app, check_room=no_room(Draining())), leaves=True)
    assert start["status"] == 503


@pytest.mark.anyio
@pytest.mark.parametrize("check_room", [room, no_room(Overloaded("full"))], ids=["room", "full"])
async def test_a_crowd_gets_in_a_few_at_a_turn_and_in_order(check_room: Callable[[], None]) -> None:
    admission = Admission(app, check_room=check_room, per_turn=4)
    answered: list[tuple[int, int]] = []

    async def client(number: int) -> None:
        await ask(admission)
        answered.append((turns.now, number))

    with Turns() as turns:
        await asyncio.gather(*map(client, range(41)))
    assert [number for _, number in answered] == list(range(41))
    at_a_turn = Counter(turn for turn, _ in answered)
    assert max(at_a_turn.values()) == 4
    assert len(at_a_turn) == 11
    assert max(at_a_turn) - min(at_a_turn) <= 2 * 11  # of every two turns at most one is left out


@pytest.mark.anyio
async def test_a_request_that_is_alone_waits_for_one_turn_and_one_that_is_not_posted_for_none() -> None:
    admission = Admission(app, check_room=room, per_turn=2)
    with Turns() as turns:
        for _ in range(10):
            before = turns.now
            await ask(admission)
            assert turns.now <= before + 1
    crowd = [asyncio.ensure_future(ask(admission)) for _ in range(20)]
    await ask(admission, method="GET")
    assert not any(task.done() for task in crowd)
    await asyncio.gather(*crowd)


@pytest.mark.anyio
async def test_after_a_crowd_nothing_of_it_is_left_in_the_event_loop() -> None:
    admission = Admission(app, check_room=room, per_turn=2)
    await asyncio.gather(*(ask(admission) for _ in range(9)))
    left = weakref.ref(admission)
    del admission
    for _ in range(5):  # the turns in which its places come back
        await asyncio.sleep(0)
    gc.collect()
    assert left() is None


@pytest.mark.anyio
async def test_a_request_that_is_given_up_takes_no_place() -> None:
    admission = Admission(app, check_room=room, per_turn=1)
    tasks = [asyncio.ensure_future(ask(admission)) for _ in range(50)]
    await asyncio.sleep(0)  # the first is in, and the others wait
    for task in tasks[1:-1]:
        task.cancel()
    with Turns() as turns:
        await tasks[-1]
        assert turns.now <= 4
