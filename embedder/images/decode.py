"""An image file into the pixels that a network takes. The only file that knows Pillow, written for Pillow 13.

    bytes ─► size, by the header ─► Pillow: decode ─► crop, composite on white, resize, turn ─► RGB

The geometry is torchvision's `Resize(resize, interpolation)` and `CenterCrop(crop)` on the upright picture; with
mode squash `Resize((resize, resize), interpolation)`.
Only the source pixels of the crop are converted and resampled. They are turned upright last, when they are
few.

Files are read as browsers read them: what stands beside and behind the pixels may be damaged, and pixels may not.
Pillow alone is stricter. Its plugins are called directly, because `Image.open` would try other formats as well.

This runs in child processes (`child.py`): a file may cost any time and memory, or end the process.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

from PIL import Image, ImageChops, JpegImagePlugin
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from embedder.errors import BadImage, RequestError
from embedder.images.formats import HEAD_BYTES, Format, check_pixels, recognised, stated_size
from embedder.model.spec import Preprocessing

# A JPEG is decoded at 1/2 or 1/4 when that leaves twice the size that it is resized to. Measured against
# torchvision without it: the mean difference is 0.2 to 0.8 levels of 255 for photos, 1.3 for dense textures.
# It depends on the content and hardly on the size or the filter: bicubic and Lanczos are within 1.2 times
# bilinear's, from 64 to 518 pixels. (At 1/8, with bilinear at 256, the cosine of embeddings fell from 0.9998
# to 0.995 on sharp textures, for 6 ms of 34.) Coarse colours are reduced with the rest, and need twice as
# much (at twice, 4:2:2 fell to 0.9986 and 4:1:1 to 0.998).
JPEG_OVERSAMPLING, COARSE_JPEG_OVERSAMPLING = 2, 4

_PILLOW_RAISES = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    AssertionError,
    RuntimeError,
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


class Decoded(NamedTuple):
    """What became of a file."""

    pixels: bytes
    """crop x crop pixels of 3 bytes, red, green, blue: row by row, upright."""
    format: str
    width: int
    """Of the source, upright, as `height`."""
    height: int


def decode(
    data: bytes, preprocessing: Preprocessing, *, formats: Collection[Format], max_pixels: int
) -> Decoded:
    """The picture in an image file, of one of `formats`.

    Takes the first frame of an animation and the first page of a document, turns it upright by its EXIF
    orientation, composites transparency on white, and ignores colour profiles. Blocks, for up to seconds.

    Raises UnsupportedFormat, TooManyPixels (width times height over `max_pixels`, by the header), BadImage, and
    MemoryError when there is not enough memory.
    """
    format = recognised(data[:HEAD_BYTES], formats)
    check_pixels(stated_size(format, data), max_pixels)
    try:
        return _decoded(format, data, preprocessing, max_pixels)
    except RequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise BadImage(f"the {format.name} has a picture in it that is larger than it states") from exc
    except _PILLOW_RAISES as exc:
        if re.match("unsupported|unknown|cannot handle", str(exc), re.IGNORECASE):
            raise BadImage(f"the {format.name} is of a kind that can't be decoded") from exc
        raise BadImage(f"the {format.name} can't be decoded: damaged or cut short") from exc


def _decoded(format: Format, data: bytes, preprocessing: Preprocessing, max_pixels: int) -> Decoded:
    image = _opened(format, data)
    check_pixels(image.size, max_pixels)
    stored = image.size
    reduction = 1
    if isinstance(image, JpegImageFile):
        reduction = _jpeg_reduction(image, preprocessing)
        image = _jpeg_pixels(image, data, reduction)
    else:
        image = _loaded(image, data)
        stored = image.size  # an icon's directory may state another than its picture
    # The last column and row of a reduced JPEG may stand for fewer pixels than the others, so sizes are
    # fractions from here on: 3001 columns at 1/4 are 750.25.
    width, height = stored[0] / reduction, stored[1] / reduction
    # Pillow turns TIFF by itself, libjxl JPEG XL.
    turned = (
        1 if format.name in ("TIFF", "JXL") else _orientation(image.info.get(_EXIF, image.info.get("exif")))
    )
    picture = _as_meant(image)

    short = min(width, height)
    columns = _Axis(width, short, picture.width, mirrored=turned in _MIRRORS_COLUMNS)
    rows = _Axis(height, short, picture.height, mirrored=turned in _MIRRORS_ROWS)
    crop = _resampled(picture, columns, rows, preprocessing, turned=turned in _SWAPS_AXES)
    if turned in _UPRIGHT:
        crop = crop.transpose(_UPRIGHT[turned])
    upright = stored[::-1] if turned in _SWAPS_AXES else stored
    return Decoded(crop.convert("RGB").tobytes(), format.name, *upright)


def _loaded(image: ImageFile, data: bytes) -> ImageFile:
    # Read the file as one block: when Pillow reads several, it copies all that is left each time it adds one.
    image.decodermaxblock = max(image.decodermaxblock, len(data))
    try:
        image.load()
    except OSError:
        if isinstance(image, PngImageFile):
            image = PngImageFile(io.BytesIO(_tidied_png(data, mend_checksum=True)))
        elif isinstance(image, WebPImageFile):
            image = _opened_webp(_tidied_webp(data))
        else:
            raise
        image.load()
    return image


def _opened(format: Format, data: bytes) -> ImageFile:
    if format.name == "PNG":
        return PngImageFile(io.BytesIO(_tidied_png(data)))
    if format.name == "WEBP":
        try:
            return _opened_webp(data)
        except (OSError, SyntaxError):
            return _opened_webp(_tidied_webp(data))
    return load_plugin(format)(io.BytesIO(data))


def _opened_webp(data: bytes) -> ImageFile:
    image = WebPImageFile(io.BytesIO(data))
    if data[12:16] == b"VP8X" and data[20] & _WEBP_ANIMATION:
        image.rawmode = image._mode = "RGBA"  # a frame may leave some of its canvas clear
    return image


def _tidied_webp(data: bytes) -> bytes:
    """The chunks of a WebP that are whole, with the size that they have: of an animation the first frames.

    libwebp alone refuses a picture for what is missing behind it, and where the file is shorter than it states.
    """
    chunks = []
    position = 12
    while position + 8 <= len(data):
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        if end > len(data):
            break
        chunks.append(data[position:end] + b"\0" * (end % 2))
        position = end + end % 2
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


_WEBP_ANIMATION = 0x02


def load_plugin(format: Format) -> Callable[[io.BytesIO], ImageFile]:
    """Raises ImportError where its package is not installed."""
    if format.name in _THREADS:
        module, name, count = _THREADS[format.name]
        setattr(import_module(module), name, count)
    module, _, name = format.plugin.partition(":")
    plugin: Callable[[io.BytesIO], ImageFile] = getattr(import_module(module), name)
    return plugin


# Where a plugin keeps how many threads it may start, and what has it start none.
_THREADS = {
    "AVIF": ("PIL.AvifImagePlugin", "DEFAULT_MAX_THREADS", 1),
    "HEIC": ("pillow_heif.options", "DECODE_THREADS", 1),
    "JXL": ("pillow_jxl.JpegXLImagePlugin", "DECODE_THREADS", 0),
}


def _tidied_png(data: bytes, *, mend_checksum: bool = False) -> bytes:
    """What makes the pixels of a PNG, with its orientation, as libpng takes it. Raises BadImage.

    Pillow alone refuses a picture for a wrong checksum beside its pixels, inflates all texts, and takes
    transparency that is none. An APNG is the picture that decoders without animation show.
    """
    kept: dict[bytes, bytes] = {}
    coded: list[bytes] = []
    position = 8
    with suppress(struct.error):  # the end may be missing
        while True:
            size, kind = struct.unpack_from(">I4s", data, position)
            chunk = data[position : position + 12 + size]
            position += 12 + size
            if kind == b"IEND":
                break
            if kind == b"IDAT":
                coded.append(chunk)
            elif kind in (b"IHDR", b"PLTE") and not coded:
                kept.setdefault(kind, chunk)
            elif kind in (b"tRNS", b"eXIf") and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4])):
                if kind == b"tRNS":
                    chunk = (
                        b"" if coded else _png_transparency(chunk[8:-4], data[24], data[25], b"PLTE" in kept)
                    )
                kept.setdefault(kind, chunk)
    if data[25] == _PNG_PALETTE and b"PLTE" not in kept:
        raise BadImage("the PNG has no palette")
    if mend_checksum:
        coded = [_with_checksum(b"".join(chunk[8 : 8 + int.from_bytes(chunk[:4], "big")] for chunk in coded))]
    return data[:8] + b"".join([*kept.values(), *coded]) + _PNG_END


def _with_checksum(stream: bytes) -> bytes:
    """The chunk of a zlib stream whose checksum is wrong, with the right one. Raises zlib.error where more is wrong."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # without the head and the checksum
    inflated = inflater.decompress(stream[2:])
    if not inflater.eof:
        raise zlib.error("cut short")
    body = stream[: len(stream) - len(inflater.unused_data)] + struct.pack(">I", zlib.adler32(inflated))
    return struct.pack(">I", len(body)) + b"IDAT" + body + bytes(4)  # Pillow does not look at its checksum


_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_GREY, _PNG_RGB, _PNG_PALETTE = 0, 2, 3


def _png_transparency(body: bytes, depth: int, colour: int, has_palette: bool) -> bytes:
    """The chunk for the transparency `body`, in the samples that the decoder will give; nothing where it is none.

    Pillow widens 2-bit and 4-bit grey to 8 bits and narrows 16-bit colours to 8, but compares with the value
    as stored. So 256 neighbouring shades of 16-bit colours become transparent together.
    """
    if len(body) < {_PNG_RGB: 6, _PNG_PALETTE: 1}.get(colour, 2) or (
        colour == _PNG_PALETTE and not has_palette
    ):
        return b""
    if colour == _PNG_GREY and depth < 8:
        highest = (1 << depth) - 1
        body = struct.pack(">H", (body[1] & highest) * 255 // highest)
    elif colour == _PNG_RGB and depth == 16:
        body = bytes([0, body[0], 0, body[2], 0, body[4]])
    chunk = b"tRNS" + body[:256]
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _read_segment(image: JpegImageFile, marker: int) -> None:
    """Of a JPEG's application segments, only the first EXIF matters here; libjpeg reads the hints about colours.

    Pillow reads more of them, and refuses the picture where one is shorter than it should be.
    """
    assert image.fp is not None  # noqa: S101 - it is being read
    (length,) = struct.unpack(">H", image.fp.read(2))
    body = image.fp.read(max(0, length - 2))
    if marker == _JPEG_EXIF and body.startswith(b"Exif\0"):  # its sixth byte is for filling
        image.info.setdefault(_EXIF, body)


_JPEG_EXIF = 0xFFE1
_EXIF = "first exif"
"""Where this file keeps it. Under Pillow's own name Pillow would read all of it."""


def prepare_pillow() -> None:
    """Change Pillow in this process: what subclasses can't reach. `child.py` calls it, and so do tests of decoding."""
    markers: dict[int, Any] = JpegImagePlugin.MARKER
    for marker, (name, meaning, handler) in markers.items():
        if handler is JpegImagePlugin.APP:
            markers[marker] = name, meaning, _read_segment


def _jpeg_reduction(image: JpegImageFile, preprocessing: Preprocessing) -> int:
    """4, 2 or 1: the picture is decoded at one part in so many of its width and height."""
    # 4:2:2, 4:1:1: fewer colours along one axis than along the other
    coarse = any((across, down) not in ((1, 1), (2, 2)) for _, across, down, _ in image.layer)
    oversampling = COARSE_JPEG_OVERSAMPLING if coarse else JPEG_OVERSAMPLING
    times = min(image.size) // (oversampling * preprocessing.resize)
    return 4 if times >= 4 else 2 if times >= 2 else 1


def _jpeg_pixels(image: ImageFile, data: bytes, reduction: int) -> ImageFile:
    """`image`, or the same picture of a file with an end, decoded.

    Without its end marker a JPEG is whole when decoders need nothing of what follows its last scan: so it is
    decoded with two different endings, which must not show.
    """
    if data.endswith(_JPEG_END):
        try:
            return _reduced(image, len(data), reduction)
        except OSError:
            end = _jpeg_end(data)
            if data.startswith(_JPEG_END, end):  # otherwise it was the end of another file, behind this one
                raise
    else:
        end = _jpeg_end(data)
        if data.startswith(_JPEG_END, end):
            return _reduced(image, len(data), reduction)
    coded = data[:end].rstrip(b"\0") + bytes(8)  # zeros may also be what a download was to fill
    image, other = (
        _reduced(JpegImageFile(io.BytesIO(coded + ending + _JPEG_END)), len(coded), reduction)
        for ending in (b"", _JPEG_FILLER)
    )
    if image.tobytes() != other.tobytes():
        raise BadImage("the JPEG is cut short")
    return image


def _jpeg_end(data: bytes) -> int:
    """Where the picture's last scan ends: at its end marker, at what is no part of it, or with the file.

    Looking through the scans of 2 MB takes 5 ms.
    """
    position, in_scan = 2, False
    while True:
        marker = (_JPEG_MARKER if in_scan else _JPEG_NEXT).search(data, position)
        if marker is None:
            if not in_scan:
                raise BadImage("the JPEG is cut short")
            return len(data)
        kind = marker[0][-1]
        if kind == 0xD9 or (in_scan and kind not in _JPEG_GOES_ON):
            return marker.start() if in_scan else marker.end() - 2
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        in_scan = kind == 0xDA


_JPEG_END = b"\xff\xd9"
# In a scan: not a stuffed zero, a restart or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_NEXT = re.compile(rb"\xff[^\x00\xff]")
_JPEG_GOES_ON = (0xC4, 0xDA, 0xDB, 0xDD)  # another scan, and what stands before one
_JPEG_FILLER = bytes(range(1, 255)) * 16


def _reduced(image: ImageFile, file_bytes: int, reduction: int) -> ImageFile:
    image.decodermaxblock = max(image.decodermaxblock, file_bytes + len(_JPEG_FILLER) + 2)  # as one block
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    image.load()
    return image


def _as_meant(image: ImageFile) -> Image.Image:
    """The picture, where Pillow has another.

    12 bits of a TIFF are as bright as 16. An icon that is transparent everywhere has its transparency elsewhere. And
    where the first frame of a GIF leaves some of its canvas clear, that is transparent.
    """
    if getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,):  # of a TIFF
        return image.point(lambda level: level * 16)
    if image.format == "ICO" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    frame = image.dispose_extent if isinstance(image, GifImageFile) else None
    if frame is None or frame == (0, 0, *image.size):
        return image
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.convert("RGBA").crop(frame), frame[:2])
    return canvas


_BITS_PER_SAMPLE = 258


def _orientation(exif: object) -> int:
    """The orientation in EXIF's first directory, 1 where it has none.

    As browsers read it: one SHORT, whatever else is damaged. Pillow would take other types, and XMP's.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif[6:] if exif.startswith(b"Exif\0") else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, count, value, _ = struct.unpack_from(f"{order}HHIHH", tiff, directory + 2 + 12 * entry)
            if tag == _EXIF_ORIENTATION and (kind, count) == (_EXIF_SHORT, 1):
                return int(value)
    except struct.error:  # EXIF that is cut short does not harm the pixels
        return 1
    return 1


_EXIF_ORIENTATION, _EXIF_SHORT = 274, 3


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
        alike = self.size == self.short or preprocessing.mode == "squash"
        resized = resize if alike else int(resize * self.size / self.short)
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
    """The crop, in mode L or RGB: columns and rows are resampled in two passes."""
    columns, rows = _span(x, preprocessing), _span(y, preprocessing)
    crop = _opaque(image.crop((columns.first, rows.first, columns.last, rows.last)))
    rows_first = _rows_come_first(x, y, preprocessing, turned)
    for axis, span in ((1, rows), (0, columns)) if rows_first else ((0, columns), (1, rows)):
        crop = _pass(crop, axis, span, preprocessing)
    return crop


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


def _opaque(image: Image.Image) -> Image.Image:
    """The same pixels in mode L or RGB, composited on white.

    Palette indices, bits and inks can't be averaged. Nor can colours with alpha: the hidden colours of
    transparent pixels would bleed into their neighbours.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _grey_of_16_bits(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image.convert("L" if image.mode == "1" else "RGB")


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """Its high bytes. Pillow's own conversion clips at 255, which makes most of a picture white."""
    samples = image.tobytes()
    halves = [Image.frombytes("L", image.size, samples[half::2]) for half in (0, 1)]
    high, low = halves if image.mode == "I;16B" else halves[::-1]
    transparent = image.info.get("transparency")
    if transparent is not None:
        wanted = divmod(transparent, 256)
        clear = ImageChops.darker(_where(high, wanted[0]), _where(low, wanted[1]))
        high.paste(255, mask=clear)
    return high


def _where(image: Image.Image, value: int) -> Image.Image:
    """255 where `image`, of mode L, has the value, 0 elsewhere."""
    return image.point([255 * (level == value) for level in range(256)])
