"""What Weaviate's Go clients send, byte for byte as their sources make it, and how they read what comes back.

modules/img2vec-neural/clients/vectorizer.go, modules/multi2vec-clip/clients/meta.go and clip.go,
modules/multi2vec-jinaai and usecases/modulecomponents/clients/jinaai/jinaai.go of weaviate/weaviate (1.38).
"""

from __future__ import annotations

import base64
import http.client
import json
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from tests.conftest import Reference
from tests.server import Server

GO = {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}


def post(server: Server, path: str, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    """As Go's `json.Marshal` and `http.Client` send it; what is answered must be an object whose status may be any."""
    text = json.dumps(body, separators=(",", ":")).encode()
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.putrequest("POST", path, skip_accept_encoding=True)
        for name, value in {**GO, "Content-Length": str(len(text)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(text)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        assert isinstance(content, dict)
        return answer.status, content


def bare(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


def test_img2vec_neural_gets_a_vector(server: Server, photo: bytes, reference: Reference) -> None:
    status, content = post(
        server, "/vectors", {"id": "6f5a_0", "image": bare(photo)}
    )  # without a Content-Type
    assert status == 200
    assert np.array(content.pop("vector")) @ reference(photo) >= 0.9999
    assert content == {"id": "6f5a_0", "dim": 512, "error": ""}
    assert post(server, "/vectors/", {"id": "search_1", "image": bare(photo)})[0] == 200


def test_multi2vec_clip_gets_vectors(server: Server, photo: bytes, reference: Reference) -> None:
    bodies: list[dict[str, object]] = [
        {"images": [bare(photo)] * 2},
        {"images": [bare(photo)] * 2, "texts": None},
        {"images": [bare(photo)] * 2, "texts": []},
    ]
    for body in bodies:
        status, content = post(server, "/vectorize", body, **{"Content-Type": "application/json"})
        assert (status, content["textVectors"], content["error"]) == (200, [], "")
        assert len(content["imageVectors"]) == 2
        for vector in content["imageVectors"]:
            assert np.array(vector) @ reference(photo) >= 0.9999
    assert post(server, "/vectorize", {})[1] == {"textVectors": [], "imageVectors": [], "error": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/vectors", {"id": "1", "image": "no base64!"}, 422, "the image is not valid base64"),
        ("/vectors", {"id": "1"}, 400, "an image is missing: send its file in base64"),
        ("/vectors", {"id": 1, "image": "AAAA"}, 400, '"id" is not text'),
        ("/vectors", {"id": "i" * 1001, "image": "AAAA"}, 400, '"id" has 1001 characters; the limit is 1000'),
        ("/vectorize", {"images": ["A A=="]}, 422, "images[0]: the content is no image; taken are "),
        ("/vectorize", {"images": ["!"]}, 422, "images[0]: the image is not valid base64"),
        ("/vectorize", {"images": [5]}, 400, "images[0]: an image is missing"),
        ("/vectorize", {"images": "x"}, 400, '"images" or "texts" is no list'),
        ("/vectorize", {"texts": ["a cat"]}, 400, "'a cat' is text, and this model embeds images"),
        ("/vectorize", {"images": ["!"] * 2049}, 400, "the body has 2049 images; the limit is 2048"),
        ("/vectors", [], 400, "the body is not a JSON object"),
    ],
)
def test_errors_are_objects_whose_error_is_text(
    server: Server, path: str, body: object, status: int, says: str
) -> None:
    found, content = post(server, path, body)
    assert found == status
    assert content.keys() == {"error", "code"}
    assert content["error"].startswith(says)


def test_it_finds_the_service_ready_and_describes_it(server: Server) -> None:
    for path in ("/.well-known/live", "/.well-known/ready"):
        answer = server.get(path)
        assert (answer.status_code, answer.content) == (204, b"")
    assert server.get("/meta").json()["dimension"] == 512


def test_multi2vec_jinaai_by_its_base_url(server: Server, photo: bytes, reference: Reference) -> None:
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Bearer any",
        "Request-Source": "unspecified:weaviate",
    }
    request: dict[str, object] = {
        "input": [{"image": bare(photo)}] * 2,
        "model": "jina-clip-v2",
        "embedding_type": "float",
        "normalized": False,
    }
    status, content = post(server, "/v1/embeddings", request, **headers)
    assert status == 200
    for index, item in enumerate(content["data"]):
        assert item["index"] == index
        assert np.array(item["embedding"]) @ reference(photo) >= 0.9999
    assert isinstance(content["usage"]["total_tokens"], int)
    # nearText
    request = {**request, "input": [{"text": "a cat"}], "task": "retrieval.query"}
    status, content = post(server, "/v1/embeddings", request, **headers)
    assert status == 400
    assert content["detail"].startswith("'a cat' is text")


def test_a_key_that_is_missing_is_told_as_text(locked: Server) -> None:
    for path in ("/vectors", "/vectorize"):
        status, content = post(locked, path, {})
        assert (status, content["code"]) == (401, "unauthorized")
        assert isinstance(content["error"], str)
