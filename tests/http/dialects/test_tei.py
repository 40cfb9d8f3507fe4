"""What clients of text-embeddings-inference send to `/embed`, Milvus' among them."""

from __future__ import annotations

import numpy as np
import pytest
import requests

from tests.conftest import Reference
from tests.pictures import data_url
from tests.server import Server, assert_error


def ask(server: Server, inputs: object, **more: object) -> requests.Response:
    return server.post("/embed", {"inputs": inputs, **more})


def assert_refused(answer: requests.Response, status: int, code: str, says: str) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json")
    assert answer.json() == {"error": says, "error_type": "Validation", "code": code}


def test_inputs_give_bare_vectors(server: Server, photo: bytes, photo_url: str, reference: Reference) -> None:
    for inputs in (photo_url, [photo_url], [photo_url, data_url(photo)]):
        # Milvus' client sends `truncate` and `truncation_direction`.
        answer = ask(server, inputs, truncate=True, truncation_direction="Right", normalize=True)
        assert answer.status_code == 200
        assert len(answer.json()) == (1 if isinstance(inputs, str) else len(inputs))
        for vector in answer.json():
            assert np.array(vector) @ reference(photo) >= 0.9999
        assert answer.headers["X-Embedding-Fingerprint"] == server.get("/info").json()["fingerprint"]
    assert ask(server, [photo_url], dimensions=512).status_code == 200


def test_it_is_all_or_nothing(server: Server, photo: bytes) -> None:
    answer = ask(server, [data_url(photo), "http://10.0.0.1/x.jpg"])
    assert_refused(answer, 422, "url_not_allowed", "inputs[1]: the address 10.0.0.1 is not public")
    answer = ask(server, [data_url(photo), "check"])
    says = "inputs[1]: 'check' is text, and this model embeds images: send a URL, a data: URL, or an image in base64"
    assert_refused(answer, 400, "text_not_supported", says)


@pytest.mark.parametrize("inputs", [None, 5, [], {}, [5], [["x"]], ["ftp://x"] * 2049])
def test_what_are_no_inputs_is_400(server: Server, inputs: object) -> None:
    answer = ask(server, inputs)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["error_type"] == "Validation"


@pytest.mark.parametrize("more", [{"normalize": False}, {"normalize": 0}, {"dimensions": 256}])
def test_other_vectors_than_there_are_can_not_be_had(
    server: Server, photo: bytes, more: dict[str, object]
) -> None:
    answer = ask(server, data_url(photo), **more)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_a_url_and_inputs_can_not_both_be_meant(server: Server, photo_url: str) -> None:
    answer = ask(server, [photo_url], url=photo_url)
    assert_error(answer, 400, "invalid_request")
    assert answer.json()["error"] == 'the body has "url" and "inputs": send one of them'


def test_info_has_what_its_clients_read(server: Server) -> None:
    info = server.get("/info").json()
    assert info["model_id"] == info["model"]["tag"]
    assert info["model_sha"] == info["model"]["weights_sha256"]
    assert info["max_client_batch_size"] == info["limits"]["max_inputs"] == 2048
    for name in ("max_concurrent_requests", "max_input_length", "max_batch_tokens"):
        assert isinstance(info[name], int)
    assert info["version"] == info["versions"]["image-embedder"]
