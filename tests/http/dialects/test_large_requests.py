"""Requests of more images than are in work at once: others are served beside them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from embedder.engine import SHARED_WINDOW
from tests.answers import Held, with_length
from tests.conftest import Serving
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import Server, until
from tests.traffic import post

COUNT = 200


@pytest.fixture(scope="module")
def one(serving: Serving) -> Iterator[Server]:
    """One worker with 64 places, which waits long for images, and keeps no embeddings."""
    with serving(EMBEDDER_CACHE_ENTRIES="0", EMBEDDER_MAX_IN_FLIGHT_IMAGES="64") as server:
        yield server
        assert "Traceback" not in server.log.read_text()


@pytest.fixture
def held(origin: Origin, photo: bytes) -> Iterator[Held]:
    """Holds every answer below /held until it is released."""
    answer = Held(with_length(photo))
    for number in range(COUNT):
        origin.raw(f"/held/{number}.jpg", answer)
    yield answer
    answer.release()


def body(origin: Origin, query: str = "") -> dict[str, Any]:  # Any: JSON
    urls = [origin.url(f"/held/{number}.jpg?{query}") for number in range(COUNT)]
    return {"input": urls, "encoding_format": "base64"}


def asked_for(origin: Origin) -> int:
    return sum(request.path.startswith("/held/") for request in origin.requests)


def test_it_holds_a_few_places_and_others_are_served_beside_it(
    one: Server, origin: Origin, held: Held, photo: bytes
) -> None:
    before = asked_for(origin)
    with ThreadPoolExecutor(2) as clients:
        large = [clients.submit(one.post, "/v1/embeddings", body(origin, each)) for each in ("a", "b")]
        # Both together leave half of the places, and the bytes of both answers are counted.
        until(lambda: one.metric("embedder_in_flight_images") == SHARED_WINDOW)
        until(lambda: one.metric("embedder_in_flight_bytes") >= 2 * COUNT * 512 * 4)
        assert one.post("/embed", {"url": data_url(photo)}).status_code == 200
        assert asked_for(origin) - before == SHARED_WINDOW
        held.release()
        answers = [each.result() for each in large]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [len(answer.json()["data"]) for answer in answers] == [COUNT, COUNT]
    assert asked_for(origin) - before == 2 * COUNT
    until(lambda: one.metric("embedder_in_flight_images") == one.metric("embedder_in_flight_bytes") == 0)


def test_the_first_that_fails_ends_a_request_of_which_nothing_else_is_answered(
    one: Server, origin: Origin, held: Held
) -> None:
    before = asked_for(origin)
    asked = {"input": ["ftp://x", *body(origin)["input"]]}
    answer = one.post("/v1/embeddings", asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[0]")
    assert asked_for(origin) - before < SHARED_WINDOW
    until(lambda: one.metric("embedder_in_flight_images") == 0)


def test_a_client_that_leaves_ends_it(one: Server, origin: Origin, held: Held) -> None:
    before = asked_for(origin)
    with closing(socket.create_connection(("127.0.0.1", one.port), timeout=60)) as connection:
        connection.sendall(post("/v1/embeddings", body(origin)))
        until(lambda: one.metric("embedder_in_flight_images") == SHARED_WINDOW)
    until(lambda: one.metric("embedder_in_flight_images") == 0)
    held.release()
    assert asked_for(origin) - before == SHARED_WINDOW


def test_a_bad_image_among_many_is_named_and_the_others_were_not_in_vain(one: Server, photo: bytes) -> None:
    inputs = [data_url(photo)] * 100
    inputs[70] = "http://10.0.0.1/x.jpg"
    answer = one.post("/v1/embeddings", {"input": inputs})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[70]")
    content = one.post("/v1/embeddings", {"input": inputs, "errors": "null"}).json()
    assert [index for index, item in enumerate(content["data"]) if item["embedding"] is None] == [70]
    assert json.dumps(content["errors"]).count('"index"') == 1
