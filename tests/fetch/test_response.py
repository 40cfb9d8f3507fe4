"""A response without a socket: in any pieces it is the same, and it says when its connection may carry another."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import ImageTooLarge
from embedder.fetch.failures import Broken
from embedder.fetch.head import Head
from embedder.fetch.response import Receive, Response
from tests.answers import CAT, HEADER_FLOODS, OK, chunked, with_length

SMALL = CAT[:300]
CHUNKS = chunked(SMALL[:100], SMALL[100:], b"")
ANSWERS = [
    with_length(SMALL),
    CHUNKS,
    CHUNKS.replace(b"chunked", b"chunked\r\nContent-Length: 7"),
    OK + b"\r\n" + SMALL,
    b"\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    + with_length(SMALL, b"nonsense\r\nA: b\r\n folded\r\n"),
    with_length(SMALL).replace(b"\r\n", b"\n"),
    with_length(SMALL).replace(b"200", b"404"),
    with_length(SMALL, b"Content-Length: 7\r\n"),
    with_length(SMALL, length=len(SMALL) + 1),
    CHUNKS.replace(b"64\r\n", b"zz\r\n"),
    OK + b"A: \0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" * 16 + with_length(SMALL),
    b"SSH-2.0-OpenSSH_9.6\r\n",
]


def outcome(pieces: Iterable[bytes]) -> tuple[int, bytes] | str:
    """The status and what came of the body, or that it is broken."""
    body: list[bytes] = []
    response = Response(lambda head: body.append if head.status == 200 else None)
    try:
        for piece in pieces:
            response.feed(piece)
            if response.is_over:
                break
        else:
            response.end()
    except Broken as exc:
        return type(exc).__name__
    assert response.head is not None
    return response.head.status, b"".join(body)


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 600), max_size=8))
def test_a_response_is_the_same_in_any_pieces(answer: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(answer)]
    pieces = [answer[begin:end] for begin, end in pairwise(edges)]
    assert outcome(pieces) == outcome([answer])
    assert outcome(answer[at : at + 1] for at in range(len(answer))) == outcome([answer])


@pytest.mark.parametrize(
    ("answer", "is_reusable"),
    [
        (with_length(SMALL), True),
        (with_length(b""), True),
        (CHUNKS, True),
        (with_length(SMALL).replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (with_length(SMALL, b"Connection: Keep-Alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"), True),
        (with_length(SMALL, b"Connection: keep-alive, Close\r\n"), False),
        # What is not said plainly, others may read in another way.
        (with_length(SMALL, b"Content-Length: 300\r\n"), False),
        (with_length(SMALL, b"Transfer-Encoding: identity\r\n"), False),
        (CHUNKS.replace(b"chunked", b"chunked\r\nContent-Length: 7"), False),
        (CHUNKS.replace(b"chunked", b"chunked, chunked"), False),
        # What is behind it, whole or not, must answer nobody.
        *(
            (answer + behind, False)
            for answer in (with_length(SMALL), CHUNKS)
            for behind in (b"x", b"H", CHUNKS)
        ),
        (with_length(b"").replace(b"200", b"101"), False),
    ],
)
def test_a_connection_carries_another_response_only_behind_a_plain_one(
    answer: bytes, is_reusable: bool
) -> None:
    response = Response(lambda head: lambda piece: None)
    response.feed(answer)
    assert (response.is_over, response.is_reusable) == (True, is_reusable)


@pytest.mark.parametrize("came", [SMALL, SMALL[:-1]], ids=["all", "some"])
def test_of_a_body_that_is_not_wanted_no_more_is_read(came: bytes) -> None:
    for answer in (with_length(came, length=len(SMALL)), chunked(came, *[b""] * (came == SMALL))):
        response = Response(lambda head: None)
        response.feed(answer)
        assert (response.is_over, response.is_reusable) == (True, came == SMALL)


@pytest.mark.parametrize("at", ["head", "body"])
def test_what_refuses_a_response_is_raised_once_and_ends_it(at: str) -> None:
    def refuse(piece: bytes) -> None:
        raise ImageTooLarge(limit_bytes=1)

    def answered(head: Head) -> Receive:
        if at == "head":
            refuse(b"")
        return refuse

    response = Response(answered)
    with pytest.raises(ImageTooLarge):
        response.feed(with_length(SMALL, length=5000))
    assert (response.is_over, response.is_reusable) == (True, False)


@pytest.mark.parametrize("flood", HEADER_FLOODS.values(), ids=HEADER_FLOODS)
def test_a_head_is_bounded_however_it_comes(flood: bytes) -> None:
    assert outcome([flood]) == outcome([flood[:100], flood[100:]]) == "HeadTooLong"
