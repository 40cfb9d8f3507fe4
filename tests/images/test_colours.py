"""Colours: every mode of every format becomes the RGB that its specification says, on white."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from embedder.model.spec import Preprocessing
from tests import pictures
from tests.images.reference import assert_close, difference, on_white, pixels_of, recipe
from tests.pictures import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, encoded, noise, photo, png


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "depth"), [(GREY, 1), (GREY, 2), (GREY, 4), (GREY, 8), (GREY, 16), (RGB, 8), (RGB, 16)]
)
def test_grey_and_colour_png_of_every_depth(colour: int, depth: int, interlaced: bool) -> None:
    samples = noise(300, 260, 1 if colour == GREY else 3, highest=2**depth - 1)
    levels = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    theirs = recipe(Image.fromarray(np.broadcast_to(levels, (260, 300, 3)).astype(np.uint8)))
    assert_close(pixels_of(png(samples, depth, colour, interlaced=interlaced)), theirs)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_png_of_every_depth(depth: int) -> None:
    palette = noise(2**depth, 1).astype(np.uint8)
    indices = noise(300, 260, 1, highest=2**depth - 1)
    theirs = recipe(Image.fromarray(palette[0][indices[..., 0]]))
    plte = pictures.png_chunk(b"PLTE", palette.tobytes())
    ours = pixels_of(png(indices, depth, PALETTE, before_data=plte))
    assert_close(ours, theirs)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour", "channels"), [(GREY_ALPHA, 2), (RGBA, 4)])
def test_alpha_is_composited_on_white_before_resampling(colour: int, channels: int, depth: int) -> None:
    samples = noise(300, 260, channels)  # what is transparent hides loud colours
    samples[..., -1] = np.where(samples[..., -1] < 128, 0, samples[..., -1])
    file = png(samples * (257 if depth == 16 else 1), depth, colour)
    theirs = recipe(on_white(samples[..., :-1], samples[..., -1:]))
    assert_close(pixels_of(file), theirs)


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
    assert_close(ours, theirs)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_that_means_transparent(depth: int) -> None:
    colours = noise(300, 260, 3)
    colours[100:150, 100:200] = colours[0, 0]
    alpha = np.where((colours == colours[0, 0]).all(axis=2, keepdims=True), 0, 255)
    theirs = recipe(on_white(colours, alpha))
    samples = colours << (depth - 8)
    trns = pictures.png_chunk(b"tRNS", struct.pack(">3H", *samples[0, 0].tolist()))
    ours = pixels_of(png(samples, depth, RGB, before_data=trns))
    assert_close(ours, theirs)


@pytest.mark.parametrize("alphas", [bytes(range(0, 256, 17)), b"\xff\xff\x00", b"\x00\x80"])
def test_a_palette_with_alpha(alphas: bytes) -> None:
    palette, indices = noise(16, 1), noise(300, 260, 1, highest=15)
    alpha = np.array([*alphas, *[255] * (16 - len(alphas))])
    theirs = recipe(on_white(palette[0][indices[..., 0]], alpha[indices]))
    tables = pictures.png_chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    tables += pictures.png_chunk(b"tRNS", alphas)
    ours = pixels_of(png(indices, 8, PALETTE, before_data=tables))
    assert_close(ours, theirs)


def test_webp_lossless_with_alpha() -> None:
    samples = noise(300, 260, 4)
    image = Image.fromarray(samples.astype(np.uint8))
    ours = pixels_of(encoded(image, "WEBP", lossless=True, exact=True))
    theirs = recipe(on_white(samples[..., :3], samples[..., 3:]))
    assert_close(ours, theirs)


def test_webp_lossy_and_lossless_without_alpha() -> None:
    for lossless in (False, True):
        webp = encoded(photo(400, 300), "WEBP", lossless=lossless)
        theirs = recipe(Image.open(io.BytesIO(webp)).convert("RGB"))
        assert_close(pixels_of(webp), theirs)


def test_gif_transparency_is_white() -> None:
    palette, indices = noise(16, 1), noise(300, 260, 1, highest=15)
    image = Image.fromarray(indices[..., 0].astype(np.uint8), "P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    theirs = recipe(on_white(palette[0][indices[..., 0]], np.where(indices == 5, 0, 255)))
    ours = pixels_of(encoded(image, "GIF", transparency=5))
    assert_close(ours, theirs)


def test_gif_without_a_palette_is_grey() -> None:
    grey = Image.fromarray(noise(300, 260, 1)[..., 0].astype(np.uint8))
    ours = pixels_of(encoded(grey, "GIF"))
    assert_close(ours, recipe(grey.convert("RGB")))


def test_grey_jpeg() -> None:
    jpeg = encoded(photo(400, 300).convert("L"), "JPEG")
    theirs = recipe(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    assert_close(pixels_of(jpeg), theirs)


def test_cmyk_jpeg_is_converted_before_resampling() -> None:
    samples = noise(400, 300, 4).astype(np.uint8)
    jpeg = encoded(Image.fromarray(samples, "CMYK"), "JPEG", quality=100)
    inks = np.asarray(Image.open(io.BytesIO(jpeg))).astype(np.float64)
    rgb = np.rint((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).astype(np.uint8)
    assert_close(pixels_of(jpeg), recipe(Image.fromarray(rgb)), mean=0.3)


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
    assert_close(pixels_of(animated), theirs)
    assert difference(theirs, recipe(second))[0] > 50  # the frames do differ


def test_the_first_picture_of_an_mpo() -> None:
    first, second = photo(300, 260), Image.new("RGB", (600, 500), (0, 0, 255))
    mpo = pictures.mpo(first, second)
    theirs = recipe(Image.open(io.BytesIO(mpo)).convert("RGB"))
    assert b"MPF\0" in mpo
    assert_close(pixels_of(mpo), theirs)


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
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic"])
@pytest.mark.parametrize("name", [name for name in pictures.samples() if not name.endswith("exif")])
def test_other_filters_convert_colours_in_the_same_way(name: str, interpolation: str) -> None:
    file = pictures.samples()[name]
    image = Image.open(io.BytesIO(file))
    if name in ("png_grey16", "tiff_grey16"):
        opaque = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode in ("LA", "RGBA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        opaque = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    else:
        opaque = image.convert("RGB")
    preprocessing = Preprocessing(60, 50, interpolation)
    assert_close(pixels_of(file, preprocessing), recipe(opaque, preprocessing))
