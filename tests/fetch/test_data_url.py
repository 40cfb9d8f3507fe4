# ruff: noqa: RUF001 - characters that only look like ASCII are part of what is tested
"""`data:` URLs: base64 read as forgivingly as browsers read it, within the cap."""

from __future__ import annotations

import base64
import os
import tracemalloc
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.errors import ImageTooLarge, URLNotAllowed
from embedder.fetch.data_url import is_data_url, read_data_url

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
HEAD = "data:image/png;base64,"
MB = 1_000_000


def read(payload: str, *, max_bytes: int = MB) -> bytes:
    return read_data_url(HEAD + payload, max_bytes=max_bytes)


def forgiving_base64(text: str) -> bytes | None:
    """WHATWG Infra, "forgiving-base64 decode", step by step; None is the specification's failure."""
    text = "".join(c for c in text if c not in "\t\n\f\r ")
    if len(text) % 4 == 0:
        text = text.removesuffix("=").removesuffix("=") if text.endswith("==") else text.removesuffix("=")
    if len(text) % 4 == 1 or any(c not in ALPHABET for c in text):
        return None
    bits = "".join(f"{ALPHABET.index(c):06b}" for c in text)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - len(bits) % 8, 8))


def test_a_data_url_is_known_by_its_scheme() -> None:
    assert is_data_url("data:,")
    assert is_data_url("dAtA:image/png;base64,")
    assert not any(map(is_data_url, ("", " data:,", "database:x")))


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        ("Zm9vYg==", b"foob"), ("", b""), (" \n", b""),  # RFC 4648 section 10
        # forgiven: missing padding, blanks, bits left over
        ("Zg", b"f"), ("Zm9vYg", b"foob"), (" Z m\t8\r\n=\f", b"fo"), ("Zh==", b"f"), ("Zm9=", b"fo"),
        # escaped; a plus is a plus, not a blank
        ("Zg%3D%3d", b"f"), ("%2B%2F%2b%2f", b"\xfb\xff\xbf"), ("Zm%0D%0A8%3D%20%09", b"fo"), ("+/+/", b"\xfb\xff\xbf"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "head", [HEAD, "data:;base64,", "data:;\tbas\ne64\r,", "DATA:IMAGE/SVG+XML;charset=utf-8;base64;BASE64,"]
)
def test_base64_is_read_as_browsers_do_whatever_the_media_type(head: str, payload: str, data: bytes) -> None:
    assert forgiving_base64(payload) in (data, None)  # None where there are escapes: they are undone first
    assert read_data_url(head + payload, max_bytes=len(data)) == data


MORE_PADDING_THAN_BELONGS = ["Zg=", "Zg===", "Zm8==", "Zm9v=", "Zm9v====", "=", "====", "Zg==Zg==", "Z=g="]
NO_BASE64 = [
    *(
        "A",
        "AAAA*",
        "AA-A",
        "AA_A",
        "AAA\x0b",
        "AAA\0A",
        "AAAA,AAAA",
        "AAAA%80",
    ),
    *("AAAA%252B", "%2D%5F%2D%5F"),
]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((HEAD + payload, "not valid base64") for payload in (*MORE_PADDING_THAN_BELONGS, *NO_BASE64)),
        *((HEAD + payload, "ASCII") for payload in ("AAAAé", "ＡＡＡＡ", "AAAA\u200b", "AAA\ud800")),
        ("data:;baſe64,Zm9v", "ASCII"),
        *((HEAD + payload, "no escape") for payload in ("%", "AAA%zz", "AAAA%4", "%%41")), ("data:,%", "no escape"),
        *((text, "no comma") for text in (
            "", "data:image/png;base64", "data:#;base64,Zm9v", "http://example.org/data:;base64,Zm9v",
            f"data:{'a' * MB};base64,Zm9v", "data:" + ";base64" * 200_000,
        )),
    ],
    ids=lambda text: ascii(text[:40]),
)  # fmt: skip
def test_what_is_no_data_url_is_refused(text: str, said: str) -> None:
    with pytest.raises(URLNotAllowed, match=said):
        read_data_url(text, max_bytes=MB)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("data:,foo", b"foo"), ("data:base64,Zm9v", b"Zm9v"), ("data:;base64;charset=utf-8,Zm9v", b"Zm9v"),
        ("data:image/png,;base64,Zm9v", b";base64,Zm9v"),
        ("data:image/gif,GIF89a%00%ff%0D%0A=3D%3D", b"GIF89a\0\xff\r\n=3D="),
        ("data:image/png;charset=binary,%89PNG%0d%0a", b"\x89PNG\r\n"), ("data:, a %20 ", b" a   "),
        ("data:image/png; base64,Zm9v", b"foo"), ("data:image/png;base64 ,Zm9v", b"foo"), (HEAD + "Zm9v#x,y", b"foo"),
        (HEAD + "%5a%6D9%76", b"foo"), ("data:image/png;x=" + "a" * 900 + ";base64,Zm9v", b"foo"),
    ],
)  # fmt: skip
def test_other_forms_are_read_as_browsers_do(text: str, data: bytes) -> None:
    assert read_data_url(text, max_bytes=len(data)) == data
    with pytest.raises(ImageTooLarge):
        read_data_url(text, max_bytes=len(data) - 1)


@given(st.binary(max_size=300), st.text("!*'();:@&=+$,/?[]-._~ <>", max_size=10))
def test_escapes_of_any_bytes_are_undone(data: bytes, safe: str) -> None:
    assert read_data_url("data:," + quote(data, safe=safe), max_bytes=MB) == data


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("form", ["padded", "unpadded", "escaped", "blanks"])
def test_a_payload_of_exactly_the_limit_is_read_and_one_byte_more_is_refused(size: int, form: str) -> None:
    def payload(size: int) -> str:
        text = base64.b64encode(os.urandom(size)).decode()
        return {
            "padded": text,
            "unpadded": text.rstrip("="),
            "escaped": quote(text, safe=""),
            "blanks": "\n".join(text) + " " * 5000,
        }[form]

    assert len(read(payload(size), max_bytes=size)) == size
    with pytest.raises(ImageTooLarge) as caught:
        read(payload(size + 1), max_bytes=size)
    assert (caught.value.limit_bytes, caught.value.actual_bytes) == (size, size + 1)


@pytest.mark.parametrize("unit", ["A", "%41", "%0A", "%", " ", "="], ids=ascii)
def test_memory_stays_within_ten_times_the_text_whatever_it_is_made_of(unit: str) -> None:
    # A body may have 32 MB; a worker must not need gigabytes to find out that it is no image.
    text = HEAD + unit * (300_000 // len(unit))
    tracemalloc.start()
    try:
        with suppress(URLNotAllowed, ImageTooLarge):
            read_data_url(text, max_bytes=MB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(text)


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
def test_any_bytes_come_back_however_their_base64_is_written_but_in_the_url_safe_alphabet(
    data: bytes,
) -> None:
    text = base64.b64encode(data).decode()
    for written in (text, text.rstrip("="), quote(text, safe=""), base64.encodebytes(data).decode()):
        assert read(written) == data
    if set(text) & set("+/"):
        with pytest.raises(URLNotAllowed):
            read(base64.urlsafe_b64encode(data).decode())


@given(st.text("AZaz09+/-_ \t\n\f\r\v.,", max_size=30), st.integers(0, 2))
@settings(deadline=None, max_examples=500)
def test_any_text_is_read_as_the_specification_says(text: str, padding: int) -> None:
    letters = sum(c not in " \t\n\f\r" for c in text)
    text += "=" * padding * (letters % 4 + padding == 4)  # right padding or none; wrong has a test of its own
    try:
        data: bytes | None = read(text)
    except URLNotAllowed:
        data = None
    assert data == forgiving_base64(text)


@given(st.text() | st.text().map("data:".__add__) | st.text("A%=2Bé \n,;", max_size=40).map(HEAD.__add__))
@settings(deadline=None, max_examples=500)
def test_any_text_gives_bytes_within_the_limit_or_a_documented_error(text: str) -> None:
    is_data_url(text)
    with suppress(URLNotAllowed, ImageTooLarge):
        assert len(read_data_url(text, max_bytes=10)) <= 10
