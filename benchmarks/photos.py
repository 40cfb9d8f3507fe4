"""The photos that every side embeds: scikit-image's, as files of three ordinary kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from models.photos import sample_photos

SIZES = {"640": (640, 480), "1600": (1600, 1200), "12MP": (4000, 3000)}
"""Width and height, by the name that the tables give it."""

# Enlarged photos are smooth, and so cheaper to decode than what a camera writes. This much noise makes a
# 12-megapixel file 3 to 4 MB, as a phone's.
NOISE_LEVELS = 5.0


def make_photos(folder: Path, size: str) -> list[Path]:
    """JPEG files of that size in `folder`, made where they are missing: each photo, and its mirror image."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.jpg" for number in range(2 * len(sample_photos()))]
    if not all(file.is_file() for file in files):
        photos = sample_photos()
        for number, file in enumerate(files):
            photo = photos[number // 2]
            _write(ImageOps.mirror(photo) if number % 2 else photo, SIZES[size], file, seed=number)
    return files


def _write(photo: Image.Image, size: tuple[int, int], file: Path, *, seed: int) -> None:
    scaled = np.asarray(ImageOps.fit(photo, size, Image.Resampling.LANCZOS), dtype=np.float32)
    grain = np.random.default_rng(seed).standard_normal(scaled.shape[:2], dtype=np.float32)
    noisy = scaled + NOISE_LEVELS * grain[:, :, np.newaxis]
    partial = file.with_suffix(".part")
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(partial, "JPEG", quality=85)
    partial.rename(file)
