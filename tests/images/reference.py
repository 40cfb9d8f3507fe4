"""What an image file must be decoded to: torchvision's transforms on the upright, opaque RGB picture."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from embedder.images.decode import decode, prepare_pillow
from embedder.images.formats import ON
from embedder.model.spec import Preprocessing

Pixels = NDArray[np.uint8]

MAX_PIXELS = 50_000_000
RESNET = Preprocessing(256, 224)

# Pixels differ from torchvision's by a level or two in under 1 % of the samples, because Pillow takes boxes
# as 32-bit floats.
UPRIGHT_MEAN, EXACT_MAX = 0.01, 2
# JPEGs that the decoder reduced are filtered twice.
REDUCED_MEAN, REDUCED_MAX = 0.6, 15


prepare_pillow()  # as in a decoding process


def pixels_of(data: bytes, preprocessing: Preprocessing = RESNET, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """As a decoding process makes them, uint8 (crop, crop, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = decode(data, preprocessing, formats=ON, max_pixels=max_pixels)
    shape = preprocessing.crop, preprocessing.crop, 3
    return np.frombuffer(picture.pixels, np.uint8).reshape(shape)


def recipe(image: Image.Image, preprocessing: Preprocessing = RESNET) -> Pixels:
    """What torchvision makes of an upright RGB image."""
    interpolation = InterpolationMode(preprocessing.interpolation)
    squash = preprocessing.mode == "squash"
    size = (preprocessing.resize, preprocessing.resize) if squash else preprocessing.resize
    resize = transforms.Resize(size, interpolation)
    return np.asarray(transforms.CenterCrop(preprocessing.crop)(resize(image)))


def on_white(colour: NDArray[np.int64], alpha: NDArray[np.int64]) -> Image.Image:
    """The definition of compositing, for channels of 0 to 255 (height, width, n)."""
    mixed = np.rint((colour * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(mixed, (*mixed.shape[:2], 3)).copy())


def difference(ours: Pixels, theirs: Pixels) -> tuple[float, int]:
    """Mean and largest absolute difference, in levels of 0 to 255."""
    assert ours.shape == theirs.shape
    levels = np.abs(ours.astype(np.int64) - theirs)
    return float(levels.mean()), int(levels.max())


def assert_close(
    ours: Pixels, theirs: Pixels, *, mean: float = UPRIGHT_MEAN, largest: int = EXACT_MAX
) -> None:
    measured = difference(ours, theirs)
    assert measured[0] <= mean, measured
    assert measured[1] <= largest, measured
