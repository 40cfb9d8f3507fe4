"""A dialect is one file and two lines: a third one, made here, gets all that the service's own have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from openapi_spec_validator import validate

from tests.answers import Held, with_length
from tests.conftest import Reference, Serving
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import KEYS, ROOT, Server, assert_error, plain_environ

KEY = {"X-API-Key": KEYS[0]}
PLACES = 3


@pytest.fixture(scope="module")
def three(serving: Serving) -> Iterator[Server]:
    """`tests/http/third_dialect.py` with a key, PLACES images in work, and 1 MB for a body."""
    settings = {
        "EMBEDDER_API_KEYS": KEYS[0],
        "EMBEDDER_MAX_BODY_BYTES": "1000000",
        "EMBEDDER_MAX_IN_FLIGHT_IMAGES": str(PLACES),
        "EMBEDDER_MAX_URLS": str(PLACES),
    }
    with serving("tests.http.third_dialect:ThreeDialects", **settings) as server:
        yield server


def third(server: Server, body: bytes, **headers: str) -> requests.Response:
    headers = {**KEY, "Content-Type": "image/jpeg", **headers}
    return requests.post(f"{server.url}/v1/third", data=body, headers=headers, timeout=60)


def assert_failure(answer: requests.Response, status: int, kind: str) -> None:
    """`answer` is an error in the third dialect's shape."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/failure+json")
    assert answer.json()["failure"].keys() == {"kind", "why"}
    assert answer.json()["failure"]["kind"] == kind


def test_it_takes_bytes_and_echoes_its_option_and_names_the_model(
    three: Server, photo: bytes, reference: Reference
) -> None:
    answer = third(three, photo, **{"X-Label": "cat"})
    assert answer.status_code == 201
    assert answer.json().keys() == {"vector", "label"}
    assert answer.json()["label"] == "cat"
    assert np.array(answer.json()["vector"]) @ reference(photo) >= 0.9999
    info = three.get("/info", headers=KEY).json()
    assert answer.headers["X-Label"] == "echoed"
    assert answer.headers["X-Embedding-Model"] == info["model"]["tag"]
    assert answer.headers["X-Embedding-Fingerprint"] == info["fingerprint"]


def test_its_errors_have_its_own_shape_and_statuses(three: Server, photo: bytes) -> None:
    assert_failure(third(three, b""), 418, "INVALID_REQUEST")
    assert_failure(third(three, b"no image"), 418, "UNSUPPORTED_FORMAT")
    assert_failure(third(three, photo, **{"Content-Type": "application/json"}), 418, "UNSUPPORTED_MEDIA_TYPE")
    assert_failure(third(three, bytes(1_000_001)), 418, "BODY_TOO_LARGE")
    refused = requests.get(f"{three.url}/v1/third", headers=KEY)
    assert_failure(refused, 418, "METHOD_NOT_ALLOWED")
    assert refused.headers["Allow"] == "POST"
    locked = requests.post(f"{three.url}/v1/third")
    assert_failure(locked, 418, "UNAUTHORIZED")
    assert locked.headers["WWW-Authenticate"] == "Bearer"
    bug = third(three, photo, **{"X-Label": "a label that the dialect can't bear"})
    assert_failure(bug, 599, "INTERNAL_ERROR")
    assert "ZeroDivisionError" in three.log.read_text()


def test_when_all_places_are_taken_each_dialect_refuses_in_its_own_shape(
    three: Server, origin: Origin, photo: bytes
) -> None:
    held = Held(with_length(b"no image"))
    origin.raw("/held-from-three.jpg", held)
    urls = [origin.url(f"/held-from-three.jpg?{number}") for number in range(PLACES)]
    with ThreadPoolExecutor(1) as client:
        first = client.submit(three.post, "/embed_batch", {"urls": urls}, headers=KEY)
        try:
            for _ in urls:
                assert held.arrived.acquire(timeout=60)
            refused = third(three, photo)
            assert_failure(refused, 599, "OVERLOADED")
            assert refused.headers["Retry-After"] == "1"
            assert_error(three.post("/embed", {"url": "ftp://x"}, headers=KEY), 429, "overloaded")
        finally:
            held.release()
        assert len(first.result().json()["errors"]) == PLACES
    assert third(three, photo).status_code == 201


def test_the_other_dialects_are_what_they_were(three: Server, photo: bytes) -> None:
    vector = third(three, photo).json()["vector"]
    assert three.post("/embed", {"url": data_url(photo)}, headers=KEY).json() == {"embedding": vector}
    batch = three.post("/embed_batch", {"urls": [data_url(photo), "ftp://x"]}, headers=KEY).json()
    assert batch["embeddings"] == [vector, None]
    assert [(error["index"], error["code"]) for error in batch["errors"]] == [(1, "url_not_allowed")]
    assert_error(three.post("/embed", {"url": "ftp://x"}, headers=KEY), 422, "url_not_allowed")
    assert three.post("/v1/nothing", {}, headers=KEY).json()["error"]["code"] == "not_found"
    assert_error(three.post("/nothing", {}, headers=KEY), 404, "not_found")


def test_the_document_has_its_part(three: Server) -> None:
    document = three.get("/docs.json", headers=KEY).json()
    operation = document["paths"]["/v1/third"]["post"]
    assert operation["summary"] == "A vector of 512 numbers"
    assert operation["responses"]["201"]["headers"].keys() == {
        *("X-Label", "X-Embedding-Model", "X-Embedding-Fingerprint")
    }
    validate(document)
    refused = operation["responses"]["418"]["content"]["application/failure+json"]["example"]
    assert refused["failure"]["kind"] == "UNAUTHORIZED"
    assert "401" not in operation["responses"]
    assert "ThirdResponse" in document["components"]["schemas"]
    assert {"/embed", "/embed_batch"} <= document["paths"].keys()
    assert three.get("/schema.json", headers=KEY).status_code == 200


# What a process answers between the end of its grace and the end of its connections: a moment.
STOPPING = """
import json
import service
from starlette.testclient import TestClient
from tests.http.third_dialect import ThreeDialects

client = TestClient(ThreeDialects.to_asgi())
for stopping in (False, True):
    service.shutdown.stopping = stopping
    service.engine.pipeline.in_flight_images = service.settings.max_in_flight_images
    for path in ("/embed", "/v1/third"):
        media_type = "application/json" if path == "/embed" else "image/png"
        answer = client.post(path, content=b"{}", headers={"Content-Type": media_type})
        print(answer.status_code, answer.text, answer.headers["Retry-After"])
"""


def test_a_process_that_stops_sends_clients_to_another_one(store: Path) -> None:
    environ = {**plain_environ(), "BENTOML_HOME": str(store), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STOPPING], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    full, full_third, stopping, stopping_third = done.stdout.splitlines()
    assert full.startswith("429 ")
    assert '"code":"overloaded"' in full
    assert full_third.startswith('599 {"failure":{"kind":"OVERLOADED"')
    shown = json.dumps({"error": "the service is shutting down", "code": "draining"}, separators=(",", ":"))
    assert stopping == f"503 {shown} 2"
    assert stopping_third == ('599 {"failure":{"kind":"DRAINING","why":"the service is shutting down"}} 2')
