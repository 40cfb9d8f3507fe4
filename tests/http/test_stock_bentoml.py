"""What an operator can choose of BentoML's own: its adaptive batching, and its limit of requests at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.answers import Held, with_length
from tests.conftest import Reference, Serving
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import Server, assert_error

MAX_CONCURRENCY = 3


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, serving: Serving) -> Iterator[Server]:
    configuration = tmp_path_factory.mktemp("stock") / "bentoml.yaml"
    configuration.write_text(
        f"services: {{image_embedder: {{traffic: {{max_concurrency: {MAX_CONCURRENCY}}}}}}}"
    )
    settings = {
        "BENTOML_CONFIG": str(configuration),
        "EMBEDDER_BATCHING": "bentoml",
        "EMBEDDER_CACHE_ENTRIES": "0",
        "EMBEDDER_MAX_BATCH_SIZE": "32",
    }
    with serving(**settings) as server:
        yield server
        assert "Traceback" not in server.log.read_text()


def test_bentomls_batcher_gives_the_same_vector(stock: Server, photo: bytes, reference: Reference) -> None:
    assert stock.get("/info").json()["batching"] == "bentoml"
    answer = stock.post("/embed", {"url": data_url(photo)})
    assert np.array(answer.json()["embedding"]) @ reference(photo) >= 0.9999


def test_a_request_of_twice_the_batch_size_is_split_and_put_together_again(
    stock: Server, photo_url: str, photo: bytes, reference: Reference
) -> None:
    urls = [f"{photo_url}?{number}" for number in range(64)]
    answer = stock.post("/embed_batch", {"urls": urls}).json()
    assert answer["errors"] == []
    assert np.min(np.array(answer["embeddings"]) @ reference(photo)) >= 0.9999


def test_images_that_fail_leave_the_others_their_places(
    stock: Server, photo_url: str, photo: bytes, reference: Reference
) -> None:
    urls = ["ftp://x" if number % 3 == 0 else f"{photo_url}?{number}" for number in range(64)]
    answer = stock.post("/embed_batch", {"urls": urls}).json()
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [
        (number, "url_not_allowed") for number in range(0, 64, 3)
    ]
    assert [n for n, embedding in enumerate(answer["embeddings"]) if embedding is None] == list(
        range(0, 64, 3)
    )
    embeddings = [embedding for embedding in answer["embeddings"] if embedding is not None]
    assert np.min(np.array(embeddings) @ reference(photo)) >= 0.9999


def test_requests_without_an_image_are_answered_beside_those_with_one(stock: Server, photo_url: str) -> None:
    def ask(number: int) -> tuple[int, int]:
        if number % 3 == 0:
            answer = stock.post("/embed_batch", {"urls": []})
            return answer.status_code, len(answer.json()["embeddings"])
        answer = stock.post("/embed", {"url": "ftp://x" if number % 3 == 1 else f"{photo_url}?{number}"})
        return answer.status_code, len(answer.json().get("embedding", ()))

    with ThreadPoolExecutor(MAX_CONCURRENCY) as clients:
        answers = list(clients.map(ask, range(30)))
    assert answers == [(200, 0), (422, 0), (200, 512)] * 10


def test_bentomls_own_429_says_overloaded_and_when_to_try_again(stock: Server, origin: Origin) -> None:
    held = Held(with_length(b"no image"))
    origin.raw("/held-from-stock.jpg", held)
    urls = [origin.url(f"/held-from-stock.jpg?{number}") for number in range(MAX_CONCURRENCY)]
    with ThreadPoolExecutor(MAX_CONCURRENCY) as clients:
        answers = clients.map(lambda url: stock.post("/embed", {"url": url}), urls)
        try:
            for _ in urls:
                assert held.arrived.acquire(timeout=60)
            for path in ("/embed", "/embed_batch"):
                refused = stock.post(path, {"url": "ftp://x", "urls": []})
                assert_error(refused, 429, "overloaded")
                assert refused.headers["Retry-After"] == "1"
        finally:
            held.release()
        assert {answer.status_code for answer in answers} == {422}
    assert_error(stock.post("/embed", {"url": "ftp://x"}), 422, "url_not_allowed")
