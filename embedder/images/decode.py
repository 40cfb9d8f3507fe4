"""An image file as the pixels that the network takes. The only file that knows Pillow.

    bytes ─► containers: first picture ─► Pillow: decode ─► crop, white behind, resize, turn ─► uint8

The geometry is torchvision's `Resize(256)` and `CenterCrop(224)` on the upright picture, to the
pixel. Only the source pixels of those 224 x 224 are converted and resampled, and they are turned
upright last, when they are few.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from embedder.errors import BadImage
from embedder.images.containers import HEAD_BYTES, Picture, first_picture, sniff

__all__ = ["CROP", "HEAD_BYTES", "RESIZE", "Picture", "decode", "decode_picture", "first_picture", "sniff"]

RESIZE = 256
"""The short side of the picture, in pixels, before the crop."""

CROP = 224
"""Both sides of the crop, in pixels."""

STRIP_ROWS = 256  # a strip of a 50-megapixel square is 7 MB: fits a cache, unlike the 200 MB whole

# What is decoded was admitted by its pixels before. Pillow's own limit is in some of its plugins too, and a
# `max_pixels` above it would mean nothing there.
Image.MAX_IMAGE_PIXELS = None

_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
}

_PILLOW_RAISES = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""On damaged data, from its plugins' own parsing or its C code."""

# What turns a stored picture upright, by its EXIF orientation; which of its axes that mirrors.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MIRRORS_COLUMNS = (2, 3, 7, 8)
_MIRRORS_ROWS = (3, 4, 6, 7)


def decode(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """The picture in an image file, uint8 (224, 224, 3), RGB, C-contiguous.

    The first frame of an animation, upright, transparency on white, colour profiles ignored.
    Blocks for up to 1.9 s of CPU, for the dearest 50 million pixels, and releases the GIL for most of it; any
    thread may call it.

    Raises UnsupportedFormat, TooManyPixels (width times height over `max_pixels`), BadImage, and MemoryError
    where there is not enough now.
    """
    return decode_picture(first_picture(data, max_pixels=max_pixels))


def decode_picture(picture: Picture) -> NDArray[np.uint8]:
    """`decode` of what `first_picture` found. Takes about `picture.decoding_bytes` of memory meanwhile."""
    try:
        return _pixels(picture)
    except _PILLOW_RAISES as exc:
        raise BadImage(f"the {picture.format} can't be decoded: damaged or cut short") from exc


def _pixels(picture: Picture) -> NDArray[np.uint8]:
    # Not Image.open: it would try other formats as well.
    image = _PLUGINS[picture.format](io.BytesIO(picture.data))
    if image.size != (picture.width, picture.height):  # all limits are of the picture that was admitted
        raise BadImage(f"the {picture.format} is damaged: it states two sizes")
    # The file as one block: of several, Pillow copies all that is left over, each time it adds one.
    image.decodermaxblock = max(image.decodermaxblock, len(picture.data))
    # A JPEG is decoded at 1/2 or 1/4 where that leaves twice the target. (With 1/8 the cosine to
    # torchvision's embedding fell from 0.9998 to 0.995, on sharp textures, for 6 ms of 34.) Coarse
    # colours are scaled down with the rest, to less than the target: they need twice as much (with
    # 4:2:2 it fell to 0.9986, with 4:1:1 to 0.998). The last column and row may then stand for
    # fewer pixels than the others, so sizes are fractions from here on: 3001 at 1/4 are 750.25.
    least = max((4 if picture.coarse_colours else 2) * RESIZE, min(image.size) // 4)
    drafted = image.draft(None, (least, least))
    width, height = drafted[1][2:] if drafted else image.size
    image.load()

    short = min(width, height)
    columns = _span(width, short, image.width, mirrored=picture.orientation in _MIRRORS_COLUMNS)
    rows = _span(height, short, image.height, mirrored=picture.orientation in _MIRRORS_ROWS)
    crop = _resample(image, columns, rows)
    if picture.orientation in _UPRIGHT:
        crop = crop.transpose(_UPRIGHT[picture.orientation])
    return np.array(crop.convert("RGB"))


class _Span(NamedTuple):
    """What the crop takes along one axis of the stored picture, in its pixels."""

    first: int
    last: int
    """The pixels that the filter touches, from `first` up to but not including `last`."""
    start: float
    stop: float
    """The crop's edges, counted from `first`."""


def _span(size: float, short: float, stored: int, *, mirrored: bool) -> _Span:
    """The crop along an axis of `size` pixels, of which the decoder gave `stored` whole ones.

    `short` is the short side. Sources: torchvision's `_compute_resized_output_size` (the long side
    is truncated) and `center_crop` (the offset is rounded, ties to even). The offset belongs to
    the upright picture: along a mirrored axis, one that was rounded is rounded the other way.
    """
    resized = RESIZE if size == short else int(RESIZE * size / short)
    offset = round((resized - CROP) / 2)
    if mirrored:
        offset = resized - CROP - offset
    scale = size / resized
    start, stop = offset * scale, (offset + CROP) * scale
    reach = max(scale, 1.0)  # of the bilinear filter, which antialiases when it shrinks
    first = max(0, math.floor(start - reach))
    last = min(stored, math.ceil(stop + reach))
    return _Span(first, last, start - first, stop - first)


def _resample(image: Image.Image, columns: _Span, rows: _Span) -> Image.Image:
    """The crop, CROP x CROP, in mode L or RGB.

    Where pixels are converted first, Pillow's two passes, columns then rows, are taken one by one, and the
    first goes strip by strip: so there is never more than a strip of converted pixels. It costs a third more.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        # Cut out first: ties in rounding fall as torchvision's do only where offsets are small.
        part = image.crop((columns.first, rows.first, columns.last, rows.last))
        box = (columns.start, rows.start, columns.stop, rows.stop)
        return part.resize((CROP, CROP), Image.Resampling.BILINEAR, box)
    strips = []
    for top in range(rows.first, rows.last, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, rows.last)
        strip = _opaque(image.crop((columns.first, top, columns.last, bottom)))
        across = (columns.start, 0.0, columns.stop, float(strip.height))
        strips.append(strip.resize((CROP, strip.height), Image.Resampling.BILINEAR, across))

    narrow = Image.new(strips[0].mode, (CROP, rows.last - rows.first))
    for index, strip in enumerate(strips):
        narrow.paste(strip, (0, STRIP_ROWS * index))
    down = (0.0, rows.start, float(CROP), rows.stop)
    return narrow.resize((CROP, CROP), Image.Resampling.BILINEAR, down)


def _opaque(image: Image.Image) -> Image.Image:
    """The same pixels in mode L or RGB, where the mean of two is what the eye makes of them.

    Not so for indices, bits and inks; nor for alpha: the hidden colours of transparent pixels
    would bleed into their neighbours, so white is put behind them before they are mixed.
    """
    if image.mode == "I;16":
        return _grey_of_16_bits(image)
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image.convert("L" if image.mode == "1" else "RGB")


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """Its high bytes. Pillow's own conversion clips at 255, which makes most of a picture white."""
    samples = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[samples == image.info["transparency"]] = 255  # white shows through
    return Image.fromarray(grey)
