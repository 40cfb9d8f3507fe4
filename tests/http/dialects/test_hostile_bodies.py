"""Bodies that no dialect can read: each answers in its own shape, with its own documented code."""

from __future__ import annotations

import pytest
import requests

from tests.server import Server

OWN = ("/embed", "/embed_batch")
OPENAI = ("/v1/embeddings", "/embeddings")
WEAVIATE = ("/vectors", "/vectorize")
JSON = "application/json"
FORM = "multipart/form-data; boundary=B"
FIELD = b'--B\r\nContent-Disposition: form-data; name="url"\r\n\r\nftp://x\r\n--B--\r\n'
INVALID, UNSUPPORTED = (400, "invalid_request"), (415, "unsupported_media_type")
BODIES = {
    "nothing": (JSON, b"", INVALID),
    "no JSON": (JSON, b"{'input': 1}", INVALID),
    "no UTF-8": (JSON, b'{"input": "\xff"}', INVALID),
    "a lone surrogate": (JSON, rb'{"input": "\ud800"}', INVALID),
    "a number of 100,000 digits": (JSON, b'{"input": ' + b"9" * 100_000 + b"}", INVALID),
    "200,000 deep": (JSON, b'{"input": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", INVALID),
    "a million values": (JSON, b'{"input": [' + b"1," * 1_000_000 + b"1]}", INVALID),
    "a list": (JSON, b"[]", INVALID),
    "a form under JSON's name": (JSON, FIELD, INVALID),
    "a page": ("text/html", b"{}", UNSUPPORTED),
    "a pickle": ("application/vnd.bentoml+pickle", b"\x80\x04N.", UNSUPPORTED),
    "two types": (f"{JSON}, image/png", b"{}", UNSUPPORTED),
}


def ask(server: Server, path: str, media_type: str, body: bytes) -> tuple[int, str]:
    """The status and the code of an error, which has the shape of `path`."""
    answer = requests.post(server.url + path, data=body, headers={"Content-Type": media_type}, timeout=60)
    content = answer.json()
    if path in OPENAI:
        assert content.keys() == {"error", "detail"}
        content = content["error"]
        assert content.keys() == {"message", "type", "param", "code"}
        assert (content["type"], content["param"]) == ("invalid_request_error", None)
        return answer.status_code, content["code"]
    assert content.keys() == {"error", "code"}
    assert isinstance(content["error"], str)
    return answer.status_code, content["code"]


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", [*OWN, *OPENAI, *WEAVIATE])
def test_what_can_not_be_read_is_told_in_the_shape_of_its_path(server: Server, path: str, name: str) -> None:
    media_type, body, error = BODIES[name]
    assert ask(server, path, media_type, body) == error


def test_a_form_is_read_only_where_files_are_taken(server: Server) -> None:
    for path in OWN:
        assert ask(server, path, FORM, FIELD) == INVALID  # it has no file
    for path in (*OPENAI, *WEAVIATE):
        assert ask(server, path, FORM, FIELD) == UNSUPPORTED
