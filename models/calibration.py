"""Images for int8: some to calibrate on, others to measure on. Decoded as the service decodes them.

They are scikit-image's packaged photos, cut into pieces, or a collection of the user's own, which is
better: the ranges of the activations are those of the images that they were seen on.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedder.errors import EmbedderError
from embedder.images.decode import decode
from embedder.images.formats import ON
from embedder.model.encoder import Pixels
from embedder.model.spec import Preprocessing
from models import QuantizationError
from models.photos import photo

CALIBRATION_PHOTOS = (
    "astronaut.png",
    "camera.png",
    "coffee.png",
    "coins.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
)
HELD_OUT_PHOTOS = (
    "brick.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "grass.png",
    "moon.png",
    "retina.jpg",
    "rocket.jpg",
)
"""Other photos, not other pieces of the same ones."""

MIN_IMAGES = 150
"""100 to calibrate on, and 50 to measure on: fewer have hardly more than 10 neighbours to mix up."""
MAX_BYTES = 1500 * 3 * 224**2
"""Once decoded, 226 MB. For ResNet18 int8 then takes about 2 minutes more."""
MAX_PIXELS = 50_000_000
"""Larger images are skipped; the service's default."""


@dataclass(frozen=True)
class Images:
    """uint8 (n, crop, crop, 3) each, with no image in both."""

    calibration: Pixels
    held_out: Pixels
    skipped: int = 0
    """Files that can't be read, or are no image that the service can embed."""
    description: str = "sample photos"
    """Of where they are from, without any path."""


@dataclass(frozen=True)
class Collection:
    """Files, each content once, in the order of their sha256: the same split wherever they lie."""

    files: tuple[Path, ...]
    unreadable: int
    description: str
    """Names the collection without any path, and is another for other files."""


def sample_images(preprocessing: Preprocessing) -> Images:
    """112 pieces of `CALIBRATION_PHOTOS` and 112 of `HELD_OUT_PHOTOS`."""
    return Images(_pieces(CALIBRATION_PHOTOS, preprocessing), _pieces(HELD_OUT_PHOTOS, preprocessing))


def find(source: Path) -> Collection:
    """The files of `source`: all below a directory, or those that a text file names, one on a line.

    Relative names start at the current directory. Reads every file once; of two with the same content
    one is left out. Raises `QuantizationError` if fewer than `MIN_IMAGES` are left.
    """
    by_sha256: dict[str, Path] = {}
    unreadable = 0
    for path in sorted(_listed(source)):
        try:
            by_sha256[hashlib.sha256(path.read_bytes()).hexdigest()] = path
        except OSError:
            unreadable += 1
    if len(by_sha256) < MIN_IMAGES:
        raise QuantizationError(
            f"{source} has {len(by_sha256)} different files that can be read; "
            f"calibration takes {MIN_IMAGES} images or more"
        )
    order = sorted(by_sha256)
    together = hashlib.sha256("".join(order).encode()).hexdigest()
    return Collection(
        tuple(by_sha256[sha256] for sha256 in order),
        unreadable,
        f"own images, {len(order)} files, sha256 {together[:12]}",
    )


def own_images(collection: Collection, preprocessing: Preprocessing) -> Images:
    """The first third held out, the rest to calibrate on; at most as many in all as `MAX_BYTES` hold.

    Files that can't be decoded are skipped. Raises `QuantizationError` if that leaves fewer than
    `MIN_IMAGES`.
    """
    decoded: list[Pixels] = []
    most = max(MIN_IMAGES, MAX_BYTES // (3 * preprocessing.crop**2))
    skipped = collection.unreadable
    for path in collection.files:
        if len(decoded) == most:
            break
        try:
            decoded.append(_decoded(path.read_bytes(), preprocessing))
        except (EmbedderError, OSError):
            skipped += 1
    if len(decoded) < MIN_IMAGES:
        raise QuantizationError(
            f"{len(decoded)} of {len(collection.files)} files are images that can be embedded; "
            f"calibration takes {MIN_IMAGES} or more"
        )
    pixels = np.stack(decoded)
    held_out = len(pixels) // 3
    return Images(pixels[held_out:], pixels[:held_out], skipped, collection.description)


def _listed(source: Path) -> list[Path]:
    try:
        if source.is_dir():
            return [path for path in source.rglob("*") if path.is_file()]
        return [Path(line.strip()) for line in source.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as exc:
        raise QuantizationError(f"{source} is no directory, and no text with a path on each line") from exc
    except OSError as exc:
        raise QuantizationError(f"{source} can't be read: {exc.strerror}") from exc


def _pieces(names: tuple[str, ...], preprocessing: Preprocessing) -> Pixels:
    """Each photo whole, in quarters and in ninths: 14 images."""
    pieces = []
    for name in names:
        whole = photo(name)
        for parts in (1, 2, 3):
            columns = [whole.width * index // parts for index in range(parts + 1)]
            rows = [whole.height * index // parts for index in range(parts + 1)]
            for row in range(parts):
                for column in range(parts):
                    box = (columns[column], rows[row], columns[column + 1], rows[row + 1])
                    png = io.BytesIO()
                    whole.crop(box).save(png, "PNG", compress_level=1)
                    pieces.append(_decoded(png.getvalue(), preprocessing))
    return np.stack(pieces)


def _decoded(file: bytes, preprocessing: Preprocessing) -> Pixels:
    picture = decode(file, preprocessing, formats=ON, max_pixels=MAX_PIXELS)
    return np.frombuffer(picture.pixels, np.uint8).reshape(preprocessing.crop, preprocessing.crop, 3)
