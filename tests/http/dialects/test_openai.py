"""What OpenAI's clients send, and those who speak like them; what is answered, and how it fails."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from tests import pictures
from tests.conftest import Reference, Serving
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import KEYS, Server

KEY = {"Authorization": f"Bearer {KEYS[0]}"}


@pytest.fixture(scope="module")
def probed(serving: Serving) -> Iterator[Server]:
    """One worker of int8 that answers two probes, and takes 70 inputs."""
    settings = {
        "EMBEDDER_MAX_INPUTS": "70",
        "EMBEDDER_PRECISION": "int8",
        "EMBEDDER_PROBE_INPUTS": "check, how big",
    }
    with serving(**settings) as server:
        yield server


def ask(server: Server, body: object, path: str = "/v1/embeddings", **headers: str) -> requests.Response:
    return server.post(path, body, headers=headers)


def vectors(answer: requests.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert content.keys() == {"object", "data", "model", "usage"}
    assert content["object"] == "list"
    assert [(item["object"], item["index"]) for item in content["data"]] == [
        ("embedding", index) for index in range(len(content["data"]))
    ]
    count = len(content["data"])
    assert content["usage"] == {"prompt_tokens": count, "total_tokens": count}
    return [item["embedding"] for item in content["data"]]


def assert_refused(answer: requests.Response, status: int, code: str, param: str | None, kind: str) -> str:
    """`answer` is an error as OpenAI's clients read it; returns its sentence."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json"), answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"], error["type"]) == (code, param, kind)
    assert answer.json()["detail"] == error["message"]
    message: str = error["message"]
    return message


BAD = "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/embeddings/"])
def test_an_image_in_any_of_its_forms_has_the_vector_of_embed(
    server: Server, photo: bytes, photo_url: str, reference: Reference, path: str
) -> None:
    text = base64.b64encode(photo).decode()
    forms: list[object] = [
        *(photo_url, f" {photo_url}\n", data_url(photo)),
        *({"image": photo_url}, {"image": data_url(photo)}, {"image": text}, {"image": text.rstrip("=")}),
        *({"url": photo_url}, {"image_url": {"url": photo_url}}, {"image_url": photo_url}),
        {"type": "image_url", "image_url": {"url": data_url(photo), "detail": "low"}},
    ]
    expected = server.post("/embed", {"url": photo_url}).json()["embedding"]
    assert np.array(expected) @ reference(photo) >= 0.9999
    for form in forms:
        assert vectors(ask(server, {"input": form, "model": "x"}, path)) == [expected]
    assert vectors(ask(server, {"input": forms}, path)) == [expected] * len(forms)
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": photo_url}}]}
    assert vectors(ask(server, {"messages": [message], "model": "x"}, path)) == [expected]


def test_the_answer_names_the_model_and_what_may_be_compared(server: Server, photo: bytes) -> None:
    info = server.get("/info").json()
    answer = ask(server, {"input": data_url(photo), "model": "text-embedding-3-small"})
    assert answer.json()["model"] == info["model"]["tag"]
    assert answer.headers["X-Embedding-Model"] == info["model"]["tag"]
    assert answer.headers["X-Embedding-Fingerprint"] == info["fingerprint"]


def test_numbers_may_come_as_base64_of_float32(server: Server, photo: bytes) -> None:
    source = {"input": [data_url(photo)] * 2, "user": "x", "task": None, "truncate": True}
    for encoding in ({}, {"encoding_format": None}, {"encoding_format": "float"}):
        numbers = vectors(ask(server, {**source, **encoding}))
    texts = vectors(ask(server, {**source, "encoding_format": "base64"}))
    for text, expected in zip(texts, numbers, strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f4"), np.float32(expected))


def test_dimensions_are_the_networks(server: Server, photo: bytes) -> None:
    for dimensions in (None, 512):
        assert len(vectors(ask(server, {"input": data_url(photo), "dimensions": dimensions}))[0]) == 512
    for wrong in (0, 256, 513, "512", True, [512]):
        answer = ask(server, {"input": data_url(photo), "dimensions": wrong})
        said = assert_refused(answer, 400, "invalid_request", "dimensions", BAD)
        assert said == "the embeddings have 512 dimensions, and no others"


@pytest.mark.parametrize("text", ["a cat", "check", "", "cat.jpg", "www.example.org/a.jpg", "1://x", "/a//b"])
def test_text_gets_no_vector(server: Server, photo: bytes, text: str) -> None:
    for given, param in ((text, "input"), ([data_url(photo), text], "input[1]")):
        said = assert_refused(ask(server, {"input": given}), 400, "text_not_supported", param, BAD)
        assert (
            said
            == f"{text!r} is text, and this model embeds images: send a URL, a data: URL, or an image in base64"
        )


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([1, 2, 3], "input[0]"),
        ([[1, 2], [3]], "input[0]"),
        ([{"text": "a cat"}], "input[0]"),
        ({"type": "text", "text": "a cat"}, "input"),
    ],
)
def test_tokens_and_texts_in_objects_get_none_either(server: Server, given: object, param: str) -> None:
    assert_refused(ask(server, {"input": given}), 400, "text_not_supported", param, BAD)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 1.5}, "input"),
        ({"input": True}, "input"),
        ({"input": [None]}, "input[0]"),
        ({"input": ["ftp://x", {"image": 5}]}, "input[1]"),
        ({"input": [{}]}, "input[0]"),
        ({"input": [{"image_url": {"url": None}}]}, "input[0]"),
        ({"input": "ftp://x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "ftp://x", "encoding_format": ["float"]}, "encoding_format"),
        ({"input": "ftp://x", "errors": "no"}, "errors"),
        ({"input": ["ftp://x"] * 2049}, "input"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [{"role": "user", "content": [{"image_url": "ftp://x"}] * 2}]}, "messages"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [["ftp://x", "ftp://x"]]}]}, "messages"),
        ({"errors": "null"}, "input"),
        ([], None),
        ("x", None),
        ({"input": "ftp://x", "expect_model": 5}, None),
    ],
)
def test_a_body_that_it_does_not_take_is_400_and_says_where(
    server: Server, body: object, param: str | None
) -> None:
    code = (
        "text_not_supported"
        if body == {"messages": [{"role": "user", "content": [5]}]}
        else "invalid_request"
    )
    assert_refused(ask(server, body), 400, code, param, BAD)


def test_messages_with_text_are_refused(server: Server, photo: bytes) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url(photo)}}
    for content in ("a cat", [image, {"type": "text", "text": "a cat"}]):
        body = {"messages": [{"role": "user", "content": content}]}
        assert_refused(ask(server, body), 400, "text_not_supported", "messages", BAD)


def test_one_bad_image_fails_the_request_and_is_named(server: Server, photo: bytes, origin: Origin) -> None:
    origin.serve("/gone.jpg", b"", status=404)
    cases = {
        "fetch_failed": origin.url("/gone.jpg"),
        "url_not_allowed": "http://10.0.0.1/x.jpg",
        "unsupported_format": data_url(b"no image"),
        "bad_image": {"image": "no base64!"},
    }
    for code, bad in cases.items():
        answer = ask(server, {"input": [data_url(photo), data_url(photo), bad]})
        assert_refused(answer, 400, code, "input[2]", BAD)
        assert_refused(ask(server, {"input": bad}), 400, code, "input", BAD)
        assert "X-Embedding-Model" not in answer.headers


def test_nulls_are_given_for_bad_images_where_they_are_asked_for(server: Server, photo: bytes) -> None:
    body = {"input": [data_url(photo), "http://10.0.0.1/x.jpg", data_url(photo)], "errors": "null"}
    content = ask(server, body).json()
    assert [item["embedding"] is None for item in content["data"]] == [False, True, False]
    assert content["errors"] == [
        {"index": 1, "code": "url_not_allowed", "message": "the address 10.0.0.1 is not public"}
    ]
    assert ask(server, {**body, "input": [data_url(photo)]}).json()["errors"] == []
    content = ask(server, {**body, "input": ["a cat", data_url(photo), 5.5]}).json()
    assert [item["embedding"] is None for item in content["data"]] == [True, False, True]
    assert [error["code"] for error in content["errors"]] == ["text_not_supported", "invalid_request"]


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/embeddings", "/v1/models", "/models", "/v1/none", "/v1/"]
)
def test_whatever_fails_below_v1_is_an_error_of_its_shape(locked: Server, path: str) -> None:
    answer = requests.get(locked.url + path)
    if path in ("/v1/none", "/v1/"):
        assert_refused(answer, 404, "not_found", None, "not_found_error")
    else:
        assert_refused(answer, 401, "unauthorized", None, "authentication_error")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    if path.endswith("embeddings"):
        refused = requests.get(locked.url + path, headers=KEY)
        assert_refused(refused, 405, "method_not_allowed", None, BAD)
        typed = requests.post(locked.url + path, data="x", headers={**KEY, "Content-Type": "text/plain"})
        assert_refused(typed, 415, "unsupported_media_type", None, BAD)


def test_the_model_is_listed_and_described(server: Server) -> None:
    tag = server.get("/info").json()["model"]["tag"]
    for path in ("/v1/models", "/models"):
        content = server.get(path).json()
        (model,) = content["data"]
        assert content["object"] == "list"
        assert (model["id"], model["object"]) == (tag, "model")
        for name in (tag, "resnet18", tag.replace(":", "%3A")):
            assert server.get(f"{path}/{name}").json() == model
        assert_refused(server.get(f"{path}/gpt-4"), 404, "not_found", None, "not_found_error")


def test_another_model_than_is_expected_is_409_and_not_worth_trying_again(
    server: Server, photo: bytes
) -> None:
    answer = ask(server, {"input": data_url(photo), "expect_model": "resnet50:1"})
    assert_refused(answer, 409, "model_mismatch", None, BAD)
    assert answer.headers["x-should-retry"] == "false"  # or its clients try 409 again


def test_probes_get_the_vector_of_a_grey_picture_and_say_so(probed: Server) -> None:
    grey = pictures.encoded(Image.new("L", (4, 4), 128), "PNG")
    expected = probed.post("/embed", {"url": data_url(grey)}).json()["embedding"]
    for probe in ("check", "how big"):
        for given in (probe, [probe]):
            answer = ask(probed, {"input": given})
            assert vectors(answer) == [expected]
            assert answer.headers["X-Embedding-Probe"] == "true"
        tei = probed.post("/embed", {"inputs": [probe]})
        assert tei.json() == [expected]
        assert tei.headers["X-Embedding-Probe"] == "true"
    assert "X-Embedding-Probe" not in ask(probed, {"input": data_url(grey)}).headers
    for text in ("Check", "check ", "checks", "how", "check, how big"):
        assert_refused(ask(probed, {"input": text}), 400, "text_not_supported", "input", BAD)


def test_70_inputs_are_taken_where_that_is_the_limit_and_71_are_not(probed: Server, photo: bytes) -> None:
    assert len(vectors(ask(probed, {"input": [data_url(photo)] * 70}))) == 70
    said = assert_refused(ask(probed, {"input": ["x"] * 71}), 400, "invalid_request", "input", BAD)
    assert said == "the body has 71 inputs; the limit is 70"


def test_a_large_request_keeps_its_order(server: Server, origin: Origin) -> None:
    files = [pictures.encoded(pictures.photo(40 + index, 40), "PNG") for index in range(7)]
    urls = [data_url(file) for file in files]
    alone = [server.post("/embed", {"url": url}).json()["embedding"] for url in urls]
    order = [(5 * index) % 7 for index in range(150)]
    found = vectors(ask(server, {"input": [urls[index] for index in order]}))
    cosines = [np.array(found[place]) @ np.array(alone[index]) for place, index in enumerate(order)]
    # Batches of other sizes round otherwise.
    assert min(cosines) >= 0.999999
    body = {"input": [urls[0]] * 70 + ["http://10.0.0.1/"] + [urls[0]] * 10}
    assert_refused(ask(server, body), 400, "url_not_allowed", "input[70]", BAD)
    content = ask(server, {**body, "errors": "null"}).json()
    assert [index for index, item in enumerate(content["data"]) if item["embedding"] is None] == [70]
