"""Files that are broken or cut short: what browsers show is a picture, and anything else a documented error."""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from embedder.errors import BadImage
from tests import pictures
from tests.images.mutations import outcome
from tests.images.reference import assert_close, pixels_of, recipe
from tests.pictures import GREY, PALETTE, RGB, encoded, noise, photo, png


def _sample(name: str) -> bytes:
    return pictures.samples()[name]


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


def test_an_error_names_the_format_or_the_size_and_nothing_of_our_insides() -> None:
    for data in ODD.values():
        with pytest.raises(BadImage) as raised:
            pixels_of(data)
        assert re.search("JPEG|PNG|WEBP|GIF|which is no pixels", str(raised.value))
        assert not any(word in str(raised.value) for word in ("0x", "BytesIO", "PIL", "Error", "<"))


@pytest.mark.parametrize("name", pictures.samples())
def test_a_file_that_is_cut_within_its_picture_is_a_bad_image(name: str) -> None:
    file = _sample(name)
    if name == "mpo":  # its first picture is all of it that counts
        file = file[: file.index(b"\xff\xd9") + 2]
    if name in ("tiff_pages", "gif_animated", "webp_animated", "avif_animated", "apng"):
        file = file[: len(file) // 2]
    for kept in (64, 80, len(file) // 4, len(file) // 2):
        assert outcome(file[:kept]) == "BadImage", f"{kept} of {len(file)} bytes"


# Files without their end

JPEGS = [
    "jpeg",
    "jpeg_444",
    "jpeg_progressive",
    "jpeg_restarts",
    "jpeg_grey",
    "jpeg_cmyk",
    "jpeg_ycck",
    "jpeg_exif",
]


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("end", [b"", b"\xff", b"\0\0", b"\x12\xff\xc8\x01" * 3, b"\xff\xff", bytes(4000)])
def test_a_jpeg_may_lack_its_end_marker(name: str, end: bytes) -> None:
    whole = _sample(name)
    assert np.array_equal(pixels_of(whole[:-2] + end), pixels_of(whole))


@pytest.mark.parametrize("size", [(96, 96), (1100, 1300)])
def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(size: tuple[int, int]) -> None:
    whole = encoded(photo(*size), "JPEG", quality=95)
    thumbnail = pictures.jpeg_segment(0xE1, pictures.exif(1) + _sample("jpeg"))
    behind = pictures.jpeg_segment(0xE2, b"MPF\0") * 3 + bytes(99_000) + _sample("jpeg")  # as phones have it
    for file in (whole[:-2], whole + behind):
        assert np.array_equal(pixels_of(pictures.with_segments(file, thumbnail)), pixels_of(whole))
    with pytest.raises(BadImage):
        pixels_of(pictures.with_segments(whole[: len(whole) // 2], thumbnail))


@pytest.mark.parametrize("size", [(96, 96), (1100, 1300), (2100, 2300)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_which_rows_are_missing_is_a_bad_image(size: tuple[int, int], progressive: bool) -> None:
    whole = encoded(photo(*size), "JPEG", progressive=progressive)
    last_scan = whole.rindex(b"\xff\xda")
    assert np.array_equal(pixels_of(whole[:-2]), pixels_of(whole))
    for kept in (len(whole) * 98 // 100, last_scan + (len(whole) - last_scan) * 9 // 10, last_scan + 40):
        for rest in (b"", bytes(len(whole) - kept)):  # as a download that broke off may leave it on a disk
            with pytest.raises(BadImage, match="cut short"):
                pixels_of(whole[:kept] + rest)


@pytest.mark.parametrize("name", [name for name in pictures.samples() if name.startswith("png")])
def test_a_png_may_lack_what_follows_its_last_row(name: str) -> None:
    whole = _sample(name)
    end = whole.index(b"IEND") - 4
    tails = {
        "no end": whole[:end],
        "no checksum": whole[: end - 4],
        "another checksum": whole[: end - 4] + b"nope" + whole[end:],
        "half of the end": whole[: end + 5],
        "text that is cut": whole[:end] + pictures.png_chunk(b"zTXt", b"a\0\0" + bytes(9))[:-9],
        "a second header": whole[:end] + pictures.png_chunk(b"IHDR", b"") + whole[end:],
        "noise": whole[:end] + bytes(range(256)),
    }
    for tail, file in tails.items():
        assert np.array_equal(pixels_of(file), pixels_of(whole)), tail


def test_a_png_whose_data_lack_their_checksum_is_whole() -> None:
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise(40, 30).astype(np.uint8)))
    header = struct.pack(">IIBBBBB", 40, 30, 8, RGB, 0, 0, 0)
    whole = pictures.png_of_parts(header, b"", rows)
    for data in (rows[:-4], rows[:-4] + b"nope"):
        assert np.array_equal(pixels_of(pictures.png_of_parts(header, b"", data)), pixels_of(whole))


@pytest.mark.parametrize(
    "chunk",
    {
        "tEXt": pictures.png_chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
        "iCCP": pictures.png_chunk(b"iCCP", b"name"),
        "gAMA": pictures.png_chunk(b"gAMA", b""),
        "pHYs": pictures.png_chunk(b"pHYs", b""),
        "cHRM": pictures.png_chunk(b"cHRM", b"x"),
        "acTL": pictures.png_chunk(b"acTL", b""),
        "eXIf": pictures.png_chunk(b"eXIf", b"nonsense"),
        "sRGB": pictures.png_chunk(b"sRGB", b""),
        "tIME": pictures.png_chunk(b"tIME", b"\0"),
    }.values(),
)
def test_what_a_png_says_beside_its_pixels_may_be_nonsense(chunk: bytes) -> None:
    whole = _sample("png")
    for file in (whole[:33] + chunk + whole[33:], whole[:-12] + chunk + whole[-12:]):
        assert np.array_equal(pixels_of(file), pixels_of(whole))


@pytest.mark.parametrize("name", ["gif", "gif_clear", "gif_animated"])
def test_a_gif_may_lack_what_follows_its_first_frame(name: str) -> None:
    whole = _sample(name)
    first = whole[: whole.rindex(b"!\xf9")] if name == "gif_animated" else whole[:-1]
    for tail in (b"", b"!\xf9\x04", b"!\xfe\xff", b"\x2c\0\0", b"nonsense", whole[len(first) :][:40]):
        assert np.array_equal(pixels_of(first + tail), pixels_of(whole)), tail


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE0, b"JFIF"),
        (0xE0, b"JFIF\0\1"),
        (0xEE, b"Adobe"),
        (0xEE, b"Adobe\0d"),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0"),
        (0xED, b"Photoshop 3.0\x008BIM"),
        (0xFE, b""),
    ],
)
def test_hints_in_a_jpeg_may_be_too_short_to_hint(marker: int, body: bytes) -> None:
    odd = pictures.with_segments(_sample("jpeg"), pictures.jpeg_segment(marker, body))
    assert np.array_equal(pixels_of(odd), pixels_of(_sample("jpeg")))


# Transparency that is none, as libpng has it


@pytest.mark.parametrize(
    ("colour", "body"), [(GREY, b""), (GREY, b"\1"), (RGB, b"\0\0\0\0"), (RGB, bytes(5))]
)
def test_a_transparent_colour_that_is_too_short_is_none(colour: int, body: bytes) -> None:
    samples = noise(60, 50, 1 if colour == GREY else 3, highest=3)
    odd = png(samples, 8, colour, before_data=pictures.png_chunk(b"tRNS", body))
    assert np.array_equal(pixels_of(odd), pixels_of(png(samples, 8, colour)))


def test_alphas_before_their_palette_are_none() -> None:
    indices, palette = noise(60, 50, 1, highest=3), pictures.png_chunk(b"PLTE", bytes(range(12)))
    alphas = pictures.png_chunk(b"tRNS", bytes(4))
    odd, plain = (png(indices, 8, PALETTE, before_data=parts) for parts in (alphas + palette, palette))
    assert np.array_equal(pixels_of(odd), pixels_of(plain))


def test_transparency_with_a_wrong_checksum_or_behind_the_data_is_none() -> None:
    samples = noise(60, 50, 1, highest=3)
    alphas = pictures.png_chunk(b"tRNS", b"\0\1")
    plain = png(samples, 8, GREY)
    wrong = plain[:33] + alphas[:-1] + bytes([alphas[-1] ^ 1]) + plain[33:]
    behind = plain[:-12] + alphas + plain[-12:]
    for odd in (wrong, behind):
        assert np.array_equal(pixels_of(odd), pixels_of(plain))
    assert not np.array_equal(pixels_of(plain[:33] + alphas + plain[33:]), pixels_of(plain))


# Frames and their canvas


@pytest.mark.parametrize("transparent", [None, 3])
@pytest.mark.parametrize("place", [(0, 0), (17, 5), (60, 44)])
def test_around_a_gifs_frame_its_canvas_is_clear(place: tuple[int, int], transparent: int | None) -> None:
    indices = Image.fromarray(noise(40, 30, 1, highest=15)[..., 0].astype(np.uint8), "P")
    colours = noise(16, 1).astype(np.uint8)[0]
    indices.putpalette(colours.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    file = bytearray(encoded(indices, "GIF", **options))
    struct.pack_into("<HH", file, 6, 100, 74)
    frame = file.index(b"\x2c\0\0\0\0")
    struct.pack_into("<HH", file, frame + 1, *place)
    shown = colours[np.asarray(indices)].copy()
    if transparent is not None:
        shown[np.asarray(indices) == transparent] = 255
    canvas = Image.new("RGB", (100, 74), "white")
    canvas.paste(Image.fromarray(shown), place)
    assert_close(pixels_of(bytes(file)), recipe(canvas))


@pytest.mark.parametrize("flags", [0x02, 0x12])
def test_around_a_webps_frame_its_canvas_is_clear(flags: int) -> None:
    frame = encoded(photo(40, 30), "WEBP", lossless=True)
    place = b"".join(value.to_bytes(3, "little") for value in (10, 6, 39, 29, 100))
    parts = [(b"ANIM", b"\x30\x80\xf0\xff\0\0"), (b"ANMF", place + b"\0" + frame[12:])]
    file = pictures.webp_of_chunks([pictures.webp_canvas(100, 74, flags), *parts])
    canvas = Image.new("RGB", (100, 74), "white")
    canvas.paste(photo(40, 30), (20, 12))
    assert_close(pixels_of(file), recipe(canvas))


# What stands behind a JPEG, as phones and cameras put it there

MOTION = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(500)  # a video, in which any marker may stand


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "restart_marker_rows": 1}])
@pytest.mark.parametrize(
    "behind",
    [
        *(
            MOTION + b"\xff\xda" + bytes(99) + b"\xff" + bytes([kind]) + bytes(99)
            for kind in (0xC4, 0xDB, 0xDD, 0xE1)
        ),
        *(encoded(photo(99, 99), format) for format in ("JPEG", "PNG", "WEBP")),
        *(
            encoded(photo(99, 99), "JPEG")[:-2],
            b"PK\x03\x04" + bytes(99),
            b"\xff\xd8",
            b"\xff\xe1\0\x08Exif\0\0",
        ),
    ],
    ids=range(11),
)
def test_what_stands_behind_a_jpeg_is_no_part_of_it_with_its_end_and_without(
    mode: str, options: dict[str, int], behind: bytes
) -> None:
    file = encoded(photo(300, 260).convert(mode), "JPEG", **options)
    expected = pixels_of(file)
    assert np.array_equal(pixels_of(file + behind), expected)
    if not behind.startswith(MOTION):  # otherwise nothing tells where the picture ends
        assert np.array_equal(pixels_of(file[:-2] + behind), expected)
    assert outcome(file[: len(file) * 3 // 4] + behind) == "BadImage"


@pytest.mark.parametrize("seed", range(40))
def test_chance_does_not_make_a_jpeg_of_what_is_behind_it(seed: int) -> None:
    file = encoded(photo(120, 90), "JPEG")
    behind = np.random.default_rng(seed).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    assert np.array_equal(pixels_of(file + behind), pixels_of(file))


# WebP as careless writers leave it


def _with_size(webp: bytes, size: int) -> bytes:
    return webp[:4] + struct.pack("<I", size) + webp[8:]


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 90}, {"exif": pictures.exif(1) + b"x"}])
def test_a_webp_of_another_size_than_it_states_is_a_picture(options: dict[str, bool]) -> None:
    file = encoded(photo(301, 199), "WEBP", **options)
    expected = pixels_of(file)
    for size in (0, len(file) - 9, len(file), len(file) + 1, len(file) + 1000, 0xFFFFFFFF):
        assert np.array_equal(pixels_of(_with_size(file, size)), expected), size
    assert np.array_equal(pixels_of(file + b"EXIF\xff\0\0\0cut"), expected)
    assert outcome(file[: len(file) // 2]) == "BadImage"


def test_an_animated_webp_that_is_cut_in_a_later_frame_is_its_first() -> None:
    frames = [photo(120, 90), photo(90, 120).resize((120, 90)), Image.new("RGB", (120, 90), "red")]
    file = pictures.animation("WEBP", *frames, lossless=True)
    expected = pixels_of(file)
    first = pictures.webp_of_chunks(pictures.webp_chunks(file)[:3])
    for cut in (len(first), len(first) + 1, len(file) - 1, len(file) - 50):
        assert np.array_equal(pixels_of(file[:cut]), expected), cut
    assert outcome(file[: len(first) - 20]) == "BadImage"


# What is a picture, and was another


def test_more_transparency_than_colours_is_cut() -> None:
    pixels = noise(64, 64, 1)
    palette = bytes(range(256)) * 3
    ends = [pictures.png_chunk(b"PLTE", palette), pictures.png_chunk(b"tRNS", bytes([255]) * 256)]
    exact = png(pixels, 8, PALETTE, before_data=b"".join(ends))
    more = png(pixels, 8, PALETTE, before_data=ends[0] + pictures.png_chunk(b"tRNS", bytes([255]) * 300))
    assert np.array_equal(pixels_of(more), pixels_of(exact))


def test_an_icon_that_is_transparent_everywhere_is_shown() -> None:
    icon = Image.new("RGBA", (64, 64), (10, 200, 30, 0))
    file = encoded(icon, "ICO", sizes=[(64, 64)], bitmap_format="bmp")
    assert_close(pixels_of(file), np.full((224, 224, 3), (10, 200, 30), np.uint8))


def test_a_tiff_of_12_bits_is_as_bright_as_one_of_16() -> None:
    levels = (np.arange(256 * 256).reshape(256, 256) // 16).astype(np.uint16)  # 0 to 4095
    packed = np.stack(
        [levels[:, ::2] >> 4, (levels[:, ::2] & 15) << 4 | levels[:, 1::2] >> 8, levels[:, 1::2] & 255], -1
    )
    entries = [
        (256, 256),
        (257, 256),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 256),
        (279, packed.size),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries
    )
    data = packed.astype(np.uint8).tobytes()
    file = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)
    grey = Image.fromarray((levels >> 4).astype(np.uint8))
    assert_close(pixels_of(file), recipe(grey.convert("RGB")))


@pytest.mark.parametrize("sixth", [b"\0", b"\xff", b" "])
def test_the_sixth_byte_of_exif_is_for_filling(sixth: bytes) -> None:
    plain = encoded(photo(300, 200), "JPEG")
    turned = pictures.with_segments(
        plain, pictures.jpeg_segment(0xE1, b"Exif\0" + sixth + pictures.exif(6)[6:])
    )
    marked = pictures.with_segments(plain, pictures.jpeg_segment(0xE1, pictures.exif(6)))
    assert np.array_equal(pixels_of(turned), pixels_of(marked))
    cut = pictures.jpeg_segment(0xE1, pictures.exif(6)[: 6 + 8 + 2 + 10])
    assert np.array_equal(pixels_of(pictures.with_segments(plain, cut)), pixels_of(plain))
