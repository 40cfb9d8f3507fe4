"""Files of other formats, broken and cut short: each a documented error, and only the picture counts."""

from __future__ import annotations

import re
import struct
from dataclasses import replace

import numpy as np
import pytest

from embedder.errors import BadImage, UnsupportedFormat
from embedder.images.containers import HEAD_BYTES, first_picture, sniff
from embedder.images.decode import decode_picture
from tests import pictures
from tests.images.mutations import outcome
from tests.images.reference import MAX_PIXELS, RESNET, pixels_of
from tests.pictures import GREY, PALETTE, RGB, encoded, noise, photo, png


def _sample(name: str) -> bytes:
    return pictures.samples()[name]


@pytest.mark.parametrize("name", pictures.samples())
def test_sniff_knows_each_format_by_its_first_16_bytes(name: str) -> None:
    expected = {"jpeg": "JPEG", "mpo": "JPEG", "png": "PNG", "apng": "PNG", "webp": "WEBP", "gif": "GIF"}
    assert sniff(pictures.samples()[name][:HEAD_BYTES]) == expected[name.split("_")[0]]


FOREIGN = {
    "tiff": encoded(photo(9, 9), "TIFF"),
    "bmp": encoded(photo(9, 9), "BMP"),
    "pdf": encoded(photo(9, 9), "PDF"),
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + bytes(99),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "html": b"<!doctype html><img src=x.jpg>",
    "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(99),
    "empty": b"",
    "zeros": bytes(1000),
    "half a jpeg's magic": b"\xff\xd8",
    "gif of another year": b"GIF88a" + bytes(99),
    "webp of another kind": b"RIFF\x24\0\0\0WEBPXXXX" + bytes(99),
    "webp whose first chunk has no size": b"RIFF\x24\0\0\0WEBPVP8Z" + bytes(99),
    "jpeg behind a space": b" " + encoded(photo(9, 9), "JPEG"),
    "jpeg at the end of a pdf": b"%PDF-1.4\n" + encoded(photo(9, 9), "JPEG"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_unsupported(name: str) -> None:
    assert sniff(FOREIGN[name][:HEAD_BYTES]) is None
    with pytest.raises(UnsupportedFormat):
        pixels_of(FOREIGN[name])


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif"])
def test_what_follows_the_picture_changes_nothing(name: str) -> None:
    file = pictures.samples()[name]
    for tail in (b"PK\x03\x04" + bytes(99), b"<script>", pictures.samples()["png"], file):
        assert np.array_equal(pixels_of(file + tail), pixels_of(file))


def test_a_jpeg_in_exif_is_not_the_picture() -> None:
    plain = encoded(photo(300, 200), "JPEG")
    thumbnail = pictures.jpeg_segment(0xE1, pictures.exif(1) + pictures.jpeg_with_scans(100))
    assert np.array_equal(pixels_of(pictures.with_segments(plain, thumbnail)), pixels_of(plain))


# Broken structure

ODD = {
    "jpeg: end before its scans": b"\xff\xd8\xff\xd9",
    "jpeg: scan before its frame": b"\xff\xd8" + pictures.jpeg_segment(0xDA, bytes(10)) + b"\xff\xd9",
    "jpeg: no lines": pictures.jpeg_header_only(9, 0),
    "jpeg: segment of length 0": b"\xff\xd8\xff\xdb\0\0" + _sample("jpeg")[2:],
    "jpeg: segment of length 1": b"\xff\xd8\xff\xdb\0\1" + _sample("jpeg")[2:],
    "jpeg: 20000 x 20000 behind 64 x 64": pictures.jpeg_with_hidden_frame(20_000, 20_000),
    "jpeg: start within": pictures.with_segments(_sample("jpeg"), b"\xff\xd8"),
    "jpeg: two frames": pictures.with_segments(_sample("jpeg"), pictures.jpeg_header_only(9, 9)[2:]),
    "jpeg: arithmetic": _sample("jpeg").replace(b"\xff\xc0", b"\xff\xc9"),
    "jpeg: lossless": _sample("jpeg").replace(b"\xff\xc0", b"\xff\xc3"),
    "jpeg: 12 bits": _sample("jpeg").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
    "jpeg: two components": _sample("jpeg").replace(b"\0\x60\0\x60\3", b"\0\x60\0\x60\2"),
    "png: nothing but its name": b"\x89PNG\r\n\x1a\n",
    "png: no header": b"\x89PNG\r\n\x1a\n" + _sample("png")[33:],
    "png: no data": pictures.png_of_parts(struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0), b"", b""),
    "png: no pixels": pictures.png_of_parts(struct.pack(">IIBBBBB", 0, 9, 8, 2, 0, 0, 0), b"", b""),
    "png: no palette": png(noise(9, 9, 1), 8, PALETTE),
    "png: wrong checksum": _sample("png")[:29] + bytes(4) + _sample("png")[33:],
    "png: 3 bits": png(noise(8, 9, 1), 8, GREY)[:24] + b"\3" + png(noise(8, 9, 1), 8, GREY)[25:],
    "png: short transparent colour": png(noise(9, 9), 8, RGB, before_data=pictures.png_chunk(b"tRNS", b"\0")),
    "webp: canvas only": pictures.webp_of_chunks([pictures.webp_canvas(9, 9)]),
    "webp: 9 x 9 canvas, other picture": pictures.webp_of_chunks(
        [pictures.webp_canvas(9, 9), (b"VP8 ", _sample("webp")[20:])]
    ),
    "webp: 9 x 9 frame, other picture": pictures.webp_of_chunks(
        [
            pictures.webp_canvas(9, 9, flags=2),
            (b"ANIM", bytes(6)),
            (b"ANMF", bytes(6) + b"\x08\0\0\x08\0\0" + bytes(4) + _sample("webp")[12:]),
        ]
    ),
    "webp: chunk longer than the file": pictures.webp_of_chunks([pictures.webp_canvas(9, 9), (b"VP8 ", b"")])[
        :-4
    ]
    + b"\xff\0\0\0",
    "webp: empty chunk": pictures.webp_of_chunks([(b"VP8L", b"")]),
    "gif: no frame": pictures.gif_head(9, 9) + b";",
    "gif: no pixels": pictures.gif_head(0, 0) + pictures.gif_frame(0, 0, b"\1\0") + b";",
    "gif: too few pixels": pictures.gif_head(9, 9) + pictures.gif_frame(9, 9, pictures.GIF_PIXEL) + b";",
}


@pytest.mark.parametrize("name", ODD)
def test_broken_structure_is_a_bad_image(name: str) -> None:
    assert outcome(ODD[name]) == "BadImage"


@pytest.mark.parametrize("name", pictures.samples())
def test_a_picture_of_another_size_than_was_admitted_is_not_decoded(name: str) -> None:
    picture = first_picture(_sample(name), RESNET, max_pixels=MAX_PIXELS)
    for width, height in ((1, 0), (0, 1), (-1, 1)):
        other = replace(picture, width=picture.width + width, height=picture.height + height)
        with pytest.raises(BadImage, match="it states two sizes"):
            decode_picture(other, RESNET)


def test_an_error_names_the_format_or_the_size_and_nothing_of_our_insides() -> None:
    for data in ODD.values():
        with pytest.raises(BadImage) as raised:
            pixels_of(data)
        assert re.search("JPEG|PNG|WEBP|GIF|which is no pixels", str(raised.value))
        assert not any(word in str(raised.value) for word in ("0x", "BytesIO", "PIL", "Error", "<"))


@pytest.mark.parametrize("name", pictures.samples())
def test_a_file_cut_short_is_a_bad_image(name: str) -> None:
    file = _sample(name)
    if name == "mpo":  # its first picture is all of it that counts
        file = file[: file.index(b"\xff\xd9") + 2]
    for kept in (HEAD_BYTES, 40, len(file) // 4, len(file) // 2, len(file) * 3 // 4, len(file) - 1):
        assert outcome(file[:kept]) == "BadImage", f"{kept} of {len(file)} bytes"
