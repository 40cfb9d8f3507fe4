"""The service's vectors against the replaced service's own recipe: same weights, same photos."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data_dir  # type: ignore[attr-defined]  # it is lazy

from tests.conftest import Reference
from tests.origin import Origin
from tests.server import Server

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
# Widths and heights: small, ordinary, wide, tall, odd, and as cameras make them.
SMALL = ((224, 224), (256, 256), (300, 200), (640, 427), (427, 640), (801, 601), (1500, 500), (257, 1023))
LARGE = ((1600, 1067), (1067, 1600), (2047, 1365), (4000, 3000), (3001, 4003))

MODES = {
    "PNG": "LP",
    "JPEG": ("L", "CMYK"),
    "GIF": "P",
    "BMP": "LP1",
    "TIFF": ("L", "P", "1", "CMYK"),
    "AVIF": "L",
}


def picture(name: str, size: tuple[int, int], format: str) -> bytes:
    with Image.open(Path(data_dir) / name) as photo:
        resized = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    resized.save(file, format, quality=90, compress_level=1)  # the one for JPEG and WebP, the other for PNG
    return file.getvalue()


def cosines(server: Server, origin: Origin, reference: Reference, pictures: list[bytes]) -> list[float]:
    """Between the service's vector and the recipe's, one for each picture."""
    for index, data in enumerate(pictures):
        origin.serve(f"/parity/{index}", data)
    urls = [origin.url(f"/parity/{index}") for index in range(len(pictures))]
    embeddings = [
        embedding
        for first in range(0, len(urls), 64)
        for embedding in server.post("/embed_batch", {"urls": urls[first : first + 64]}).json()["embeddings"]
    ]
    return [
        float(np.array(embedding) @ reference(data))
        for embedding, data in zip(embeddings, pictures, strict=True)
    ]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF"])
def test_vectors_are_the_recipes_where_nothing_is_scaled_while_decoding(
    server: Server, origin: Origin, reference: Reference, format: str
) -> None:
    pictures = [picture(name, size, format) for name, size in zip(2 * PHOTOS, SMALL + SMALL[:4], strict=True)]
    assert min(cosines(server, origin, reference, pictures)) >= 0.9999


def test_vectors_are_the_recipes_for_pictures_in_grey_palettes_bits_and_inks(
    server: Server, origin: Origin, reference: Reference
) -> None:
    pictures = []
    for name in PHOTOS[:2]:
        with Image.open(Path(data_dir) / name) as photo:
            for format, mode in ((format, mode) for format, modes in MODES.items() for mode in modes):
                file = io.BytesIO()
                photo.convert("RGB").convert(mode).save(file, format)
                pictures.append(file.getvalue())
            icon = io.BytesIO()
            photo.convert("RGB").save(icon, "ICO", sizes=[(256, 256)])
            pictures.append(icon.getvalue())
    assert min(cosines(server, origin, reference, pictures)) >= 0.9999


def test_vectors_of_large_png_and_webp_pictures_are_the_recipes(
    server: Server, origin: Origin, reference: Reference
) -> None:
    pictures = [picture(name, (1600, 1067), format) for name in PHOTOS[:2] for format in ("PNG", "WEBP")]
    assert min(cosines(server, origin, reference, pictures)) >= 0.9999


def test_vectors_of_large_jpegs_are_near_the_recipes(
    server: Server, origin: Origin, reference: Reference
) -> None:
    pictures = [picture(name, size, "JPEG") for name, size in zip(PHOTOS, (*LARGE, LARGE[0]), strict=True)]
    assert min(cosines(server, origin, reference, pictures)) >= 0.999


def test_a_crop_that_is_two_pixels_off_would_not_pass(reference: Reference) -> None:
    with Image.open(Path(data_dir) / "astronaut.png") as photo:
        square = photo.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
    shifted = Image.new("RGB", (256, 256))
    shifted.paste(square, (2, 2))
    vectors = []
    for image in (square, shifted):
        file = io.BytesIO()
        image.save(file, "PNG")
        vectors.append(reference(file.getvalue()))
    assert vectors[0] @ vectors[1] < 0.999
