"""Which requests carry a key that is accepted."""

from __future__ import annotations

import pytest

from embedder.http.api_keys import APIKeys

ONE, OTHER = "one-key-of-many-letters", "other-key-of-many-letters"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", f"Bearer {ONE}".encode())],
        [(b"authorization", f"bearer  {OTHER} ".encode())],
        [(b"x-api-key", ONE.encode())],
        [(b"x-api-key", f" {ONE}\t".encode())],
        [(b"x-api-key", b"wrong"), (b"authorization", f"Bearer {OTHER}".encode())],
        [(b"authorization", b"Basic dXNlcjpwYXNz"), (b"x-api-key", OTHER.encode())],
    ],
)
def test_each_of_the_keys_is_accepted_in_either_header(headers: list[tuple[bytes, bytes]]) -> None:
    assert APIKeys([ONE, OTHER]).accept(headers)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", ONE.encode())],
        [(b"authorization", f"Basic {ONE}".encode())],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", ONE[:-1].encode())],
        [(b"x-api-key", ONE.upper().encode())],
        [(b"x-api-key", f"{ONE},{OTHER}".encode())],
        [(b"x-api-key", b"\xff\xfe\x00")],
        [(b"cookie", ONE.encode())],
        [(b"x-api-key", b"wrong")] * 2 + [(b"x-api-key", ONE.encode())],
    ],
)
def test_anything_else_is_not(headers: list[tuple[bytes, bytes]]) -> None:
    assert not APIKeys([ONE, OTHER]).accept(headers)


def test_without_keys_everybody_is_let_in() -> None:
    assert APIKeys([]).accept([])


def test_keys_are_not_shown() -> None:
    keys = APIKeys([ONE])
    assert ONE not in repr(keys)
    assert ONE not in str(vars(keys))
