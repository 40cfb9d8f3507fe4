"""Which format a file is of, what its header states, and what it is called when it is of none."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from embedder.errors import UnsupportedFormat
from embedder.images.formats import FORMATS, HEAD_BYTES, ON, Format, named, recognised, stated_size
from tests import pictures
from tests.pictures import encoded, photo

NAMES = {"mpo": "JPEG", "apng": "PNG"}


def row(name: str) -> Format:
    return next(format for format in FORMATS if format.name == name)


@pytest.mark.parametrize("name", pictures.samples())
def test_each_format_is_known_by_its_first_bytes(name: str) -> None:
    kind = name.partition("_")[0]
    assert recognised(pictures.samples()[name][:HEAD_BYTES], ON).name == NAMES.get(kind, kind.upper())


@pytest.mark.parametrize("size", [(1, 1), (255, 3), (300, 260), (1, 5000), (4099, 2)])
@pytest.mark.parametrize("format", [*(format.name for format in ON if format.name != "ICO")])
def test_the_header_states_the_size(format: str, size: tuple[int, int]) -> None:
    for mode in ("RGB", "L") if format != "GIF" else ("L",):
        file = encoded(Image.new(mode, size, 77), format)
        assert stated_size(row(format), file) == size


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("WEBP", {"lossless": True}),
        ("JPEG", {"progressive": True, "exif": pictures.exif(6) + bytes(30_000)}),
        ("TIFF", {"big_tiff": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"exif": pictures.exif(6)}),
    ],
)
def test_the_header_states_the_size_of_other_kinds_too(format: str, options: dict[str, object]) -> None:
    assert stated_size(row(format), encoded(photo(301, 99), format, **options)) == (301, 99)


def test_a_bitmap_may_be_stored_from_the_top() -> None:
    file = bytearray(encoded(photo(30, 20), "BMP"))
    struct.pack_into("<i", file, 22, -20)
    assert stated_size(row("BMP"), bytes(file)) == (30, 20)


def test_of_an_icon_the_largest_picture_counts() -> None:
    file = encoded(photo(256, 256), "ICO", sizes=[(16, 16), (256, 256), (48, 48)])
    assert stated_size(row("ICO"), file) == (256, 256)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_whose_directory_is_beyond_all_files_has_no_size(order: str) -> None:
    begins = {"<": b"II+\0", ">": b"MM\0+"}[order]
    for offset in (2**63, 2**64 - 1, 10**6):
        assert (
            stated_size(row("TIFF"), begins + struct.pack(order + "HHQ", 8, 0, offset) + bytes(100)) is None
        )


@pytest.mark.parametrize("name", pictures.samples())
def test_a_header_that_is_cut_short_states_no_size_or_the_right_one(name: str) -> None:
    file = pictures.samples()[name]
    format = recognised(file[:HEAD_BYTES], ON)
    assert stated_size(format, file) == ((64, 64) if name == "jpeg_ycck" else (96, 96))
    assert {stated_size(format, file[:kept]) for kept in range(64)} <= {
        None,
        (0, 0),
        (96, 96),
        (32, 32),
    }


OTHERS = {
    "a HEIC file": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
    "a HEIC file ": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99),
    "a JXL file": b"\xff\x0a" + bytes(99),
    "a JXL file ": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99),
    "an SVG drawing": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "an SVG drawing ": b'<?xml version="1.0"?>\n<!-- made by hand --><svg>',
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>',
    "a web page": b"<!doctype html><img src=x.jpg>",
    "a web page ": b"\r\n  <!DOCTYPE HTML PUBLIC",
    "a web page  ": b"<html><head>",
    "a PDF document": encoded(photo(9, 9), "PDF"),
    "JSON": b'{"error": "not found"}',
    "JSON ": b"[]",
    "an SVG drawing  ": b'<?xml version="1.0"?>\n<!-- Generator: a program of a long name, and its version -->\n<svg ',
    "an SVG drawing   ": b"<!-- a --> <!-- b --><!doctype svg>",
    "a web page   ": b"\xef\xbb\xbf<!doctype html>",
    "a web page    ": b"<br />\n<b>Warning</b>: mysqli_connect()",
    "a web page     ": b'<?xml version="1.0"?><!DOCTYPE html PUBLIC',
    "a web page      ": b"<!---->" * 146,  # in no more than one way
    "JSON  ": b'\xef\xbb\xbf{"a": 1}',
    "this is text": b"Not found",
    "this is text ": b"/9j/4AAQSkZJRgABAQAAAQABAAD/",
    "a data: URL as text": b"data:image/png;base64,iVBORw0KGgo=",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "a video ": b"RIFF\x24\0\0\0AVI LIST" + bytes(99),
    "sound": b"ID3\4\0" + bytes(99),
    "a cursor": b"\0\0\2\0\1\0" + bytes(99),
    "a video": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
    "a Photoshop file": b"8BPS\0\1" + bytes(99),
    "a JPEG 2000 file": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
    "a ZIP archive": b"PK\x03\x04" + bytes(99),
    "the content is empty": b"",
}
NOTHING = {
    "zeros": bytes(1000),
    "half a jpeg's magic": b"\xff\xd8",
    "gif of another year": b"GIF88a" + bytes(99),
    "webp of another kind": b"RIFF\x24\0\0\0WEBPXXXX" + bytes(99),
    "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(99),
    "text that begins like a bitmap": b"BMW builds cars, and bicycles too" + bytes(99),
    "jpeg behind a space": b" " + encoded(photo(9, 9), "JPEG"),
    "a TIFF of another kind": b"II\x2c\0" + bytes(99),
}


@pytest.mark.parametrize("called", OTHERS)
def test_what_is_not_taken_is_called_by_its_name(called: str) -> None:
    with pytest.raises(
        UnsupportedFormat, match=rf"{called.strip()}.*; taken are JPEG, PNG, WEBP, GIF, AVIF, BMP, TIFF, ICO$"
    ):
        recognised(OTHERS[called][:HEAD_BYTES], ON)


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_nothing_known_is_no_image(name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=r"^the content is no image; taken are"):
        recognised(NOTHING[name][:HEAD_BYTES], ON)


def test_a_format_that_is_off_is_called_by_its_name() -> None:
    with pytest.raises(UnsupportedFormat, match=r"^this is a TIFF file; taken are PNG, GIF$"):
        recognised(encoded(photo(9, 9), "TIFF")[:HEAD_BYTES], named(["GIF", "PNG"]))


def test_the_smallest_files_there_are_are_long_enough() -> None:
    gif = pictures.gif_head(1, 1) + pictures.gif_frame(1, 1, pictures.GIF_PIXEL) + b";"
    assert len(gif) < HEAD_BYTES
    assert recognised(gif, ON).name == "GIF"
    with Image.open(io.BytesIO(gif)) as image:
        assert image.size == (1, 1)
