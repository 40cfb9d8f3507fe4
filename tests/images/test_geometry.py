"""Geometry: torchvision's Resize and CenterCrop for any Preprocessing, on the picture as EXIF turns it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from embedder.model.spec import Preprocessing
from tests import pictures
from tests.images.reference import (
    EXACT_MAX,
    REDUCED_MAX,
    REDUCED_MEAN,
    RESNET,
    UPRIGHT_MEAN,
    assert_close,
    difference,
    pixels_of,
    recipe,
)
from tests.pictures import encoded, noise, photo

GEOMETRIES = [
    Preprocessing(256, 256, "bicubic"),
    Preprocessing(72, 64, "bicubic"),
    Preprocessing(518, 518, "bicubic"),
    Preprocessing(96, 64, "lanczos"),
    Preprocessing(64, 64, "bicubic", "squash"),
    Preprocessing(72, 64, "bicubic", "squash"),
]
SIZES = [(256, 256), (255, 257), (427, 640), (999, 223), (33, 77), (80, 200), (1, 1), (3, 90)]


def name(preprocessing: Preprocessing) -> str:
    return f"{preprocessing.resize}-{preprocessing.crop}-{preprocessing.interpolation}-{preprocessing.mode}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preprocessing", GEOMETRIES, ids=name)
def test_pixels_are_those_of_torchvision(preprocessing: Preprocessing, size: tuple[int, int]) -> None:
    for image in (photo(*size), Image.fromarray(noise(*size).astype(np.uint8))):
        ours = pixels_of(encoded(image, "PNG", compress_level=1), preprocessing)
        assert_close(ours, recipe(image, preprocessing))


# Over 4 million pixels, and those that are converted first, go strip by strip; what is wide, or turned, by
# columns.
@pytest.mark.parametrize("size", [(2300, 2200), (1300, 4000)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize(
    ("orientation", "preprocessing"), [(1, RESNET), (6, Preprocessing(518, 518, "bicubic"))]
)
def test_strips_give_the_pixels_of_the_whole(
    orientation: int, preprocessing: Preprocessing, mode: str, size: tuple[int, int]
) -> None:
    image = Image.fromarray(noise(*size).astype(np.uint8))
    file = pictures.oriented(image.convert(mode), "PNG", orientation, compress_level=1)
    upright = image.convert("L").convert("RGB") if mode == "L" else image
    if orientation == 6:
        upright = upright.transpose(Image.Transpose.ROTATE_270)
    assert_close(pixels_of(file, preprocessing), recipe(upright, preprocessing))


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_line_of_60000_pixels_gives_its_middle(size: tuple[int, int]) -> None:
    # torchvision would make 15 million pixels of it first. Its crop is the middle 224/256 pixels
    # of the line: of the two in the middle, the first has more weight in the first half.
    line = np.zeros((60_000, 3), np.uint8)
    line[29_999], line[30_000] = (200, 0, 0), (0, 0, 100)
    image = Image.fromarray(line.reshape(size[1], size[0], 3))
    ours = pixels_of(encoded(image, "PNG")).astype(np.float64)
    along = ours if size[0] == 1 else ours.transpose(1, 0, 2)
    share = 0.5 - (np.arange(224) + 0.5 - 112) / 256  # of the first of the two
    expected = np.stack([200 * share, 0 * share, 100 * (1 - share)], axis=-1)
    assert np.abs(along - expected[:, np.newaxis, :]).max() <= 1.5


@pytest.mark.parametrize("size", [(640, 427), (1000, 999), (3001, 2003)])
def test_the_parity_bounds_notice_a_wrong_crop_size_or_filter(size: tuple[int, int]) -> None:
    image = photo(*size)
    right = recipe(image)
    resized = np.asarray(transforms.Resize(256)(image))
    top, left = ((side - 224 + 1) // 2 for side in resized.shape[:2])
    shifted = difference(resized[top : top + 224, left - 1 : left + 223], right)[0]
    squashed = difference(np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)), right)[0]
    assert min(shifted, squashed) > 2 * REDUCED_MEAN
    for interpolation in ("bicubic", "lanczos"):
        other = recipe(image, Preprocessing(256, 224, interpolation))
        assert difference(other, right)[0] > 2 * UPRIGHT_MEAN


# JPEGs that are reduced while they are decoded: to 1/2 where that leaves twice the resized size, to 1/4
# likewise


@pytest.mark.parametrize(
    ("size", "reduction"),
    [((1023, 1600), 1), ((1024, 1024), 2), ((2047, 2050), 2), ((2049, 2048), 4), ((4099, 5000), 4)],
)
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_a_jpeg_is_reduced_while_it_is_decoded_and_stays_close(
    size: tuple[int, int], reduction: int, options: dict[str, int | bool]
) -> None:
    jpeg = encoded(photo(*size), "JPEG", quality=90, **options)
    ours, theirs = pixels_of(jpeg), recipe(Image.open(io.BytesIO(jpeg)))
    if reduction == 1:
        assert_close(ours, theirs)
    else:
        assert difference(ours, theirs) > (UPRIGHT_MEAN, EXACT_MAX)
        assert_close(ours, theirs, mean=REDUCED_MEAN, largest=REDUCED_MAX)


# Photos have more detail for each pixel of a small network's input, so the difference is greater there, with
# any filter: bilinear's bound is also that of the others.
@pytest.mark.parametrize(("resize", "mean"), [(72, 0.9), (256, REDUCED_MEAN), (518, REDUCED_MEAN)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_the_reduction_follows_the_networks_size(interpolation: str, resize: int, mean: float) -> None:
    preprocessing = Preprocessing(resize, resize, interpolation)
    for side, reduced in ((4 * resize - 1, False), (4 * resize, True), (8 * resize, True)):
        jpeg = encoded(photo(side, side + 99), "JPEG", quality=90)
        measured = difference(
            pixels_of(jpeg, preprocessing), recipe(Image.open(io.BytesIO(jpeg)), preprocessing)
        )
        assert (measured[0] > UPRIGHT_MEAN) is reduced
        assert measured <= (mean, 20)


@pytest.mark.parametrize("size", [(1024, 1536), (1536, 2047), (2048, 2048), (4096, 4096)])
@pytest.mark.parametrize("factors", [0x21, 0x41, 0x14])
def test_a_jpeg_of_coarse_colours_is_reduced_only_where_four_times_the_target_is_left(
    size: tuple[int, int], factors: int
) -> None:
    # Reduced like others, its colours would have half the target's size: 1.0 levels off, 30 at most.
    jpeg = (
        encoded(photo(*size), "JPEG", quality=90, subsampling=1)
        if factors == 0x21
        else pictures.jpeg_of_coarse_colours(*size, factors)
    )
    ours, theirs = pixels_of(jpeg), recipe(Image.open(io.BytesIO(jpeg)))
    assert (difference(ours, theirs)[0] > UPRIGHT_MEAN) is (min(size) >= 2048)
    assert_close(ours, theirs, mean=REDUCED_MEAN, largest=REDUCED_MAX)


def test_a_reduced_jpeg_is_not_shifted_by_its_partial_last_column() -> None:
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
@pytest.mark.parametrize("preprocessing", GEOMETRIES, ids=name)
def test_exif_orientation_comes_before_the_recipe(preprocessing: Preprocessing, orientation: int) -> None:
    for size in ((639, 427), (80, 200), (123, 64)):
        stored = noise(*size).astype(np.uint8)
        file = pictures.oriented(Image.fromarray(stored), "PNG", orientation, compress_level=1)
        theirs = recipe(Image.fromarray(upright(stored, orientation)), preprocessing)
        assert_close(pixels_of(file, preprocessing), theirs)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "size"),
    [("JPEG", (427, 639)), ("JPEG", (1501, 1100)), ("WEBP", (427, 639)), ("AVIF", (427, 639))],
)
def test_jpeg_webp_and_avif_have_an_orientation_too(
    format: str, size: tuple[int, int], orientation: int
) -> None:
    file = pictures.oriented(photo(*size), format, orientation)
    stored = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    theirs = recipe(Image.fromarray(upright(stored, orientation)))
    reduced = min(size) >= 1024
    assert_close(
        pixels_of(file),
        theirs,
        mean=REDUCED_MEAN if reduced else UPRIGHT_MEAN,
        largest=REDUCED_MAX if reduced else EXACT_MAX,
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_has_an_orientation_too(compression: str | None, orientation: int) -> None:
    options = {} if compression is None else {"compression": compression}
    file = pictures.oriented(photo(427, 639), "TIFF", orientation, **options)
    theirs = recipe(Image.fromarray(upright(np.asarray(photo(427, 639)), orientation)))
    assert_close(pixels_of(file), theirs)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """From the EXIF specification: where the first row and column are when shown."""
    return np.ascontiguousarray(
        {
            1: stored,
            2: stored[:, ::-1],
            3: stored[::-1, ::-1],
            4: stored[::-1],
            5: stored.swapaxes(0, 1),
            6: stored[::-1].swapaxes(0, 1),
            7: stored[::-1, ::-1].swapaxes(0, 1),
            8: stored[:, ::-1].swapaxes(0, 1),
        }[orientation]
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_may_be_of_either_byte_order(order: str) -> None:
    plain = encoded(photo(300, 200), "JPEG")
    turned = pictures.with_segments(plain, pictures.jpeg_segment(0xE1, pictures.exif(3, order=order)))
    assert np.array_equal(pixels_of(turned), pixels_of(plain)[::-1, ::-1])


def test_an_exif_behind_the_picture_does_not_count() -> None:
    plain = encoded(photo(300, 200), "JPEG")
    late = plain[:-2] + pictures.jpeg_segment(0xE1, pictures.exif(3)) + plain[-2:]
    assert np.array_equal(pixels_of(late), pixels_of(plain))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_of_several_exifs_the_first_counts_even_if_it_says_nothing(format: str) -> None:
    plain = encoded(photo(96, 96), format)
    empty = b"II*\0" + struct.pack("<IH", 8, 0) + bytes(4)
    for first, step in ((pictures.exif(4)[6:], -1), (empty, 1)):
        exifs = [first, pictures.exif(3)[6:]]
        if format == "JPEG":
            segments = (pictures.jpeg_segment(0xE1, b"Exif\0\0" + exif) for exif in exifs)
            many = pictures.with_segments(plain, b"".join(segments))
        elif format == "PNG":
            many = plain[:33] + b"".join(pictures.png_chunk(b"eXIf", exif) for exif in exifs) + plain[33:]
        else:
            chunks = [*((b"EXIF", exif) for exif in exifs), *pictures.webp_chunks(plain)]
            many = pictures.webp_of_chunks([pictures.webp_canvas(96, 96, 0x08), *chunks])
        assert np.array_equal(pixels_of(many), pixels_of(plain)[::step])


@pytest.mark.parametrize(
    "exif",
    {
        "0": pictures.exif(0),
        "9": pictures.exif(9),
        "another type": pictures.exif(6, kind=2),
        "two values": pictures.exif(6, count=2),
        "cut short": pictures.exif(6)[:20],
        "empty": b"Exif\0\0",
        "a directory behind the end": b"Exif\0\0II*\0" + struct.pack("<I", 0xFFFFFFFF),
        "another byte order": b"Exif\0\0XX*\0" + bytes(40),
    }.values(),
)
def test_nonsense_in_exif_is_ignored(exif: bytes) -> None:
    plain = encoded(photo(300, 200), "JPEG")
    odd = pictures.with_segments(plain, pictures.jpeg_segment(0xE1, exif))
    assert np.array_equal(pixels_of(odd), pixels_of(plain))
