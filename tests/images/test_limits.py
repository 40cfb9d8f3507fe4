"""Limits: what is refused by its header, what the decoder gets, and how much memory it takes."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from embedder.errors import BadImage, TooManyPixels
from embedder.images.containers import first_picture
from embedder.images.decode import decode
from embedder.model.spec import Preprocessing
from tests import pictures
from tests.images.mutations import outcome
from tests.images.reference import MAX_PIXELS, RESNET, assert_close, pixels_of, recipe
from tests.pictures import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, encoded, noise, photo, png
from tests.server import ROOT


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_exactly_max_pixels_passes_and_one_more_row_is_refused(format: str) -> None:
    assert decode(encoded(photo(100, 80), format), RESNET, max_pixels=8000).shape == (224, 224, 3)
    with pytest.raises(TooManyPixels, match=r"100 x 81, 8100 pixels; the limit is 8000"):
        decode(encoded(photo(100, 81), format), RESNET, max_pixels=8000)


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
    with pytest.raises(TooManyPixels):  # before Pillow sees it
        first_picture(HUGE[name], RESNET, max_pixels=MAX_PIXELS)


# Pillow warns of pictures over 89 million pixels, and refuses them over 179 million.
OVER_PILLOWS_LIMIT: dict[str, Callable[[int], bytes]] = {
    "png": lambda width: pictures.png_bomb(width, 10_000, 1, GREY),
    "webp": lambda width: pictures.webp_of_one_colour(width, 10_000),
    "gif that is disposed of": lambda width: encoded(Image.new("P", (width, 10_000)), "GIF", disposal=2),
    "gif that grows": lambda width: (
        pictures.gif_head(1, 1) + encoded(Image.new("L", (width, 10_000)), "GIF").partition(b"\0" * 9)[2]
    ),
    "jpeg": lambda width: encoded(Image.new("L", (width, 10_000)), "JPEG"),
}


@pytest.mark.parametrize("name", OVER_PILLOWS_LIMIT)
def test_a_limit_above_pillows_own_is_used_without_a_warning(name: str) -> None:
    for width in (10_000,) if name in ("webp", "jpeg") else (10_000, 18_000):
        large = OVER_PILLOWS_LIMIT[name](width)
        assert (decode(large, RESNET, max_pixels=width * 10_000) == 0).all()
        with pytest.raises(TooManyPixels):
            decode(large, RESNET, max_pixels=width * 10_000 - 1)


def test_of_webps_pillows_own_limit_is_the_highest_and_the_error_names_it() -> None:
    large = pictures.webp_of_one_colour(16_000, 12_000)
    with pytest.raises(TooManyPixels, match="192000000 pixels; the limit is 178956970 pixels"):
        decode(large, RESNET, max_pixels=200_000_000)


def test_pillow_is_left_as_it_was_and_not_needed_to_tell_formats() -> None:
    program = """
import sys
from embedder.images import containers
assert "PIL" not in sys.modules
from PIL import Image, ImageFile
switches = lambda: (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)
before = switches()
from embedder.images.decode import decode
from embedder.model.spec import Preprocessing
decode(sys.stdin.buffer.read(), Preprocessing(256, 224), max_pixels=10_000)
assert switches() == before
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, input=_sample("gif"), check=True)


def test_a_gif_whose_frame_is_larger_than_its_canvas_is_what_pillow_makes_of_it() -> None:
    frame = pictures.gif_frame(1, 1, pictures.GIF_PIXEL, left=40, top=30)
    control = b"!\xf9\x04\x09\0\0\0\0"  # transparent, and disposed of by what was there before
    for gif in (pictures.gif_head(20, 25) + frame + b";", pictures.gif_head(20, 25) + control + frame + b";"):
        with Image.open(io.BytesIO(gif)) as image:
            expected = Image.alpha_composite(
                Image.new("RGBA", image.size, "white"), image.convert("RGBA")
            ).convert("RGB")
        assert expected.size == (41, 31)
        assert_close(pixels_of(gif), recipe(expected))


def _jpeg_of_segments(count: int) -> bytes:
    plain = encoded(photo(50, 50), "JPEG")
    comments = pictures.jpeg_segment(0xFE, b"") * (count - len(pictures.jpeg_segments(plain)))
    return pictures.with_segments(plain, comments)


def _webp_frame_of_chunks(count: int) -> bytes:
    chunks = [*pictures.webp_chunks(_sample("webp")), *[(b"JUNK", b"")] * (count - 1)]
    frame = bytes(6) + 2 * struct.pack("<I", 95)[:3] + bytes(4) + pictures.webp_of_chunks(chunks)[12:]
    canvas = pictures.webp_canvas(96, 96, flags=2)
    return pictures.webp_of_chunks([canvas, (b"ANIM", bytes(6)), (b"ANMF", frame)])


@pytest.mark.parametrize(
    ("make", "most", "of"),
    [
        (pictures.jpeg_with_scans, 64, "scans"),
        (_jpeg_of_segments, 2000, "segments"),
        (lambda count: pictures.png_with_chunks(count, b"teSt"), 2000, "chunks"),
        (lambda count: pictures.png_with_chunks(count, b"IDAT"), 2000, "chunks"),
        (_webp_frame_of_chunks, 2000, "chunks in its first frame"),
    ],
)
def test_as_many_parts_as_are_allowed_pass_and_one_more_is_refused(
    make: Callable[[int], bytes], most: int, of: str
) -> None:
    assert pixels_of(make(most)).shape == (224, 224, 3)
    with pytest.raises(BadImage, match=f"more than {most} {of}"):
        pixels_of(make(most + 1))


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


def test_scans_times_pixels_are_limited_too() -> None:
    # Over 50 million pixels, 20 scans of one component; here 333 million over three is the last.
    scans = b"".join(pictures.jpeg_segment(0xDA, b"\x03" + bytes(9)) for _ in range(7))
    frame = struct.pack(">BHHB", 8, 7_000, 7_000, 3) + b"\x01\x11\0\x02\x11\0\x03\x11\0"
    jpeg = b"\xff\xd8" + pictures.jpeg_segment(0xC2, frame) + scans + b"\xff\xd9"
    with pytest.raises(BadImage, match="1029000000 samples over its scans; the limit is 1000000000"):
        pixels_of(jpeg)


@pytest.mark.parametrize(
    ("frame", "in_first_scan", "bytes_per_pixel"),
    [(0xC0, 3, 2), (0xC1, 3, 2), (0xC0, 2, 8), (0xC1, 1, 8), (0xC2, 3, 8)],
)
def test_a_jpeg_of_several_scans_counts_the_samples_that_the_decoder_holds(
    frame: int, in_first_scan: int, bytes_per_pixel: int
) -> None:
    # A baseline JPEG of 50 megapixels with a scan for each component takes 313 MB, in one scan 24.
    header = struct.pack(">BHHB", 8, 2_000, 3_000, 3) + b"\x01\x11\0\x02\x11\0\x03\x11\0"
    scan = pictures.jpeg_segment(0xDA, bytes([in_first_scan]) + bytes(2 * in_first_scan + 3))
    rest = pictures.jpeg_segment(0xDA, b"\x01" + bytes(5)) * 2
    jpeg = b"\xff\xd8" + pictures.jpeg_segment(frame, header) + scan + rest + b"\xff\xd9"
    picture = first_picture(jpeg, RESNET, max_pixels=MAX_PIXELS)
    beside_the_pixels = len(picture.data) + 16 * 224 * 224  # the decoder's copy of the file, and the crop
    assert picture.decoding_bytes == bytes_per_pixel * picture.pixels + beside_the_pixels


@pytest.mark.parametrize(("resize", "bytes_per_pixel"), [(512, 2), (513, 4)])
def test_a_jpeg_that_is_too_small_to_be_reduced_for_its_network_counts_all_its_pixels(
    resize: int, bytes_per_pixel: int
) -> None:
    jpeg, preprocessing = encoded(photo(8192, 2048), "JPEG"), Preprocessing(resize, 8)
    picture = first_picture(jpeg, preprocessing, max_pixels=MAX_PIXELS)
    copied = 4 * 4_000_000 if bytes_per_pixel == 4 else 0  # of what is resampled, 4 million pixels at most
    expected = bytes_per_pixel * 8192 * 2048 + copied
    assert picture.decoding_bytes == pytest.approx(expected, rel=0.03)


def test_a_png_that_inflates_to_more_than_its_pixels_need_is_refused() -> None:
    header = struct.pack(">IIBBBBB", 7_000, 4_000, 16, 6, 0, 0, 0)  # 16-bit RGBA: 8 bytes each
    with pytest.raises(BadImage, match="224000000 bytes once inflated; the limit is 200000000"):
        pixels_of(pictures.png_of_parts(header, b"", b""))


@pytest.mark.parametrize("colour", range(8))
def test_a_png_of_bits_that_its_colours_never_have_is_refused(colour: int) -> None:
    # PNG, third edition, table 11.1; with a transparent colour, which is turned into the bits that there are.
    defined = {
        GREY: (1, 2, 4, 8, 16),
        PALETTE: (1, 2, 4, 8),
        RGB: (8, 16),
        GREY_ALPHA: (8, 16),
        RGBA: (8, 16),
    }
    for depth in set(range(34)) - set(defined.get(colour, ())):
        header = struct.pack(">IIBBBBB", 9, 9, depth, colour, 0, 0, 0)
        tables = pictures.png_chunk(b"PLTE", bytes(6)) + pictures.png_chunk(b"tRNS", bytes(6))
        for before_data in (b"", tables):
            with pytest.raises(BadImage, match=f"{depth} bits for colour type {colour}"):
                pixels_of(pictures.png_of_parts(header, before_data, zlib.compress(bytes(1000))))


def test_a_webp_of_many_pixels_and_many_bytes_is_refused() -> None:
    webp = pictures.webp_of_chunks([pictures.webp_canvas(7_000, 7_000), (b"VP8 ", bytes(3_300_000))])
    with pytest.raises(BadImage, match="pixels and coded bytes; the limit is 65000000"):
        pixels_of(webp)


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


@pytest.mark.parametrize(("width", "height"), [(65_535, 1), (1, 65_535)])
def test_a_png_with_a_side_of_65535_passes_and_one_with_65536_is_refused(width: int, height: int) -> None:
    assert pixels_of(pictures.png_bomb(width, height)).shape == (224, 224, 3)
    with pytest.raises(BadImage, match="a side of the PNG has 65536 pixels; the limit is 65535"):
        pixels_of(pictures.png_bomb(width + (width > 1), height + (height > 1)))


def test_a_second_header_can_not_make_a_png_larger_than_the_first_said() -> None:
    second = pictures.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    assert np.array_equal(pixels_of(_in_png(second)), pixels_of(_sample("png")))


# Memory

# Run in a process of its own, of which nobody else takes memory: what decoding a file takes, and what is
# counted for it.
TAKES = r"""
import re, sys
from pathlib import Path
from embedder.images.containers import first_picture
from embedder.images.decode import decode_picture
from embedder.model.spec import Preprocessing

def resident(kind):
    return 1024 * int(re.search(kind + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

preprocessing = Preprocessing(int(sys.argv[1]), int(sys.argv[1]), "bicubic")
picture = first_picture(sys.stdin.buffer.read(), preprocessing, max_pixels=50_000_000)
Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
before = resident("VmRSS")
decode_picture(picture, preprocessing)
print(resident("VmHWM") - before, picture.decoding_bytes)
"""
LARGE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(photo(4000, 3000), "JPEG"),
    # Just too small to be scaled down, or more, while it is decoded.
    "jpeg: 4095 pixels of 4:2:2": lambda: encoded(photo(4095, 4095), "JPEG", subsampling=1),
    "jpeg: 4095 pixels of 4:1:1": lambda: pictures.jpeg_of_coarse_colours(4095, 4095, 0x41),
    "jpeg: 1024 pixels in CMYK": lambda: encoded(photo(1024, 1024).convert("CMYK"), "JPEG"),
    "jpeg: narrow": lambda: encoded(photo(900, 12_000), "JPEG"),
    "jpeg: narrow and progressive": lambda: encoded(photo(900, 12_000), "JPEG", progressive=True),
    "jpeg: a pixel high": lambda: encoded(Image.new("CMYK", (65_500, 1)), "JPEG", progressive=True, subsampling=2),
    "png: as wide as may be": lambda: pictures.png_bomb(65_535, 380, 16, RGBA),
    "webp": lambda: encoded(photo(4000, 3000), "WEBP", method=0),
    "webp: lossless": lambda: encoded(photo(4000, 3000), "WEBP", lossless=True, method=0, quality=0),
    "webp: codes": lambda: pictures.webp_of_codes(256),
    "gif": lambda: encoded(photo(4000, 3000).convert("P"), "GIF"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "resize"),
    [*((name, 256) for name in LARGE), *((name, 1024) for name in LARGE if name.startswith("jpeg: "))],
)
def test_decoding_takes_about_the_memory_that_is_counted_for_it_at_most(name: str, resize: int) -> None:
    command = [sys.executable, "-c", TAKES, str(resize)]
    done = subprocess.run(command, cwd=ROOT, input=LARGE[name](), capture_output=True, check=True)
    taken, counted = map(int, done.stdout.split())
    assert taken <= 1.1 * counted + 1_000_000


# Floods: small files, or parts of files, that take Pillow seconds to hours when it sees all of them


def _sample(name: str) -> bytes:
    return pictures.samples()[name]


def _in_png(parts: bytes) -> bytes:
    return _sample("png")[:33] + parts + _sample("png")[33:]


def _overlapping_exif() -> bytes:
    entries = struct.pack("<HHII", 0x0111, 7, 4_000_000, 0) * 65_535
    return b"II*\0" + struct.pack("<IH", 8, 65_535) + entries + bytes(4_000_000)


def _gif_of_7000(data: bytes) -> bytes:
    return pictures.gif_head(7_000, 7_000) + pictures.gif_frame(7_000, 7_000, data) + b";"


TABLE = b"\0" + bytes(range(1, 65))  # its number and precision, and its 64 divisors
PIXEL_FRAME = pictures.gif_frame(1, 1, pictures.GIF_PIXEL)

REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "20 MB of quantisation tables": (
        "over 65536 bytes of quantisation tables",
        lambda: pictures.with_segments(_sample("jpeg"), pictures.jpeg_segment(0xDB, TABLE * 1_008) * 300),
    ),
    "5 million empty comments": (
        "more than 2000 segments", lambda: pictures.with_segments(_sample("jpeg"), b"\xff\xfe\0\2" * 5_000_000)
    ),
    "49 megapixels cut short": ("cut short", lambda: encoded(Image.new("RGB", (7_000, 7_000)), "JPEG")[:20_000]),
    "a million chunks": ("more than 2000 chunks", lambda: _in_png(pictures.png_chunk(b"teSt", b"") * 1_000_000)),
    "300 000 WebP chunks": (
        "250000 chunks or more",
        lambda: pictures.webp_of_chunks([pictures.webp_canvas(9, 9), *[(b"JUNK", b"")] * 300_000]),
    ),
    "a comment in 9 million blocks": (
        "250000 blocks or more",
        lambda: pictures.gif_head(9, 9) + b"!\xfe" + b"\1a" * 9_000_000 + b"\0" + PIXEL_FRAME + b";",
    ),
    "a million frames": ("250000 blocks or more", lambda: _sample("gif")[:-1] + PIXEL_FRAME * 1_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_flood_is_refused_before_pillow_sees_it(name: str) -> None:
    sentence, make = REFUSED[name]
    with pytest.raises(BadImage, match=sentence):
        first_picture(make(), RESNET, max_pixels=MAX_PIXELS)


STRIPPED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "1900 segments of EXIF": (
        "jpeg",
        lambda jpeg: pictures.with_segments(jpeg, pictures.jpeg_segment(0xE1, b"Exif\0\0" + bytes(9_000)) * 1_900),
    ),
    "20 MB of noise before the scan": (
        "jpeg", lambda jpeg: pictures.with_segments(jpeg, b"\xff\xe0\0\2" + bytes(20_000_000))
    ),
    "1900 texts that inflate to a megabyte": (
        "png", lambda _: _in_png(pictures.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 1_900)
    ),
    "EXIF values that overlap": ("png", lambda _: _in_png(pictures.png_chunk(b"eXIf", _overlapping_exif()))),
    "60 000 frames": ("gif", lambda gif: gif[:-1] + PIXEL_FRAME * 60_000 + b";"),
    "14 MB of further frames": (
        "webp_animated",
        lambda webp: pictures.webp_of_chunks([*pictures.webp_chunks(webp), (b"ANMF", bytes(14_000_000))]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRIPPED)
def test_pillow_gets_none_of_a_flood_around_the_picture(name: str) -> None:
    sample, flooded = STRIPPED[name]
    plain = first_picture(_sample(sample), RESNET, max_pixels=MAX_PIXELS)
    assert first_picture(flooded(_sample(sample)), RESNET, max_pixels=MAX_PIXELS) == plain


# Of these, `make overload` and `make soak` watch what they cost.
DECODED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "as many quantisation tables as may be": (
        "pixels", lambda: pictures.with_segments(_sample("jpeg"), pictures.jpeg_segment(0xDB, TABLE * 1_000))
    ),
    "20 MB of fill bytes": ("pixels", lambda: _sample("jpeg")[:-2] + b"\xff" * 20_000_000 + b"\xff\xd9"),
    "20 MB of restarts": ("pixels", lambda: _sample("jpeg")[:-2] + b"\xff\xd0" * 10_000_000 + b"\xff\xd9"),
    "49 megapixels with an end but no middle": (
        "pixels", lambda: encoded(Image.new("RGB", (7_000, 7_000)), "JPEG")[:2_000] + b"\xff\xd9"
    ),
    "20 MB of end codes": ("BadImage", lambda: _gif_of_7000((b"\xff" + b"\x6d\xdb\xb6" * 85) * 78_000)),
    "a pixel on a canvas of 49 million": (
        "pixels", lambda: pictures.gif_head(7_000, 7_000) + PIXEL_FRAME + b";"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODED)
def test_a_flood_within_the_picture_is_decoded_or_damage(name: str) -> None:
    expected, make = DECODED[name]
    assert outcome(make()) == expected
