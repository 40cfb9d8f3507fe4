"""Files as they are uploaded: forms and bare bodies, and what is none."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import requests
from PIL import Image

from tests import pictures
from tests.conftest import Reference
from tests.server import Server, assert_error

JPEG = {"Content-Type": "image/jpeg"}


def form(server: Server, path: str, *files: tuple[str, bytes], **fields: str) -> requests.Response:
    sent = [(name, ("cat.jpg", data)) for name, data in files]
    return requests.post(server.url + path, files=sent, data=fields, timeout=60)


def raw(server: Server, path: str, body: bytes | Iterator[bytes], media_type: str) -> requests.Response:
    return requests.post(server.url + path, data=body, headers={"Content-Type": media_type}, timeout=60)


def test_a_file_gives_the_vector_of_its_url(
    server: Server, photo: bytes, photo_url: str, reference: Reference
) -> None:
    by_url = server.post("/embed", {"url": photo_url})
    for answer in (
        form(server, "/embed", ("file", photo)),
        raw(server, "/embed", photo, "image/jpeg"),
        raw(server, "/embed", photo, "IMAGE/Whatever; q=1"),
        raw(server, "/embed", photo, "application/octet-stream"),
        raw(server, "/embed", iter([photo[:1000], photo[1000:]]), "image/jpeg"),  # without a length
    ):
        assert answer.status_code == 200
        assert answer.json() == by_url.json()
        for header in ("X-Image-Format", "X-Image-Size", "X-Embedding-Model", "X-Embedding-Fingerprint"):
            assert answer.headers[header] == by_url.headers[header]
    assert np.array(by_url.json()["embedding"]) @ reference(photo) >= 0.9999


def test_files_of_a_batch_are_answered_by_position(server: Server, photo: bytes) -> None:
    other = pictures.encoded(pictures.photo(300, 200), "PNG")
    alone = [raw(server, "/embed", file, "image/*").json()["embedding"] for file in (photo, other)]
    files = [("files", file) for file in (photo, b"no image", other)]
    answer = form(server, "/embed_batch", *files, details="true").json()
    assert answer["embeddings"] == [alone[0], None, alone[1]]
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [(1, "unsupported_format")]
    assert answer["images"][0]["sha256"] == hashlib.sha256(photo).hexdigest()
    assert answer["images"][1:] == [
        None,
        {
            "format": "PNG",
            "width": 300,
            "height": 200,
            "bytes": len(other),
            "sha256": hashlib.sha256(other).hexdigest(),
        },
    ]
    assert "images" not in form(server, "/embed_batch", *files).json()
    for said in ("True", "1", "on"):
        assert "images" in form(server, "/embed_batch", *files, details=said).json()
    assert_error(form(server, "/embed_batch", *files, details="maybe"), 400, "invalid_request")


def test_an_image_that_fails_has_its_own_error(server: Server, photo: bytes) -> None:
    assert_error(form(server, "/embed", ("file", b"no image")), 422, "unsupported_format")
    assert_error(form(server, "/embed", ("file", photo[: len(photo) // 2])), 422, "bad_image")
    assert_error(form(server, "/embed", ("file", b"")), 422, "unsupported_format")
    assert_error(raw(server, "/embed", b"", "image/png"), 400, "invalid_request")


def test_a_form_is_told_what_it_lacks(server: Server, photo: bytes) -> None:
    answer = form(server, "/embed", ("picture", photo), note="hello")
    assert_error(answer, 400, "invalid_request")
    assert answer.json()["error"] == (
        "the form has no file under \"file\"; it has 'note', 'picture' (curl: -F file=@cat.jpg)"
    )
    answer = form(server, "/embed", ("file", photo), ("file", photo))
    assert_error(answer, 400, "invalid_request")
    assert "/embed_batch takes several" in answer.json()["error"]
    assert_error(form(server, "/embed_batch", ("file", photo)), 400, "invalid_request")


def test_64_files_are_taken_and_65_are_not(server: Server) -> None:
    tiny = io.BytesIO()
    Image.new("L", (1, 1)).save(tiny, "PNG")
    answer = form(server, "/embed_batch", *[("files", tiny.getvalue())] * 64)
    assert answer.json()["errors"] == []
    assert len(answer.json()["embeddings"]) == 64
    answer = form(server, "/embed_batch", *[("files", tiny.getvalue())] * 65)
    assert_error(answer, 400, "invalid_request")
    assert answer.json()["error"] == "the body has 65 files; the limit is 64"
    assert_error(form(server, "/embed_batch", *[("files", b"x")] * 10_000), 400, "invalid_request")


HEAD = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
FORM = "multipart/form-data; boundary=B"
NO_FORM = {
    "no boundary": ("multipart/form-data", HEAD + b"x\r\n--B--\r\n"),
    "an empty boundary": ("multipart/form-data; boundary=", HEAD + b"x\r\n--B--\r\n"),
    "a long boundary": ("multipart/form-data; boundary=" + "B" * 5000, b"x"),
    "another boundary": (FORM.replace("=B", "=C"), HEAD + b"x\r\n--B--\r\n"),
    "empty": (FORM, b""),
    "no end": (FORM, HEAD + b"x"),
    "no end of its last part": (FORM, HEAD + b"x\r\n--B"),
    "no name": (FORM, b"--B\r\n\r\nx\r\n--B--\r\n"),
    "no field": (FORM, b"--B--\r\n"),
    "a name that is no text": (
        FORM,
        b'--B\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\nx\r\n--B--\r\n',
    ),
    "a file name of 1 MB": (FORM, HEAD.replace(b'"a"', b'"' + b"a" * 1_000_000 + b'"') + b"x\r\n--B--\r\n"),
    "a thousand headers": (FORM, b"--B\r\n" + b"A: b\r\n" * 1000 + b"\r\nx\r\n--B--\r\n"),
    "a header without end": (FORM, b"--B\r\nContent-Disposition: " + b"a" * 100_000),
    "10,000 parts": (FORM, (HEAD + b"\r\n") * 10_000 + b"--B--\r\n"),
    "10,000 fields": (
        FORM,
        b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 10_000 + b"--B--\r\n",
    ),
    "JSON": (FORM, b'{"url": "ftp://x"}'),
    "bare line feeds": (FORM, HEAD.replace(b"\r\n", b"\n") + b"x\n--B--\n"),
}


@pytest.mark.parametrize("path", ["/embed", "/embed_batch"])
@pytest.mark.parametrize("name", NO_FORM)
def test_what_is_no_form_is_400(server: Server, path: str, name: str) -> None:
    media_type, body = NO_FORM[name]
    logged = server.log.read_text()
    assert_error(raw(server, path, body, media_type), 400, "invalid_request")
    assert server.log.read_text() == logged


def test_a_file_may_hold_nearly_the_boundary(server: Server) -> None:
    padded = pictures.encoded(pictures.photo(300, 200), "PNG") + b"\r\n--\r\n--X\r\n-\r\r\n" * 1000
    body = HEAD + padded + b"\r\n--B--\r\n"
    assert raw(server, "/embed", body, FORM).status_code == 200


@pytest.mark.parametrize(
    ("size", "code"), [(20_000_000, "unsupported_format"), (20_000_001, "image_too_large")]
)
@pytest.mark.parametrize("media_type", [FORM, "image/png"])
def test_a_file_of_20_mb_is_taken_and_of_one_byte_more_is_not(
    server: Server, media_type: str, size: int, code: str
) -> None:
    file = b"x" * size
    body = HEAD + file + b"\r\n--B--\r\n" if media_type == FORM else file
    assert_error(raw(server, "/embed", body, media_type), 422, code)


def test_a_part_that_is_too_large_ends_the_read_at_once(server: Server) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
        top = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(top.encode() + b"%x\r\n%s\r\n" % (len(HEAD), HEAD))
        piece = b"%x\r\n%s\r\n" % (1_000_000, bytes(1_000_000))
        for _ in range(20):
            connection.sendall(piece)
        connection.sendall(b"1\r\nx\r\n")  # and no more: the body never ends
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "image_too_large"


def test_a_body_of_40_mb_is_413(server: Server) -> None:
    body = (HEAD + bytes(10_000_000) + b"\r\n") * 4 + b"--B--\r\n"
    assert_error(raw(server, "/embed_batch", body, FORM), 413, "body_too_large")
