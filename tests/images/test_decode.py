"""Pixels: torchvision's geometry, Pillow's colours, and nothing that a hostile file can do."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from embedder.errors import BadImage, TooManyPixels, UnsupportedFormat
from embedder.images.decode import CROP, HEAD_BYTES, RESIZE, decode, decode_picture, first_picture, sniff
from tests import pictures
from tests.images.mutations import outcome
from tests.pictures import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, encoded, noise, photo, png
from tests.server import ROOT

Pixels = NDArray[np.uint8]

MAX_PIXELS = 50_000_000
RECIPE = transforms.Compose([transforms.Resize(RESIZE), transforms.CenterCrop(CROP)])

# Upright pictures differ from the recipe by single levels in under 1 % of the samples: Pillow
# takes boxes as 32-bit floats. Turned ones are filtered in the other order, and rounded between.
UPRIGHT_MEAN, TURNED_MEAN, EXACT_MAX = 0.01, 0.25, 1
# JPEGs that the decoder scaled down: filtered twice.
SCALED_MEAN, SCALED_MAX = 0.6, 12


def pixels_of(data: bytes) -> Pixels:
    return decode(data, max_pixels=MAX_PIXELS)


def recipe(image: Image.Image) -> Pixels:
    """What torchvision makes of an upright RGB image."""
    return np.asarray(RECIPE(image))


def on_white(colour: NDArray[np.int64], alpha: NDArray[np.int64]) -> Image.Image:
    """The definition of compositing, for channels of 0 to 255 (height, width, n)."""
    mixed = np.rint((colour * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(mixed, (*mixed.shape[:2], 3)).copy())


def difference(ours: Pixels, theirs: Pixels) -> tuple[float, int]:
    """Mean and greatest absolute difference, in levels of 0 to 255."""
    assert ours.shape == theirs.shape == (CROP, CROP, 3)
    levels = np.abs(ours.astype(np.int64) - theirs)
    return float(levels.mean()), int(levels.max())


def assert_close(ours: Pixels, theirs: Pixels, *, mean: float, greatest: int) -> None:
    assert difference(ours, theirs) <= (mean, 255)
    assert difference(ours, theirs)[1] <= greatest


# Geometry

SIZES = [
    (224, 224),
    (256, 256),
    (255, 257),
    (257, 256),
    (300, 200),
    (200, 300),
    (640, 427),
    (427, 640),
    (1000, 999),
    (999, 223),
    (4000, 300),
    (33, 77),
    (1, 1),
    (2, 300),
    (1, 1000),
    (3001, 2003),
]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_torchvision(size: tuple[int, int]) -> None:
    for image in (photo(*size), Image.fromarray(noise(*size).astype(np.uint8))):
        ours = pixels_of(encoded(image, "PNG", compress_level=1))
        assert_close(ours, recipe(image), mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_line_of_60000_pixels_gives_its_middle_at_once(size: tuple[int, int]) -> None:
    # torchvision would make 15 million pixels of it first. Its crop is the middle 224/256 pixels
    # of the line: between the two in the middle, the first weighs more in the first half.
    line = np.zeros((60_000, 3), np.uint8)
    line[29_999], line[30_000] = (200, 0, 0), (0, 0, 100)
    image = Image.fromarray(line.reshape(size[1], size[0], 3))
    started = time.thread_time()
    ours = pixels_of(encoded(image, "PNG")).astype(np.float64)
    assert time.thread_time() - started < 0.3
    along = ours if size[0] == 1 else ours.transpose(1, 0, 2)
    share = 0.5 - (np.arange(CROP) + 0.5 - CROP / 2) / RESIZE  # of the first of the two
    expected = np.stack([200 * share, 0 * share, 100 * (1 - share)], axis=-1)
    assert np.abs(along - expected[:, np.newaxis, :]).max() <= 1.5


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1000, 999), (3001, 2003), (300, 200)])
def test_the_parity_bounds_notice_a_wrong_crop_size_or_filter(size: tuple[int, int]) -> None:
    image = photo(*size)
    right = recipe(image)
    resized = np.asarray(transforms.Resize(RESIZE)(image))
    top, left = ((side - CROP + 1) // 2 for side in resized.shape[:2])
    wrong = {
        "a crop off by a pixel": resized[top : top + CROP, left - 1 : left - 1 + CROP],
        "a squashed resize": np.asarray(image.resize((CROP, CROP), Image.Resampling.BILINEAR)),
        "bicubic": recipe(image.resize((resized.shape[1], resized.shape[0]), Image.Resampling.BICUBIC)),
        "no antialiasing": recipe(
            image.resize((resized.shape[1], resized.shape[0]), Image.Resampling.NEAREST)
        ),
    }
    for name, pixels in wrong.items():
        mean, _ = difference(pixels, right)
        assert mean > 2 * max(UPRIGHT_MEAN, TURNED_MEAN), name
    assert difference(wrong["a crop off by a pixel"], right)[0] > 2 * SCALED_MEAN
    assert difference(wrong["a squashed resize"], right)[0] > 2 * SCALED_MEAN


# A JPEG is decoded at 1/2 when its short side has 1024 pixels or more, at 1/4 from 2048 on.
@pytest.mark.parametrize("size", [(640, 427), (1023, 1023), (1023, 1600), (2500, 1000)])
def test_a_jpeg_below_1024_pixels_is_not_scaled_while_decoding(size: tuple[int, int]) -> None:
    jpeg = encoded(photo(*size), "JPEG", quality=90)
    theirs = recipe(Image.open(io.BytesIO(jpeg)))
    assert_close(pixels_of(jpeg), theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


@pytest.mark.parametrize(
    "size",
    [(1024, 1024), (1025, 1500), (2047, 2050), (2049, 2048), (3001, 2051), (4000, 3000), (4099, 4097)],
)
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_a_jpeg_scaled_while_decoding_stays_close(
    size: tuple[int, int], options: dict[str, int | bool]
) -> None:
    jpeg = encoded(photo(*size), "JPEG", quality=90, **options)
    theirs = recipe(Image.open(io.BytesIO(jpeg)))
    mean, greatest = difference(pixels_of(jpeg), theirs)
    assert (mean, greatest) > (UPRIGHT_MEAN, EXACT_MAX)  # it was scaled
    assert_close(pixels_of(jpeg), theirs, mean=SCALED_MEAN, greatest=SCALED_MAX)


@pytest.mark.parametrize("size", [(1024, 1536), (1536, 2047), (2048, 2048), (4096, 4096)])
@pytest.mark.parametrize("factors", [0x41, 0x14])
def test_a_jpeg_of_coarse_colours_is_scaled_only_as_far_as_its_colours_can_be(
    size: tuple[int, int], factors: int
) -> None:
    # Scaled like others, its colours are at half the target's size: 1.0 levels off, 30 at most.
    jpeg = pictures.jpeg_of_coarse_colours(*size, factors)
    theirs = recipe(Image.open(io.BytesIO(jpeg)))
    assert_close(pixels_of(jpeg), theirs, mean=SCALED_MEAN, greatest=SCALED_MAX)
    picture = first_picture(jpeg, max_pixels=MAX_PIXELS)
    per_pixel = 2 if min(size) >= 2048 else 4
    assert picture.decoding_bytes == pytest.approx(per_pixel * picture.pixels, rel=0.01)  # of whole blocks


def test_a_jpeg_of_422_is_scaled_only_where_four_times_the_target_is_left() -> None:
    for size, scaled in (((1024, 2047), False), ((2047, 1024), False), ((2048, 2050), True)):
        jpeg = encoded(photo(*size), "JPEG", quality=90, subsampling=1)
        mean, _ = difference(pixels_of(jpeg), recipe(Image.open(io.BytesIO(jpeg))))
        assert (mean > UPRIGHT_MEAN) is scaled
        assert mean <= SCALED_MEAN / 2


def test_a_scaled_jpeg_is_not_shifted_by_its_partial_last_column() -> None:
    # 2049 at 1/4 is 513 columns that stand for 512.25. Taking the 513 as the width would shift
    # the picture by 0.35 pixels at the crop's right edge, where this ramp has a level per pixel.
    width = 2049
    ramp = np.linspace(0, 255, width).round().astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (width, width)).copy())
    ours = pixels_of(encoded(image, "JPEG", quality=100)).astype(np.float64)
    theirs = recipe(image.convert("RGB")).astype(np.float64)
    assert abs((ours - theirs)[:, -32:].mean()) < 0.1


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(639, 427), (427, 639), (1501, 1100), (1100, 1501)])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_comes_before_the_recipe(
    format: str, size: tuple[int, int], orientation: int
) -> None:
    options = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 95}, "WEBP": {"quality": 90, "method": 0}}
    file = pictures.oriented(photo(*size), format, orientation, **options[format])
    stored = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    upright = {  # from the EXIF specification: where the first row and column are when shown
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }[orientation]
    theirs = recipe(Image.fromarray(np.ascontiguousarray(upright)))
    if format == "JPEG" and min(size) >= 1024:
        assert_close(pixels_of(file), theirs, mean=SCALED_MEAN, greatest=SCALED_MAX)
    else:
        mean = TURNED_MEAN if orientation >= 5 else UPRIGHT_MEAN
        assert_close(pixels_of(file), theirs, mean=mean, greatest=EXACT_MAX)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_may_be_of_either_byte_order(order: str) -> None:
    plain = encoded(photo(300, 200), "JPEG")
    turned = pictures.with_segments(plain, pictures.jpeg_segment(0xE1, pictures.exif(3, order=order)))
    assert np.array_equal(pixels_of(turned), pixels_of(plain)[::-1, ::-1])


def test_the_first_exif_counts_and_none_behind_the_picture_starts() -> None:
    plain = encoded(photo(300, 200), "JPEG")
    turn, flip = (pictures.jpeg_segment(0xE1, pictures.exif(number)) for number in (3, 4))
    turned = pictures.with_segments(plain, turn + flip)
    assert np.array_equal(pixels_of(turned), pixels_of(plain)[::-1, ::-1])
    late = plain[:-2] + turn + plain[-2:]
    assert np.array_equal(pixels_of(late), pixels_of(plain))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_several_exifs_the_first_counts_however_many_follow(format: str) -> None:
    plain = encoded(photo(96, 96), format, lossless=True)
    flip, turn = pictures.exif(4)[6:], pictures.exif(3)[6:]
    entries = b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(12 * 65_535)  # 20 ms each
    exifs = [flip, *[entries] * 24, turn]
    if format == "PNG":
        many = plain[:33] + b"".join(pictures.png_chunk(b"eXIf", exif) for exif in exifs) + plain[33:]
    else:
        chunks = [*((b"EXIF", exif) for exif in exifs), *pictures.webp_chunks(plain)]
        many = pictures.webp_of_chunks([pictures.webp_canvas(96, 96, 0x08), *chunks])
    started = time.thread_time()
    picture = first_picture(many, max_pixels=MAX_PIXELS)
    assert time.thread_time() - started < 0.2
    assert picture.orientation == 4


@pytest.mark.parametrize(
    "exif",
    [
        pictures.exif(0),
        pictures.exif(9),
        pictures.exif(65535),
        pictures.exif(6, kind=2),
        pictures.exif(6, count=2),
        pictures.exif(6)[:20],
        b"Exif\0\0",
        b"Exif\0\0II*\0" + struct.pack("<I", 0xFFFFFFFF),
        b"Exif\0\0XX*\0" + bytes(40),
    ],
)
def test_nonsense_in_exif_is_ignored(exif: bytes) -> None:
    plain = encoded(photo(300, 200), "JPEG")
    odd = pictures.with_segments(plain, pictures.jpeg_segment(0xE1, exif))
    assert np.array_equal(pixels_of(odd), pixels_of(plain))


# Colour


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth(depth: int, interlaced: bool) -> None:
    samples = noise(300, 260, 1, highest=2**depth - 1)
    grey = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    theirs = recipe(Image.fromarray(np.repeat(grey, 3, axis=2).astype(np.uint8)))
    ours = pixels_of(png(samples, depth, GREY, interlaced=interlaced))
    assert_close(ours, theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_colour_png_of_every_depth(depth: int, interlaced: bool) -> None:
    samples = noise(300, 260, 3, highest=2**depth - 1)
    theirs = recipe(Image.fromarray((samples >> (depth - 8)).astype(np.uint8)))
    ours = pixels_of(png(samples, depth, RGB, interlaced=interlaced))
    assert_close(ours, theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_png_of_every_depth(depth: int) -> None:
    palette = noise(2**depth, 1).astype(np.uint8)
    indices = noise(300, 260, 1, highest=2**depth - 1)
    theirs = recipe(Image.fromarray(palette[0][indices[..., 0]]))
    plte = pictures.png_chunk(b"PLTE", palette.tobytes())
    ours = pixels_of(png(indices, depth, PALETTE, before_data=plte))
    assert_close(ours, theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour", "channels"), [(GREY_ALPHA, 2), (RGBA, 4)])
def test_alpha_is_composited_on_white_before_resampling(colour: int, channels: int, depth: int) -> None:
    samples = noise(300, 260, channels)  # what is transparent hides loud colours
    samples[..., -1] = np.where(samples[..., -1] < 128, 0, samples[..., -1])
    file = png(samples * (257 if depth == 16 else 1), depth, colour)
    theirs = recipe(on_white(samples[..., :-1], samples[..., -1:]))
    assert_close(pixels_of(file), theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


def test_the_colour_of_transparent_pixels_does_not_bleed() -> None:
    samples = np.zeros((256, 256, 4), np.int64)
    samples[:, ::2] = 0, 255, 0, 255  # every other column is green, between hidden reds
    samples[:, 1::2] = 255, 0, 0, 0
    ours = pixels_of(png(np.repeat(samples, 2, axis=1)[:, :384], 8, RGBA))
    assert (ours[..., 1] == 255).all()  # green on white: full everywhere
    assert np.abs(ours[..., 0].astype(int) - ours[..., 2]).max() <= 1  # no more red than blue


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_level_that_means_transparent(depth: int) -> None:
    samples = noise(300, 260, 1, highest=2**depth - 1)
    key = int(samples[130, 150, 0])
    grey = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    theirs = recipe(on_white(grey, np.where(samples == key, 0, 255)))
    trns = pictures.png_chunk(b"tRNS", struct.pack(">H", key))
    ours = pixels_of(png(samples, depth, GREY, before_data=trns))
    assert_close(ours, theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_that_means_transparent(depth: int) -> None:
    colours = noise(300, 260, 3)
    colours[100:150, 100:200] = colours[0, 0]
    alpha = np.where((colours == colours[0, 0]).all(axis=2, keepdims=True), 0, 255)
    theirs = recipe(on_white(colours, alpha))
    samples = colours << (depth - 8)
    trns = pictures.png_chunk(b"tRNS", struct.pack(">3H", *samples[0, 0].tolist()))
    ours = pixels_of(png(samples, depth, RGB, before_data=trns))
    assert_close(ours, theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


@pytest.mark.parametrize("alphas", [bytes(range(0, 256, 17)), b"\xff\xff\x00", b"\x00\x80"])
def test_a_palette_with_alpha(alphas: bytes) -> None:
    palette, indices = noise(16, 1), noise(300, 260, 1, highest=15)
    alpha = np.array([*alphas, *[255] * (16 - len(alphas))])
    theirs = recipe(on_white(palette[0][indices[..., 0]], alpha[indices]))
    tables = pictures.png_chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    tables += pictures.png_chunk(b"tRNS", alphas)
    ours = pixels_of(png(indices, 8, PALETTE, before_data=tables))
    assert_close(ours, theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


def test_webp_lossless_with_alpha() -> None:
    samples = noise(300, 260, 4)
    image = Image.fromarray(samples.astype(np.uint8))
    ours = pixels_of(encoded(image, "WEBP", lossless=True, exact=True))
    theirs = recipe(on_white(samples[..., :3], samples[..., 3:]))
    assert_close(ours, theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


def test_webp_lossy_and_lossless_without_alpha() -> None:
    for lossless in (False, True):
        webp = encoded(photo(400, 300), "WEBP", lossless=lossless)
        theirs = recipe(Image.open(io.BytesIO(webp)).convert("RGB"))
        assert_close(pixels_of(webp), theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


def test_gif_transparency_is_white() -> None:
    palette, indices = noise(16, 1), noise(300, 260, 1, highest=15)
    image = Image.fromarray(indices[..., 0].astype(np.uint8), "P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    theirs = recipe(on_white(palette[0][indices[..., 0]], np.where(indices == 5, 0, 255)))
    ours = pixels_of(encoded(image, "GIF", transparency=5))
    assert_close(ours, theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


def test_gif_without_a_palette_is_grey() -> None:
    grey = Image.fromarray(noise(300, 260, 1)[..., 0].astype(np.uint8))
    ours = pixels_of(encoded(grey, "GIF"))
    assert_close(ours, recipe(grey.convert("RGB")), mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


def test_grey_jpeg() -> None:
    jpeg = encoded(photo(400, 300).convert("L"), "JPEG")
    theirs = recipe(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    assert_close(pixels_of(jpeg), theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


def test_cmyk_jpeg_is_converted_before_resampling() -> None:
    samples = noise(400, 300, 4).astype(np.uint8)
    jpeg = encoded(Image.fromarray(samples, "CMYK"), "JPEG", quality=100)
    inks = np.asarray(Image.open(io.BytesIO(jpeg))).astype(np.float64)
    rgb = np.rint((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).astype(np.uint8)
    assert_close(pixels_of(jpeg), recipe(Image.fromarray(rgb)), mean=0.3, greatest=1)


def test_ycck_jpeg() -> None:
    y, cb, cr, k = 140, 110, 170, 200
    # T.871's YCbCr to RGB gives Adobe's inverted inks, and inverted ink is light.
    light = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
             y + 1.772 * (cb - 128))  # fmt: skip
    inverted_inks = np.array([255 - value for value in light])
    expected = inverted_inks * k / 255
    assert np.abs(pixels_of(pictures.ycck_jpeg(y, cb, cr, k)) - expected).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(format: str) -> None:
    first, second = photo(300, 260), Image.new("RGB", (300, 260), (0, 0, 255))
    options = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}}[format]
    animated = pictures.animation(format, first, second, second.rotate(90), **options)
    theirs = recipe(Image.open(io.BytesIO(animated)).convert("RGB"))
    assert_close(pixels_of(animated), theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)
    assert difference(theirs, recipe(second))[0] > 50  # the frames do differ


def test_the_first_picture_of_an_mpo() -> None:
    first, second = photo(300, 260), Image.new("RGB", (600, 500), (0, 0, 255))
    mpo = pictures.mpo(first, second)
    theirs = recipe(Image.open(io.BytesIO(mpo)).convert("RGB"))
    assert Image.open(io.BytesIO(mpo)).format == "MPO"
    assert_close(pixels_of(mpo), theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


@pytest.mark.parametrize("profile", [b"damaged", bytes(200_000)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_colour_profiles_are_ignored(format: str, profile: bytes) -> None:
    image = photo(300, 260)
    with_profile = encoded(image, format, icc_profile=profile)
    assert len(with_profile) > len(encoded(image, format))
    assert np.array_equal(pixels_of(with_profile), pixels_of(encoded(image, format)))


def test_a_profile_that_does_not_inflate_is_ignored() -> None:
    iccp = pictures.png_chunk(b"iCCP", b"name\0\0not zlib")
    plain, damaged = png(noise(20, 20), 8, RGB), png(noise(20, 20), 8, RGB, before_data=iccp)
    assert np.array_equal(pixels_of(damaged), pixels_of(plain))


# The array


@pytest.mark.parametrize("name", pictures.samples())
def test_the_array_is_what_the_network_takes(name: str) -> None:
    pixels = pixels_of(pictures.samples()[name])
    assert pixels.shape == (CROP, CROP, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable  # and its own: nobody else's memory


def test_threads_do_not_disturb_each_other() -> None:
    files = list(pictures.samples().values())
    alone = [pixels_of(file) for file in files]
    wrong: list[int] = []

    def work(turn: int) -> None:
        for step in range(len(files)):
            index = (turn * 7 + step) % len(files)
            if not np.array_equal(pixels_of(files[index]), alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Formats


@pytest.mark.parametrize("name", pictures.samples())
def test_sniff_knows_each_format_by_its_first_16_bytes(name: str) -> None:
    expected = {"jpeg": "JPEG", "mpo": "JPEG", "png": "PNG", "apng": "PNG", "webp": "WEBP", "gif": "GIF"}
    assert sniff(pictures.samples()[name][:HEAD_BYTES]) == expected[name.split("_")[0]]


FOREIGN = {
    "tiff": encoded(photo(9, 9), "TIFF"),
    "bmp": encoded(photo(9, 9), "BMP"),
    "ico": encoded(photo(32, 32), "ICO"),
    "ppm": encoded(photo(9, 9), "PPM"),
    "pdf": encoded(photo(9, 9), "PDF"),
    "eps": encoded(photo(9, 9), "EPS"),
    "tga": encoded(photo(9, 9), "TGA"),
    "jpeg2000": encoded(photo(9, 9), "JPEG2000"),
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + bytes(99),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(99),
    "psd": b"8BPS\0\x01" + bytes(99),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "html": b"<!doctype html><img src=x.jpg>",
    "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(99),
    "mng": b"\x8aMNG\r\n\x1a\n" + bytes(99),
    "fli": bytes(4) + b"\x11\xaf" + bytes(200),
    "zip": b"PK\x03\x04" + bytes(99),
    "empty": b"",
    "zeros": bytes(1000),
    "one byte": b"\xff",
    "half a jpeg's magic": b"\xff\xd8",
    "half a png's magic": b"\x89PNG\r\n",
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


# Limits, in pairs


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_exactly_max_pixels_passes_and_one_more_row_is_refused(format: str) -> None:
    assert decode(encoded(photo(100, 80), format), max_pixels=8000).shape == (CROP, CROP, 3)
    with pytest.raises(TooManyPixels, match=r"100 x 81, 8100 pixels; the limit is 8000"):
        decode(encoded(photo(100, 81), format), max_pixels=8000)


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
    started = time.thread_time()
    with pytest.raises(TooManyPixels):
        pixels_of(HUGE[name])
    assert time.thread_time() - started < 0.1


PILLOW_WARNS_OF: dict[str, Callable[[], bytes]] = {  # from 89 million pixels on
    "png": lambda: pictures.png_bomb(10_000, 10_000, 1, GREY),
    "webp": lambda: pictures.webp_of_one_colour(10_000, 10_000),
    "gif": lambda: encoded(Image.new("P", (10_000, 10_000)), "GIF"),
    "gif that is disposed of": lambda: _disposed_gif(10_000, 10_000),
    "gif that grows": lambda: (
        pictures.gif_head(1, 1) + encoded(Image.new("L", (10_000, 10_000)), "GIF").partition(b"\0" * 9)[2]
    ),
    "jpeg": lambda: encoded(Image.new("L", (10_000, 10_000)), "JPEG"),
}


@pytest.mark.parametrize("name", PILLOW_WARNS_OF)
def test_a_limit_above_pillows_own_is_used_without_a_warning(name: str) -> None:
    large = PILLOW_WARNS_OF[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode(large, max_pixels=100_000_000) == 0).all()
    with pytest.raises(TooManyPixels):
        decode(large, max_pixels=99_999_999)


def test_nor_is_pillows_own_limit_twice_as_high_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode(pictures.png_bomb(18_000, 10_000, 1, GREY), max_pixels=180_000_000) == 0).all()
        assert (decode(_disposed_gif(18_000, 10_000), max_pixels=180_000_000) == 0).all()


def _disposed_gif(width: int, height: int) -> bytes:
    return encoded(Image.new("P", (width, height)), "GIF", disposal=2)


def test_a_jpeg_with_64_scans_passes_and_one_with_65_is_refused() -> None:
    assert pixels_of(pictures.jpeg_with_scans(64)).shape == (CROP, CROP, 3)
    with pytest.raises(BadImage, match="more than 64 scans"):
        pixels_of(pictures.jpeg_with_scans(65))


def test_a_jpeg_with_2000_segments_passes_and_one_with_2001_is_refused() -> None:
    plain = encoded(photo(50, 50), "JPEG")
    room = 2000 - len(pictures.jpeg_segments(plain))
    comment = pictures.jpeg_segment(0xFE, b"")
    filled = pictures.with_segments(plain, comment * room)
    assert np.array_equal(pixels_of(filled), pixels_of(plain))
    with pytest.raises(BadImage, match="more than 2000 segments"):
        pixels_of(pictures.with_segments(plain, comment * (room + 1)))


@pytest.mark.parametrize("kind", [b"teSt", b"IDAT", b"tEXt"])
def test_a_png_with_2000_chunks_passes_and_one_with_2001_is_refused(kind: bytes) -> None:
    assert pixels_of(pictures.png_with_chunks(2000, kind)).shape == (CROP, CROP, 3)
    with pytest.raises(BadImage, match="more than 2000 chunks"):
        pixels_of(pictures.png_with_chunks(2001, kind))


def test_a_webp_frame_with_2000_chunks_passes_and_one_with_2001_is_refused() -> None:
    def frame_of(count: int) -> bytes:
        chunks = [*pictures.webp_chunks(_sample("webp")), *[(b"JUNK", b"")] * (count - 1)]
        frame = bytes(6) + 2 * struct.pack("<I", 95)[:3] + bytes(4) + pictures.webp_of_chunks(chunks)[12:]
        canvas = pictures.webp_canvas(96, 96, flags=2)
        return pictures.webp_of_chunks([canvas, (b"ANIM", bytes(6)), (b"ANMF", frame)])

    assert np.array_equal(pixels_of(frame_of(2000)), pixels_of(_sample("webp")))
    with pytest.raises(BadImage, match="more than 2000 chunks in its first frame"):
        pixels_of(frame_of(2001))


def test_a_png_of_many_megabytes_passes_in_the_small_chunks_of_real_encoders() -> None:
    # ffmpeg writes 4096 bytes to a chunk: 2117 of them here. libpng writes 8192 where nobody asks for more.
    samples = noise(1_700, 1_700)
    whole = png(samples, 8, RGB)
    data = whole[41:-16]
    chunks = b"".join(
        pictures.png_chunk(b"IDAT", data[first : first + 4096]) for first in range(0, len(data), 4096)
    )
    theirs = recipe(Image.fromarray(samples.astype(np.uint8)))
    assert_close(pixels_of(whole[:33] + chunks + whole[-12:]), theirs, mean=UPRIGHT_MEAN, greatest=EXACT_MAX)


def test_scans_times_pixels_are_limited_too() -> None:
    # Over 50 million pixels, 20 scans of one component; here 333 million over three is the last.
    scans = b"".join(pictures.jpeg_segment(0xDA, b"\x03" + bytes(9)) for _ in range(7))
    frame = struct.pack(">BHHB", 8, 7_000, 7_000, 3) + b"\x01\x11\0\x02\x11\0\x03\x11\0"
    jpeg = b"\xff\xd8" + pictures.jpeg_segment(0xC2, frame) + scans + b"\xff\xd9"
    with pytest.raises(BadImage, match="1029000000 samples over its scans; the limit is 1000000000"):
        pixels_of(jpeg)


@pytest.mark.parametrize(
    ("frame", "in_first_scan", "bytes_per_pixel"),
    [(0xC0, 3, 2), (0xC1, 3, 2), (0xC0, 1, 8), (0xC0, 2, 8), (0xC1, 1, 8), (0xC2, 3, 8), (0xC2, 1, 8)],
)
def test_a_jpeg_of_several_scans_counts_the_samples_that_the_decoder_holds(
    frame: int, in_first_scan: int, bytes_per_pixel: int
) -> None:
    # A baseline JPEG of 50 megapixels with a scan for each component takes 313 MB, in one scan 24.
    header = struct.pack(">BHHB", 8, 2_000, 3_000, 3) + b"\x01\x11\0\x02\x11\0\x03\x11\0"
    scan = pictures.jpeg_segment(0xDA, bytes([in_first_scan]) + bytes(2 * in_first_scan + 3))
    rest = pictures.jpeg_segment(0xDA, b"\x01" + bytes(5)) * 2
    jpeg = b"\xff\xd8" + pictures.jpeg_segment(frame, header) + scan + rest + b"\xff\xd9"
    picture = first_picture(jpeg, max_pixels=MAX_PIXELS)
    assert picture.decoding_bytes == bytes_per_pixel * picture.pixels


def test_a_png_that_inflates_to_more_than_its_pixels_need_is_refused() -> None:
    header = struct.pack(">IIBBBBB", 7_000, 4_000, 16, 6, 0, 0, 0)  # 16-bit RGBA: 8 bytes each
    with pytest.raises(BadImage, match="224000000 bytes once inflated; the limit is 200000000"):
        pixels_of(pictures.png_of_parts(header, b"", b""))


@pytest.mark.parametrize("colour", range(8))
def test_a_png_of_bits_that_its_colours_never_have_is_refused(colour: int) -> None:
    # PNG, third edition, table 11.1; with a transparent colour, which is turned into the bits that there are.
    defined = {
        GREY: (1, 2, 4, 8, 16),
        RGB: (8, 16),
        PALETTE: (1, 2, 4, 8),
        GREY_ALPHA: (8, 16),
        RGBA: (8, 16),
    }
    for depth in set(range(256)) - set(defined.get(colour, ())):
        header = struct.pack(">IIBBBBB", 9, 9, depth, colour, 0, 0, 0)
        tables = pictures.png_chunk(b"PLTE", bytes(6)) + pictures.png_chunk(b"tRNS", bytes(6))
        for before_data in (b"", tables):
            with pytest.raises(BadImage, match=f"{depth} bits of colour type {colour}"):
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
    assert_close(
        pixels_of(opaque), pixels_of(plain).astype(np.float64), mean=UPRIGHT_MEAN, greatest=EXACT_MAX
    )


def test_a_lossless_webp_of_many_megabytes_passes() -> None:
    picture = np.asarray(photo(4000, 3000)).astype(np.int64) + noise(4000, 3000, highest=7)
    webp = encoded(Image.fromarray(picture.clip(0, 255).astype(np.uint8)), "WEBP", lossless=True, method=0)
    assert 15_000_000 < len(webp) < 20_000_000
    assert pixels_of(webp).shape == (CROP, CROP, 3)
    cut = pictures.webp_of_chunks([(b"VP8L", webp[20:-1]), (b"JUNK", bytes(20_000_000))])
    assert outcome(cut) == "pixels"  # what is behind the picture costs nothing


@pytest.mark.parametrize(("width", "height"), [(65_535, 1), (1, 65_535)])
def test_a_png_with_a_side_of_65535_passes_and_one_with_65536_is_refused(width: int, height: int) -> None:
    assert pixels_of(pictures.png_bomb(width, height)).shape == (CROP, CROP, 3)
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
from embedder.images.decode import decode_picture, first_picture

def resident(kind):
    return 1024 * int(re.search(kind + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

picture = first_picture(sys.stdin.buffer.read(), max_pixels=50_000_000)
Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
before = resident("VmRSS")
decode_picture(picture)
print(resident("VmHWM") - before, picture.decoding_bytes)
"""
LARGE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(photo(4000, 3000), "JPEG"),
    # Just too small to be scaled down, or more, while it is decoded.
    "jpeg: 2047 pixels": lambda: encoded(photo(2047, 2047), "JPEG"),
    "jpeg: 4095 pixels of 4:2:2": lambda: encoded(photo(4095, 4095), "JPEG", subsampling=1),
    "jpeg: 4095 pixels of 4:1:1": lambda: pictures.jpeg_of_coarse_colours(4095, 4095, 0x41),
    "jpeg: 1024 pixels in CMYK": lambda: encoded(photo(1024, 1024).convert("CMYK"), "JPEG"),
    "jpeg: narrow": lambda: encoded(photo(900, 12_000), "JPEG"),
    "jpeg: progressive": lambda: encoded(photo(4000, 3000), "JPEG", progressive=True),
    "jpeg: narrow and progressive": lambda: encoded(photo(900, 12_000), "JPEG", progressive=True),
    "jpeg: a pixel high": lambda: encoded(
        Image.new("CMYK", (65_500, 1)), "JPEG", progressive=True, subsampling=2
    ),
    "png": lambda: encoded(photo(4000, 3000), "PNG", compress_level=1),
    "png: as wide as may be": lambda: pictures.png_bomb(65_535, 380, 16, RGBA),
    "webp": lambda: encoded(photo(4000, 3000), "WEBP", method=0),
    "webp: lossless": lambda: encoded(photo(4000, 3000), "WEBP", lossless=True, method=0, quality=0),
    "webp: codes": lambda: pictures.webp_of_codes(256),
    "gif": lambda: encoded(photo(4000, 3000).convert("P"), "GIF"),
}


@pytest.mark.parametrize("name", LARGE)
def test_decoding_takes_about_the_memory_that_is_counted_for_it_at_most(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKES], cwd=ROOT, input=LARGE[name](), capture_output=True, check=True
    )
    taken, counted = map(int, done.stdout.split())
    # Beside the pixels are the file, of which the decoder has a copy, and the crop.
    assert taken <= 1.1 * counted + 2_000_000


# Hostile structure


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

# What they give, and how to make them: Pillow needs seconds to hours for some if it sees all.
FLOODS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "20 MB of quantisation tables": (
        "BadImage",
        lambda: pictures.with_segments(_sample("jpeg"), pictures.jpeg_segment(0xDB, TABLE * 1_008) * 300),
    ),
    "as many quantisation tables as may be": (
        "pixels",
        lambda: pictures.with_segments(_sample("jpeg"), pictures.jpeg_segment(0xDB, TABLE * 1_000)),
    ),
    "5 million empty comments": (
        "BadImage",
        lambda: pictures.with_segments(_sample("jpeg"), b"\xff\xfe\0\2" * 5_000_000),
    ),
    "1900 segments of EXIF": (
        "pixels",
        lambda: pictures.with_segments(
            _sample("jpeg"), pictures.jpeg_segment(0xE1, b"Exif\0\0" + bytes(9_000)) * 1_900
        ),
    ),
    "20 MB of noise before the scan": (
        "pixels",
        lambda: pictures.with_segments(_sample("jpeg"), b"\xff\xe0\0\2" + bytes(20_000_000)),
    ),
    "20 MB of fill bytes": (
        "pixels",
        lambda: _sample("jpeg")[:-2] + b"\xff" * 20_000_000 + b"\xff\xd9",
    ),
    "20 MB of stuffed bytes": (
        "pixels",
        lambda: _sample("jpeg")[:-2] + b"\xff\0" * 10_000_000 + b"\xff\xd9",
    ),
    "20 MB of restarts": (
        "pixels",
        lambda: _sample("jpeg")[:-2] + b"\xff\xd0" * 10_000_000 + b"\xff\xd9",
    ),
    "49 megapixels cut short": (
        "BadImage",
        lambda: encoded(Image.new("RGB", (7_000, 7_000)), "JPEG")[:20_000],
    ),
    "49 megapixels with an end but no middle": (
        "pixels",
        lambda: encoded(Image.new("RGB", (7_000, 7_000)), "JPEG")[:2_000] + b"\xff\xd9",
    ),
    "a million chunks": (
        "BadImage",
        lambda: _in_png(pictures.png_chunk(b"teSt", b"") * 1_000_000),
    ),
    "1900 texts that inflate to a megabyte": (
        "pixels",
        lambda: _in_png(pictures.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 1_900),
    ),
    "EXIF values that overlap": (
        "pixels",
        lambda: _in_png(pictures.png_chunk(b"eXIf", _overlapping_exif())),
    ),
    "300 000 WebP chunks": (
        "BadImage",
        lambda: pictures.webp_of_chunks(
            [(b"VP8X", pictures.webp_canvas(9, 9)[1]), *[(b"JUNK", b"")] * 300_000]
        ),
    ),
    "a comment in 9 million blocks": (
        "BadImage",
        lambda: pictures.gif_head(9, 9) + b"!\xfe" + b"\1a" * 9_000_000 + b"\0" + PIXEL_FRAME + b";",
    ),
    "60 000 frames": ("pixels", lambda: _sample("gif")[:-1] + PIXEL_FRAME * 60_000 + b";"),
    "a million frames": ("BadImage", lambda: _sample("gif")[:-1] + PIXEL_FRAME * 1_000_000),
    "20 MB of end codes": (
        "BadImage",
        lambda: _gif_of_7000((b"\xff" + b"\x6d\xdb\xb6" * 85) * 78_000),
    ),
    "14 MB of further frames": (
        "pixels",
        lambda: pictures.webp_of_chunks(
            [*pictures.webp_chunks(_sample("webp_animated")), (b"ANMF", bytes(14_000_000))]
        ),
    ),
    "25 million pixels of one colour in 1 KB": (
        "pixels",
        lambda: encoded(Image.new("RGB", (5_000, 5_000), "teal"), "WEBP", lossless=True, method=0),
    ),
    "a pixel on a canvas of 49 million": (
        "pixels",
        lambda: pictures.gif_head(7_000, 7_000) + PIXEL_FRAME + b";",
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_costs_little(name: str) -> None:
    expected, make = FLOODS[name]
    data = make()
    started = time.thread_time()
    assert outcome(data) == expected
    assert time.thread_time() - started < 0.8  # 0.3 s at most on the machine that it was built on


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


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("jpeg: end before its scans", "no picture in it"),
        ("jpeg: no lines", "9 x 0, which is no pixels"),
        ("jpeg: arithmetic", "lossless, hierarchical or arithmetic-coded"),
        ("jpeg: start within", "starts again before its end"),
        ("jpeg: two frames", "two frame headers"),
        ("png: wrong checksum", "a checksum is wrong"),
        ("webp: canvas only", "no picture in it"),
        ("webp: chunk longer than the file", "the WEBP is cut short"),
        ("gif: no frame", "no picture in it"),
        ("gif: too few pixels", "can't be decoded: damaged or cut short"),
    ],
)
def test_the_sentence_says_what_is_wrong(name: str, sentence: str) -> None:
    with pytest.raises(BadImage, match=sentence):
        pixels_of(ODD[name])


@pytest.mark.parametrize("name", pictures.samples())
def test_a_picture_of_another_size_than_was_admitted_is_not_decoded(name: str) -> None:
    picture = first_picture(_sample(name), max_pixels=MAX_PIXELS)
    for width, height in ((1, 0), (0, 1), (-1, 1)):
        other = replace(picture, width=picture.width + width, height=picture.height + height)
        with pytest.raises(BadImage, match="it states two sizes"):
            decode_picture(other)


def test_an_error_says_nothing_about_our_insides() -> None:
    for data in ODD.values():
        with pytest.raises(BadImage) as raised:
            pixels_of(data)
        assert not any(word in str(raised.value) for word in ("0x", "BytesIO", "PIL", "Error", "<"))


@pytest.mark.parametrize("name", pictures.samples())
def test_a_file_cut_short_is_a_bad_image(name: str) -> None:
    file = _sample(name)
    if name == "mpo":  # its first picture is all of it that counts
        file = file[: file.index(b"\xff\xd9") + 2]
    for kept in (HEAD_BYTES, 40, len(file) // 4, len(file) // 2, len(file) * 3 // 4, len(file) - 1):
        assert outcome(file[:kept]) == "BadImage", f"{kept} of {len(file)} bytes"
