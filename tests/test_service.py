"""The running service, over HTTP: its contract, its errors, its neighbours' peace."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from openapi_spec_validator import validate
from PIL import Image

from embedder import __version__
from tests import pictures
from tests.answers import hang
from tests.conftest import Reference
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import KEYS, Server, assert_error, plain_environ, until
from tests.test_errors import CONTRACT
from tests.traffic import head

KEY = {"X-API-Key": KEYS[0]}


@pytest.fixture(scope="module")
def bad_urls(origin: Origin, photo: bytes) -> dict[str, str]:
    """One URL for each code that an image can fail with."""
    origin.serve("/missing.jpg", b"", status=404)
    origin.serve("/page.html", b"<!doctype html><html><body>not an image</body></html>")
    origin.serve("/cut.jpg", photo[: len(photo) // 2])
    origin.serve("/large.jpg", photo[:20] + bytes(20_000_000))
    origin.serve(
        "/wide.png",
        pictures.png_of_parts(
            struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"", zlib.compress(b"")
        ),
    )
    origin.raw("/hang", hang)
    return {
        "url_not_allowed": "http://[::1]/x.jpg",
        "fetch_failed": origin.url("/missing.jpg"),
        "unsupported_format": origin.url("/page.html"),
        "bad_image": origin.url("/cut.jpg"),
        "image_too_large": origin.url("/large.jpg"),
        "too_many_pixels": origin.url("/wide.png"),
        "fetch_timeout": origin.url("/hang"),
    }


# --- the contract ---


def test_embed_gives_the_replaced_services_vector(
    server: Server, photo_url: str, photo: bytes, reference: Reference
) -> None:
    answer = server.post("/embed", {"url": photo_url})
    assert answer.status_code == 200
    assert list(answer.json()) == ["embedding"]
    embedding = np.array(answer.json()["embedding"])
    assert embedding.shape == (512,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    assert embedding @ reference(photo) >= 0.9999


def test_a_data_url_gives_the_same_vector_as_the_same_bytes_by_http(
    server: Server, photo_url: str, photo: bytes
) -> None:
    by_http = server.post("/embed", {"url": photo_url}).json()
    assert server.post("/embed", {"url": data_url(photo)}).json() == by_http


def test_embeddings_are_written_as_float32_and_no_longer(server: Server, photo_url: str) -> None:
    text = server.post("/embed", {"url": photo_url}).text
    numbers = re.findall(r"[-0-9.e]+", text.partition("[")[2])
    assert len(numbers) == 512
    for number in numbers:
        digits = re.sub(r"[-.]|e.*", "", number).lstrip("0")
        assert len(digits) <= 9  # what a float32 can need; a double needs up to 17


def test_every_embed_answer_names_the_model_and_what_may_be_compared(server: Server, photo_url: str) -> None:
    info = server.get("/info").json()
    assert re.fullmatch("[0-9a-f]{12}", info["fingerprint"])
    for answer in (
        server.post("/embed", {"url": photo_url}),
        server.post("/embed_batch", {"urls": [photo_url]}),
    ):
        assert answer.headers["X-Embedding-Model"] == info["model"]["tag"]
        assert answer.headers["X-Embedding-Fingerprint"] == info["fingerprint"]


def test_an_answer_says_what_the_image_was(server: Server, origin: Origin) -> None:
    turned = pictures.oriented(pictures.photo(640, 480), "JPEG", 6)
    origin.serve("/turned.jpg", turned)
    url = origin.url("/turned.jpg")
    headers = server.post("/embed", {"url": url}).headers
    assert (headers["X-Image-Format"], headers["X-Image-Size"]) == ("JPEG", "480x640")
    assert "X-Image-Size" not in server.post("/embed", {"url": origin.url("/none")}).headers
    urls = [url, origin.url("/none"), url]
    known = {"format": "JPEG", "width": 480, "height": 640, "bytes": len(turned)}
    image = {**known, "sha256": hashlib.sha256(turned).hexdigest()}
    answer = server.post("/embed_batch", {"urls": urls, "details": True}).json()
    assert answer["images"] == [image, None, image]
    for details in ({}, {"details": False}):
        assert server.post("/embed_batch", {"urls": urls, **details}).json().keys() == {
            "embeddings",
            "errors",
        }
    for nonsense in (1, "true", None):
        answer = server.post("/embed_batch", {"urls": urls, "details": nonsense})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_health_is_what_it_was(server: Server) -> None:
    answer = server.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})


def test_info_shows_the_model_its_provenance_and_the_limits(server: Server, weights_file: Path) -> None:
    info = server.get("/info").json()
    assert info["model"]["weights"] == "discriminating.pth"
    assert info["model"]["weights_sha256"] == hashlib.sha256(weights_file.read_bytes()).hexdigest()
    assert info["model"]["trained"] is True
    assert info["model"]["preprocessing"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert info["dimension"] == 512
    assert info["precision"] == "fp32"
    assert info["limits"]["fetch_timeout_s"] == 2
    assert info["limits"]["max_urls"] == 64
    assert info["versions"]["image-embedder"] == __version__
    assert info["versions"]["bentoml"] == version("bentoml")


# --- many at once ---


@pytest.fixture(scope="module")
def four(origin: Origin, photo: bytes, reference: Reference) -> list[tuple[str, NDArray[np.float32]]]:
    """URLs of four pictures that differ, so that an answer in the wrong place shows; their true vectors."""
    found = []
    for shift in range(4):
        pixels = np.roll(np.asarray(Image.open(io.BytesIO(photo))), shift * 100, axis=1)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        origin.serve(f"/rolled-{shift}.png", file.getvalue())
        found.append((origin.url(f"/rolled-{shift}.png"), reference(file.getvalue())))
    return found


def test_a_batch_of_64_keeps_its_order_with_nulls_and_errors_where_images_are_bad(
    server: Server, four: list[tuple[str, NDArray[np.float32]]], bad_urls: dict[str, str]
) -> None:
    codes: list[str | None] = ([None, None, None, *bad_urls, None] * 6)[:64]
    urls = [four[index % 4][0] if code is None else bad_urls[code] for index, code in enumerate(codes)]
    answer = server.post("/embed_batch", {"urls": urls})
    assert answer.status_code == 200
    embeddings, errors = answer.json()["embeddings"], answer.json()["errors"]
    assert len(embeddings) == 64
    assert [(error["index"], error["code"]) for error in errors] == [
        (index, code) for index, code in enumerate(codes) if code is not None
    ]
    for index, (embedding, code) in enumerate(zip(embeddings, codes, strict=True)):
        if code is None:
            assert np.array(embedding) @ four[index % 4][1] >= 0.9999
        else:
            assert embedding is None


def test_300_requests_at_once_get_each_their_own_answer(
    server: Server, four: list[tuple[str, NDArray[np.float32]]], bad_urls: dict[str, str]
) -> None:
    codes = list(bad_urls)
    cases = [
        (bad_urls[codes[n % len(codes)]], codes[n % len(codes)]) if n % 3 == 0 else (four[n % 4][0], n % 4)
        for n in range(300)
    ]
    with ThreadPoolExecutor(300) as clients:
        answers = list(clients.map(lambda case: server.post("/embed", {"url": case[0]}), cases))
    for (_, meant), answer in zip(cases, answers, strict=True):
        if isinstance(meant, str):
            assert_error(answer, CONTRACT[meant], meant)
        else:
            assert answer.status_code == 200
            assert np.array(answer.json()["embedding"]) @ four[meant][1] >= 0.9999
    assert Counter(answer.status_code for answer in answers)[200] == 200
    # And they went through the model together.
    batches = server.metric("bentoml_service_adaptive_batch_size_count")
    alone = server.metric("bentoml_service_adaptive_batch_size_bucket", le="1.0")
    assert alone < batches


def test_an_empty_batch_is_an_empty_answer(server: Server) -> None:
    assert server.post("/embed_batch", {"urls": []}).json() == {"embeddings": [], "errors": []}


def test_int8_serves_nearly_the_same_vectors_and_says_how_near(
    locked: Server, photo: bytes, reference: Reference
) -> None:
    answer = locked.post("/embed", {"url": data_url(photo)}, headers=KEY)
    info = locked.get("/info", headers=KEY).json()
    embedding = np.array(answer.json()["embedding"])
    assert 0.99 <= embedding @ reference(photo) < 0.99999  # fp32 is nearer
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    assert info["precision"] == "int8"
    assert 0.99 <= info["model"]["precisions"]["int8"]["min_cosine_to_fp32"] < 1


def test_the_same_bytes_are_encoded_once_in_each_worker_and_counted(locked: Server) -> None:
    def counts() -> tuple[float, float, float]:
        names = ("embedder_cache_misses_total", "embedder_cache_hits_total", "embedder_batch_size_count")
        misses, hits, batches = map(locked.metric, names)
        return misses, hits, batches

    misses, hits, batches = counts()
    url = data_url(pictures.encoded(pictures.photo(300, 300), "PNG"))
    answers = [locked.post("/embed", {"url": url}, headers=KEY).json() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert counts() == (misses + 1, hits + 2, batches + 1)


# --- errors ---


def test_an_image_that_fails_is_answered_with_its_code_and_status_and_the_limit_that_it_broke(
    server: Server, bad_urls: dict[str, str]
) -> None:
    sentences = {}
    for code, url in bad_urls.items():
        answer = server.post("/embed", {"url": url})
        assert_error(answer, CONTRACT[code], code)
        assert "X-Embedding-Model" not in answer.headers
        sentences[code] = answer.json()["error"]
    assert sentences["image_too_large"] == "the image is 20.00002 MB; the limit is 20 MB"
    assert "60000 x 60000" in sentences["too_many_pixels"]
    assert "50000000" in sentences["too_many_pixels"]
    assert "404" in sentences["fetch_failed"]
    assert "within 2 s" in sentences["fetch_timeout"]


def post_raw(server: Server, body: bytes | Iterator[bytes], **headers: str | None) -> requests.Response:
    fields = {"Content-Type": "application/json", **headers}  # None: no such field
    return requests.post(server.url + "/embed", data=body, headers=fields, timeout=60)


DEEP = b'{"url":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
NO_EMBED = (b"", b"{", b"[]", b'"x"', b"null", b"{}", b'{"url": 5}', b'{"url": ["x"]}', b'{"urls": []}', DEEP)


@pytest.mark.parametrize("body", NO_EMBED, ids=range(len(NO_EMBED)))
def test_a_body_that_embed_does_not_take_is_400(server: Server, body: bytes) -> None:
    assert_error(post_raw(server, body), 400, "invalid_request")


@pytest.mark.parametrize("urls", [None, "x", {}, [1], ["x", None], [["x"]]])
def test_a_body_that_embed_batch_does_not_take_is_400(server: Server, urls: object) -> None:
    assert_error(server.post("/embed_batch", {"urls": urls}), 400, "invalid_request")


def test_64_urls_are_taken_and_65_are_not(server: Server) -> None:
    assert server.post("/embed_batch", {"urls": ["x"] * 64}).status_code == 200
    answer = server.post("/embed_batch", {"urls": ["x"] * 65})
    assert answer.status_code == 400
    assert answer.json() == {"error": "the body has 65 URLs; the limit is 64", "code": "invalid_request"}


@pytest.mark.parametrize("filling", [b",1", b",{}", b",[]"])
def test_a_body_of_as_many_values_as_urls_can_have_is_taken_and_of_one_more_is_not(
    server: Server, filling: bytes
) -> None:
    limit = 131_072 + 64 * 2048  # and 64 for each input of the largest request
    each = len(filling.translate(None, b"1]}"))  # of commas and brackets
    start = b'{"url":"ftp://x","more":[1' + b",1" * ((limit - 3) % each)
    for count, status in (((limit - 3) // each, 422), ((limit - 3) // each + 1, 400)):
        answer = post_raw(server, start + filling * count + b"]}")
        assert answer.status_code == status
    assert answer.json()["code"] == "invalid_request"
    assert str(limit) in answer.json()["error"]


@pytest.mark.parametrize(
    ("header", "values", "code"),
    [
        ("Content-Type", [None, "application/json; charset=utf-8", "APPLICATION/JSON"], "url_not_allowed"),
        (
            "Content-Type",
            ["text/plain", "application/x-www-form-urlencoded", "video/mp4"],
            "unsupported_media_type",
        ),
        ("Content-Type", ["application/vnd.bentoml+pickle"], "unsupported_media_type"),
        ("Content-Encoding", ["identity"], "url_not_allowed"),
        ("Content-Encoding", ["gzip", "br", "deflate", "identity, gzip"], "unsupported_media_type"),
    ],
)
def test_json_is_taken_under_its_names_and_other_bodies_are_415(
    server: Server, header: str, values: list[str | None], code: str
) -> None:
    for value in values:
        answer = post_raw(server, b'{"url": "ftp://x"}', **{header: value})
        assert_error(answer, CONTRACT[code], code)
        assert code == "url_not_allowed" or str(value) in answer.json()["error"]
    assert "Traceback" not in server.log.read_text()


def test_a_declared_body_of_400_mb_is_refused_before_it_is_sent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 400000000\r\n\r\n"
        )
        top = connection.recv(65536)
    assert top.startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_over_the_limit_is_refused_while_it_is_sent(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"url": "'
        for _ in range(40):
            yield b"x" * 1_000_000

    assert_error(post_raw(server, chunks()), 413, "body_too_large")


def test_a_body_that_drips_is_given_up_when_its_time_is_over(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as connection:
        connection.sendall(head("/embed", 100_000))
        answer = bytearray()

        def is_answered() -> bool:
            with suppress(TimeoutError):
                connection.sendall(b" ")
                answer.extend(connection.recv(65536))
            return b"}" in answer

        until(is_answered)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the body did not arrive within 15 s" in answer


# --- documentation and BentoML's clients ---


def test_the_openapi_document_is_valid(server: Server) -> None:
    validate(server.get("/docs.json").json())


# BentoML's clients run in a process of their own, as their users run them: importing them emits warnings, which
# are errors here.
CLIENTS = """
import asyncio, bentoml, json, sys
with bentoml.SyncHTTPClient(sys.argv[1]) as client:
    one = client.embed(url=sys.argv[2])
    two = client.embed_batch(urls=[sys.argv[2], "http://[::1]/"])
    try:
        client.embed(url="http://[::1]/")
    except bentoml.exceptions.BentoMLException as error:
        failed = error.error_code.value, json.loads(str(error))
async def embed():
    async with bentoml.AsyncHTTPClient(sys.argv[1]) as client:
        return await client.embed(url=sys.argv[2])
print(json.dumps([one, two, *failed, asyncio.run(embed())]))
"""


def test_bentomls_clients_work(server: Server, photo_url: str) -> None:
    expected = server.post("/embed", {"url": photo_url}).json()
    command = [sys.executable, "-c", CLIENTS, server.url, photo_url]
    done = subprocess.run(command, env=plain_environ(), capture_output=True, text=True, check=True)
    one, two, status, error, by_async_client = json.loads(done.stdout)
    assert one == by_async_client == expected
    assert two["embeddings"] == [expected["embedding"], None]
    assert two["errors"] == [{"index": 1, **error}]
    assert (status, error["code"]) == (422, "url_not_allowed")
