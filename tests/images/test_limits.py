"""Limits: what is refused by its header, and what becomes of small files that cost much."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from embedder.errors import TooManyPixels
from embedder.images import decoders
from tests import pictures
from tests.images.reference import assert_close, pixels_of, recipe
from tests.images.test_decoders import all_there, outcome, started
from tests.pictures import RGB, encoded, noise, photo, png


def _sample(name: str) -> bytes:
    return pictures.samples()[name]


def _in_png(parts: bytes) -> bytes:
    return _sample("png")[:33] + parts + _sample("png")[33:]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"])
def test_exactly_max_pixels_passes_and_one_more_row_is_refused(format: str) -> None:
    assert pixels_of(encoded(photo(100, 80), format), max_pixels=8000).shape == (224, 224, 3)
    with pytest.raises(TooManyPixels, match=r"100 x 81, 8100 pixels; the limit is 8000"):
        pixels_of(encoded(photo(100, 81), format), max_pixels=8000)


HUGE = {
    "jpeg, a header and nothing else": pictures.jpeg_header_only(65_500, 65_500),
    "png, a header and nothing else": b"\x89PNG\r\n\x1a\n"
    + pictures.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 1)),
    "webp canvas": pictures.webp_of_chunks([pictures.webp_canvas(16_383, 16_383)]),
    "animated webp canvas": pictures.webp_of_chunks(
        [pictures.webp_canvas(2**24, 2**24, flags=2), (b"ANIM", bytes(6))]
    ),
    "lossless webp": pictures.webp_of_chunks([(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20))]),
    "gif canvas": pictures.gif_head(65_535, 65_535) + pictures.gif_frame(1, 1, pictures.GIF_PIXEL) + b";",
    "gif frame over a small canvas": pictures.gif_head(1, 1)
    + pictures.gif_frame(65_535, 65_535, pictures.GIF_PIXEL)
    + b";",
    "gif frame far off its canvas": pictures.gif_head(1, 1)
    + pictures.gif_frame(1, 1, pictures.GIF_PIXEL, left=65_535, top=65_535)
    + b";",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_small_file_of_a_huge_picture_is_refused_by_its_header(name: str) -> None:
    with pytest.raises(TooManyPixels):
        pixels_of(HUGE[name])


def test_an_icon_of_a_larger_picture_than_its_directory_states_is_refused() -> None:
    icon = bytearray(encoded(photo(96, 96), "ICO", sizes=[(96, 96)]))
    data = pictures.png_bomb(8_000, 8_000)
    struct.pack_into("<II", icon, 14, len(data), 22)
    with pytest.raises(TooManyPixels):
        pixels_of(bytes(icon[:22]) + data)


def test_a_gifs_canvas_grows_with_its_first_frame_and_is_clear_around_it() -> None:
    frame = pictures.gif_frame(1, 1, pictures.GIF_PIXEL, left=40, top=30)
    control = b"!\xf9\x04\x09\0\0\0\0"  # transparent, and disposed of by what was there before
    for gif in (pictures.gif_head(20, 25) + frame + b";", pictures.gif_head(20, 25) + control + frame + b";"):
        with Image.open(io.BytesIO(gif)) as image:
            assert image.size == (41, 31)
        assert_close(pixels_of(gif), recipe(Image.new("RGB", (41, 31), "white")))


def test_a_png_of_many_megabytes_passes_in_the_small_chunks_of_real_encoders() -> None:
    # ffmpeg writes 4096 bytes to a chunk: 2117 of them here. libpng writes 8192 where nobody asks for more.
    samples = noise(1_700, 1_700)
    whole = png(samples, 8, RGB)
    data = whole[41:-16]
    chunks = b"".join(
        pictures.png_chunk(b"IDAT", data[first : first + 4096]) for first in range(0, len(data), 4096)
    )
    theirs = recipe(Image.fromarray(samples.astype(np.uint8)))
    assert_close(pixels_of(whole[:33] + chunks + whole[-12:]), theirs)


def test_an_alpha_that_is_not_compressed_costs_no_more_than_its_pixels() -> None:
    plain = encoded(photo(3_800, 3_200), "WEBP", method=0)
    alpha = bytes(1) + b"\xff" * (3_800 * 3_200)  # as cwebp's -alpha_method 0 writes it
    canvas = pictures.webp_canvas(3_800, 3_200, flags=0x10)
    opaque = pictures.webp_of_chunks([canvas, (b"ALPH", alpha), *pictures.webp_chunks(plain)])
    assert 12_000_000 < len(opaque) < 20_000_000
    assert_close(pixels_of(opaque), pixels_of(plain))


def test_a_lossless_webp_of_many_megabytes_passes() -> None:
    picture = np.asarray(photo(1500, 1000)).astype(np.int64) + noise(1500, 1000, highest=7)
    webp = encoded(Image.fromarray(picture.clip(0, 255).astype(np.uint8)), "WEBP", lossless=True, method=0)
    ((kind, body),) = pictures.webp_chunks(webp)
    for chunks in ([(kind, body + bytes(20_000_000))], [(kind, body), (b"JUNK", bytes(80_000_000))]):
        assert np.array_equal(pixels_of(pictures.webp_of_chunks(chunks)), pixels_of(webp))


def test_a_second_header_can_not_make_a_png_larger_than_the_first_said() -> None:
    second = pictures.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    assert np.array_equal(pixels_of(_in_png(second)), pixels_of(_sample("png")))


# Floods: small files, or parts of files, that take Pillow seconds to hours. A child has so much time and memory for
# each, and is replaced when that is used up. `make overload` and `make soak` watch what they cost others.


def _overlapping_exif() -> bytes:
    entries = struct.pack("<HHII", 0x0111, 7, 4_000_000, 0) * 65_535
    return b"II*\0" + struct.pack("<IH", 8, 65_535) + entries + bytes(4_000_000)


def _gif_of_7000(data: bytes) -> bytes:
    return pictures.gif_head(7_000, 7_000) + pictures.gif_frame(7_000, 7_000, data) + b";"


def _tiff_of_tags(count: int) -> bytes:
    entries = struct.pack("<HHII", 0x0111, 4, 4_000_000, 8) * count
    sides = struct.pack("<HHII", 256, 4, 1, 9) + struct.pack("<HHII", 257, 4, 1, 9)
    return b"II*\0" + struct.pack("<IH", 8, count + 2) + sides + entries + bytes(4)


TABLE = b"\0" + bytes(range(1, 65))  # its number and precision, and its 64 divisors
PIXEL_FRAME = pictures.gif_frame(1, 1, pictures.GIF_PIXEL)
TOO_LONG = "bad_image: decoding the image took longer than"
BROKEN = "can't be decoded: damaged or cut short"

FLOODS: dict[str, tuple[tuple[str, ...], Callable[[], bytes]]] = {
    "500 scans": (
        ("JPEG", TOO_LONG),
        lambda: pictures.jpeg_with_scans(500, width=1000, height=1000),
    ),
    "20 MB of quantisation tables": (
        ("JPEG", TOO_LONG),
        lambda: pictures.with_segments(_sample("jpeg"), pictures.jpeg_segment(0xDB, TABLE * 1_008) * 300),
    ),
    "4.9 million empty comments": (
        ("JPEG", TOO_LONG),
        lambda: pictures.with_segments(_sample("jpeg"), b"\xff\xfe\0\2" * 4_900_000),
    ),
    "1900 segments of EXIF": (
        ("JPEG",),
        lambda: pictures.with_segments(
            _sample("jpeg"), pictures.jpeg_segment(0xE1, b"Exif\0\0" + bytes(9_000)) * 1_900
        ),
    ),
    "20 MB of fill bytes": (("JPEG",), lambda: _sample("jpeg")[:-2] + b"\xff" * 19_000_000 + b"\xff\xd9"),
    "20 MB of restarts": (("JPEG",), lambda: _sample("jpeg")[:-2] + b"\xff\xd0" * 9_000_000 + b"\xff\xd9"),
    "a million chunks": (
        ("PNG", TOO_LONG),
        lambda: _in_png(pictures.png_chunk(b"teSt", b"") * 1_000_000),
    ),
    "1900 texts that inflate to a megabyte": (
        ("PNG",),
        lambda: _in_png(pictures.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 1_900),
    ),
    "EXIF values that overlap": (("PNG",), lambda: _in_png(pictures.png_chunk(b"eXIf", _overlapping_exif()))),
    "a TIFF of overlapping values": (
        ("of a kind", BROKEN, TOO_LONG, "memory"),
        lambda: _tiff_of_tags(60_000),
    ),
    "300 000 WebP chunks": (
        ("WEBP", BROKEN, TOO_LONG),
        lambda: pictures.webp_of_chunks([pictures.webp_canvas(9, 9), *[(b"JUNK", b"")] * 300_000]),
    ),
    "a lossless WebP of prefix codes": (("WEBP", BROKEN, "memory"), pictures.webp_of_codes),
    "a comment in 9 million blocks": (
        ("GIF", TOO_LONG),
        lambda: pictures.gif_head(9, 9) + b"!\xfe" + b"\1a" * 9_000_000 + b"\0" + PIXEL_FRAME + b";",
    ),
    "a million frames": (("GIF",), lambda: _sample("gif")[:-1] + PIXEL_FRAME * 1_000_000),
    "20 MB of end codes": ((BROKEN,), lambda: _gif_of_7000((b"\xff" + b"\x6d\xdb\xb6" * 85) * 77_000)),
    "a pixel on a canvas of 49 million": (
        ("GIF",),
        lambda: pictures.gif_head(7_000, 7_000) + PIXEL_FRAME + b";",
    ),
    "49 megapixels with an end but no middle": (
        ("JPEG",),
        lambda: encoded(Image.new("RGB", (7_000, 7_000)), "JPEG")[:2_000] + b"\xff\xd9",
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_decoded_or_stopped_and_costs_nothing_else(name: str, photo: bytes) -> None:
    expected, make = FLOODS[name]
    async with started(program=decoders.PROGRAM, timeout_s=5) as made:
        said = await outcome(made, make())
        assert any(words in said for words in expected), said
        assert await outcome(made, photo) == "JPEG"
        await all_there(made)
