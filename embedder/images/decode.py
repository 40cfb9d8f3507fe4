"""An image file into the pixels that a network takes. The only file that knows Pillow, written for Pillow 13.

    bytes ─► containers: first picture ─► Pillow: decode ─► crop, composite on white, resize, turn ─► uint8

The geometry is torchvision's `Resize(resize, interpolation)` and `CenterCrop(crop)` on the upright picture.
Only the source pixels of the crop are converted and resampled. They are turned upright last, when they are
few.

Pillow's plugin classes are called directly, because `Image.open` would try other formats as well. Importing
this file changes nothing in Pillow, and `Image.MAX_IMAGE_PIXELS` stays as the process has it: pictures are
admitted by `max_pixels` before. Only WebP decoding asks Pillow's limit, and fails beyond twice its value,
which is 179 million pixels unless the process changes it.
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

from embedder.errors import BadImage, TooManyPixels
from embedder.images.containers import ONE_PASS_PIXELS, Picture, first_picture, jpeg_reduction
from embedder.model.spec import Preprocessing

STRIP_LINES = 256  # a strip of a 50-megapixel square is 7 MB: it fits a cache, the 200 MB whole does not

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
"""On damaged data, from the plugins' own parsing or Pillow's C code."""


class _Filter(NamedTuple):
    resampling: Image.Resampling
    reach: float
    """How far from a point the filter looks, in pixels of the coarser of its two images."""


_FILTERS = {
    "bilinear": _Filter(Image.Resampling.BILINEAR, 1.0),
    "bicubic": _Filter(Image.Resampling.BICUBIC, 2.0),
    "lanczos": _Filter(Image.Resampling.LANCZOS, 3.0),
}

# How a stored picture is turned upright, by its EXIF orientation, and which of its axes that mirrors.
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
_SWAPS_AXES = (5, 6, 7, 8)


def decode(data: bytes, preprocessing: Preprocessing, *, max_pixels: int) -> NDArray[np.uint8]:
    """The picture in an image file, uint8 (crop, crop, 3), RGB, C-contiguous.

    Takes the first frame of an animation, turns it upright by its EXIF orientation, composites transparency
    on white, and ignores colour profiles. Any thread may call it. It blocks for up to 1.9 s of CPU time, for
    the most expensive 50 million pixels, and releases the GIL for most of it.

    Raises UnsupportedFormat, TooManyPixels (width times height over `max_pixels`), BadImage, and MemoryError
    when there is not enough memory now.
    """
    return decode_picture(first_picture(data, preprocessing, max_pixels=max_pixels), preprocessing)


def decode_picture(picture: Picture, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """`decode` for what `first_picture` found. Takes about `picture.decoding_bytes` of memory meanwhile."""
    try:
        return _pixels(picture, preprocessing)
    except Image.DecompressionBombError as exc:
        limit_pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise TooManyPixels(width=picture.width, height=picture.height, limit_pixels=limit_pixels) from exc
    except _PILLOW_RAISES as exc:
        raise BadImage(f"the {picture.format} can't be decoded: damaged or cut short") from exc


def _pixels(picture: Picture, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    image = _PLUGINS[picture.format](io.BytesIO(picture.data))
    if image.size != (picture.width, picture.height):  # the limits were checked for this size
        raise BadImage(f"the {picture.format} is damaged: it states two sizes")
    # Read the file as one block: when Pillow reads several, it copies all that is left each time it adds one.
    image.decodermaxblock = max(image.decodermaxblock, len(picture.data))
    # The last column and row of a reduced JPEG may stand for fewer pixels than the others, so sizes are
    # fractions from here on: 3001 columns at 1/4 are 750.25.
    width: float = picture.width
    height: float = picture.height
    reduction = jpeg_reduction(picture, preprocessing)
    if reduction > 1:
        image.draft(None, (picture.width // reduction, picture.height // reduction))
        width, height = width / reduction, height / reduction
    image.load()

    short = min(width, height)
    columns = _Axis(width, short, image.width, mirrored=picture.orientation in _MIRRORS_COLUMNS)
    rows = _Axis(height, short, image.height, mirrored=picture.orientation in _MIRRORS_ROWS)
    crop = _resampled(image, columns, rows, preprocessing, turned=picture.orientation in _SWAPS_AXES)
    if picture.orientation in _UPRIGHT:
        crop = crop.transpose(_UPRIGHT[picture.orientation])
    return np.array(crop.convert("RGB"))


class _Axis(NamedTuple):
    """An axis of the stored picture."""

    size: float
    """In pixels of the decoded image, of which the last one may be a part."""
    short: float
    """The size of the shorter axis, likewise."""
    stored: int
    """How many whole pixels the decoder gave."""
    mirrored: bool
    """Whether turning the picture upright mirrors this axis."""

    def resized(self, preprocessing: Preprocessing) -> tuple[int, int]:
        """The size after Resize, and where CenterCrop begins, both in pixels of the upright picture.

        Sources: torchvision's `_compute_resized_output_size`, which truncates the longer side, and
        `center_crop`, which rounds the offset, ties to even.
        """
        resize = preprocessing.resize
        resized = resize if self.size == self.short else int(resize * self.size / self.short)
        return resized, round((resized - preprocessing.crop) / 2)


class _Span(NamedTuple):
    """What the crop takes along one axis of the stored picture, in its pixels."""

    first: int
    last: int
    """The pixels that the filter touches, from `first` up to but not including `last`."""
    start: float
    stop: float
    """The crop's edges, counted from `first`."""


def _span(axis: _Axis, preprocessing: Preprocessing) -> _Span:
    crop = preprocessing.crop
    resized, offset = axis.resized(preprocessing)
    if axis.mirrored:  # an offset that was rounded down at one end was rounded up at the other
        offset = resized - crop - offset
    scale = axis.size / resized
    start, stop = offset * scale, (offset + crop) * scale
    # Pillow antialiases when it shrinks.
    reach = _FILTERS[preprocessing.interpolation].reach * max(scale, 1.0)
    first = max(0, math.floor(start - reach))
    last = min(axis.stored, math.ceil(stop + reach))
    return _Span(first, last, start - first, stop - first)


def _resampled(
    image: Image.Image, x: _Axis, y: _Axis, preprocessing: Preprocessing, turned: bool
) -> Image.Image:
    """The crop, in mode L or RGB.

    Columns and rows are resampled in two passes. Where a picture has to be converted first, or is large, the
    first pass goes strip by strip, so that only a strip is in memory twice. That gives the same pixels, in a
    tenth more time.
    """
    spans = _span(x, preprocessing), _span(y, preprocessing)
    first = int(_rows_come_first(x, y, preprocessing, turned))  # 0: columns, 1: rows
    across, along = spans[first], spans[1 - first]
    length = along.last - along.first
    whole = _is_opaque(image) and (across.last - across.first) * length <= ONE_PASS_PIXELS
    step = length if whole else STRIP_LINES
    joined: Image.Image | None = None
    for start in range(along.first, along.last, step):
        stop = min(start + step, along.last)
        box = (across.first, start, across.last, stop)
        strip = image.crop((box[1], box[0], box[3], box[2]) if first else box)
        strip = _pass(_opaque(strip), first, across, preprocessing)
        if joined is None:
            crop = preprocessing.crop
            joined = strip if whole else Image.new(strip.mode, (length, crop) if first else (crop, length))
        if not whole:
            place = start - along.first
            joined.paste(strip, (place, 0) if first else (0, place))
    assert joined is not None  # noqa: S101 - a picture has a line, so there is a strip
    return _pass(joined, 1 - first, along, preprocessing)


def _rows_come_first(x: _Axis, y: _Axis, preprocessing: Preprocessing, turned: bool) -> bool:
    """Whether Pillow 13 would resample the upright picture along the stored rows' axis first (its
    Resample.c).

    The order decides how pixels are rounded, and where bicubic and Lanczos overshoots are cut off: 20 levels
    in single pixels of noise.
    """
    across, down = ((axis.size - axis.resized(preprocessing)[0]) for axis in ((y, x) if turned else (x, y)))
    down_first = down > max(0, 2 * across)
    return down_first != turned


def _pass(image: Image.Image, axis: int, span: _Span, preprocessing: Preprocessing) -> Image.Image:
    """The image with its columns (`axis` 0) or its rows (1) resampled to the crop's."""
    # The image was cut out of the picture before: Pillow takes the box as 32-bit floats, which are exact
    # enough for small offsets only.
    crop, resampling = preprocessing.crop, _FILTERS[preprocessing.interpolation].resampling
    if axis == 0:
        return image.resize((crop, image.height), resampling, (span.start, 0, span.stop, image.height))
    return image.resize((image.width, crop), resampling, (0, span.start, image.width, span.stop))


def _is_opaque(image: Image.Image) -> bool:
    return image.mode in ("L", "RGB") and "transparency" not in image.info


def _opaque(image: Image.Image) -> Image.Image:
    """The same pixels in mode L or RGB, composited on white.

    Palette indices, bits and inks can't be averaged. Nor can colours with alpha: the hidden colours of
    transparent pixels would bleed into their neighbours.
    """
    if _is_opaque(image):
        return image
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
        grey[samples == image.info["transparency"]] = 255
    return Image.fromarray(grey)
