"""Photos that are there without a network: those inside scikit-image's package."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from skimage import data_dir  # type: ignore[attr-defined]  # exported lazily, which mypy can't see

SAMPLE_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
"""The colour photos."""


def photo(name: str) -> Image.Image:
    """One of scikit-image's packaged images by its file's name, RGB."""
    with Image.open(Path(data_dir, name)) as file:
        return file.convert("RGB")


def sample_photos() -> list[Image.Image]:
    """The colour photos, RGB, in the order of `SAMPLE_PHOTOS`."""
    return [photo(name) for name in SAMPLE_PHOTOS]
