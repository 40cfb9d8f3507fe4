"""The formats of image files: one table, a row for each.

What is here reads a file's first bytes in the process that serves, so it needs no Pillow and makes no pixels. Where
it is mistaken about a size, `decode.py` is not: it looks again, in a child process.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from embedder.errors import TooManyPixels, UnsupportedFormat

HEAD_BYTES = 1024
"""How many bytes `recognised` looks at: drawings and web pages begin with comments. Files may be shorter."""

Size: TypeAlias = tuple[int, int]
"""Width and height as they are stored, in pixels."""

_MAX_PARTS = 2000  # of a file, to look through for its size: a millisecond


@dataclass(frozen=True)
class Format:
    """A row of the table."""

    name: str
    """As results and `EMBEDDER_FORMATS` have it."""
    media_type: str
    begins: re.Pattern[bytes]
    """What its files begin with."""
    size: Callable[[bytes], Size | None]
    """What the header states; None where it can't be found. Raises struct.error, IndexError and OverflowError
    beyond the end of a file."""
    plugin: str
    """The module and class that decode it, after Pillow's `ImageFile`."""
    on: bool = True
    """Whether it is decoded unless a setting says otherwise."""
    asked_for: bool = True
    """Whether the `Accept` of downloads names it."""


def _jpeg_size(data: bytes) -> Size | None:
    position = 2
    for _ in range(_MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None or found[0][1] in _JPEG_NO_HEADER:
            return None
        (length,) = struct.unpack_from(">H", data, found.end())
        if found[0][1] in _JPEG_FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, found.end() + 3)
            return width, height
        position = found.end() + length
    return None


# A marker that a segment follows: not a stuffed zero, TEM, a restart or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_JPEG_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_NO_HEADER = (0xD9, 0xDA)  # the end, and the picture itself


def _png_size(data: bytes) -> Size | None:
    return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" else None


def _webp_size(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, width_high, height, height_high = struct.unpack_from("<HBHB", data, 24)
        return 1 + (width | width_high << 16), 1 + (height | height_high << 16)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _gif_size(data: bytes) -> Size | None:
    """With what the first frame has outside of the canvas, as Pillow has it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position, in_blocks = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), False
    for _ in range(_MAX_PARTS):
        byte = data[position]
        if in_blocks:
            position += 1 + byte
            in_blocks = byte > 0
        elif byte == 0x2C:  # an image
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, position + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        else:
            position += 2 if byte == 0x21 else 1  # an extension; decoders skip unknown bytes
            in_blocks = byte == 0x21
    return None


def _avif_size(data: bytes) -> Size | None:
    """The largest that a property states: a grid has one for each tile, too."""
    sizes = [struct.unpack(">II", found[1]) for found in _AVIF_SIZE.finditer(data, 0, 65_536)]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


_AVIF_SIZE = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)


def _bmp_size(data: bytes) -> Size | None:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return abs(width), abs(height)  # below zero: stored from the top


def _tiff_size(data: bytes) -> Size | None:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (directory,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, directory)
    entry, bytes_each, first = (order + "HHQ", 20, 8) if big else (order + "HHI", 12, 2)
    found: dict[int, int] = {}
    for index in range(min(count, _MAX_PARTS)):
        position = directory + first + bytes_each * index
        tag, kind, _ = struct.unpack_from(entry, data, position)
        if tag in _TIFF_SIDES and kind in _TIFF_INTEGERS:
            value = struct.unpack_from(order + _TIFF_INTEGERS[kind], data, position + struct.calcsize(entry))
            found.setdefault(tag, value[0])
    width, height = map(found.get, _TIFF_SIDES)
    return None if width is None or height is None else (width, height)


_TIFF_SIDES = (256, 257)  # the tags of width and height
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


def _ico_size(data: bytes) -> Size | None:
    """The largest of its pictures, as the directory has it: one byte for a side, 0 for 256 or more."""
    (count,) = struct.unpack_from("<H", data, 4)
    sizes = [struct.unpack_from("BB", data, 6 + 16 * index) for index in range(min(count, _MAX_PARTS))]
    return max(
        ((width or 256, height or 256) for width, height in sizes), key=lambda s: s[0] * s[1], default=None
    )


def _unknown_size(data: bytes) -> Size | None:
    return None


def _box_of(*brands: bytes) -> bytes:
    """A file type box (ISO 14496-12) with one of `brands`, as its own or among the compatible ones."""
    return rb"\0\0.{2}ftyp(?:.{4}){0,12}?(?:" + b"|".join(brands) + rb")"


def _format(
    name: str, media_type: str, begins: bytes, size: Callable[[bytes], Size | None], plugin: str, **more: bool
) -> Format:
    return Format(name, media_type, re.compile(begins, re.DOTALL), size, plugin, **more)


FORMATS: tuple[Format, ...] = (
    _format("JPEG", "image/jpeg", rb"\xff\xd8\xff", _jpeg_size, "PIL.JpegImagePlugin:JpegImageFile"),
    _format("PNG", "image/png", rb"\x89PNG\r\n\x1a\n", _png_size, "PIL.PngImagePlugin:PngImageFile"),
    _format("WEBP", "image/webp", rb"RIFF.{4}WEBPVP8[ LX]", _webp_size, "PIL.WebPImagePlugin:WebPImageFile"),
    _format("GIF", "image/gif", rb"GIF8[79]a", _gif_size, "PIL.GifImagePlugin:GifImageFile"),
    # Not asked for: where a CDN has a choice, another format costs it and us less.
    _format(
        *("AVIF", "image/avif", _box_of(rb"avif", rb"avis"), _avif_size, "PIL.AvifImagePlugin:AvifImageFile"),
        asked_for=False,
    ),
    _format(
        *("BMP", "image/bmp", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", _bmp_size),
        "PIL.BmpImagePlugin:BmpImageFile",
    ),
    _format(
        *("TIFF", "image/tiff", rb"II[*+]\0|MM\0[*+]", _tiff_size, "PIL.TiffImagePlugin:TiffImageFile"),
    ),
    _format(
        *(
            "ICO",
            "image/x-icon",
            rb"\x00\x00\x01\x00(?!\x00\x00)",
            _ico_size,
            "PIL.IcoImagePlugin:IcoImageFile",
        ),
    ),
    # These need packages of their own.
    _format(
        *("HEIC", "image/heic", _box_of(rb"hei[cxms]", rb"hev[cxms]", rb"mif1", rb"msf1"), _avif_size),
        *("pillow_heif:HeifImageFile",),
        on=False,
        asked_for=False,
    ),
    _format(
        *("JXL", "image/jxl", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", _unknown_size),
        *("pillow_jxl.JpegXLImagePlugin:JXLImageFile",),
        on=False,
        asked_for=False,
    ),
)

ON = tuple(format for format in FORMATS if format.on)


def _names(*rows: tuple[bytes, str]) -> list[tuple[re.Pattern[bytes], str]]:
    return [(re.compile(begins, re.DOTALL | re.IGNORECASE), called) for begins, called in rows]


# What is no image file of these, by its first bytes, and what to call it.
_OTHERS = _names(
    (rb"%PDF-", "this is a PDF document"),
    (rb"\x00\x00\x02\x00", "this is a cursor"),
    (rb"RIFF.{4}AVI ", "this is a video"),
    (rb"ID3|\xff[\xf2\xf3\xfb]", "this is sound"),
    (rb"icns", "this is an ICNS file"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "this is a JPEG 2000 file"),
    (rb"%!PS", "this is a PostScript file"),
    (rb"..{3}ftyp", "this is a video, or an image in an unusual box"),
    (rb"\x1a\x45\xdf\xa3", "this is a video"),
    (rb"8BPS", "this is a Photoshop file"),
    (rb"PK\x03\x04", "this is a ZIP archive"),
    (rb"\x1f\x8b", "this is gzip"),
    (rb"$", "the content is empty"),
)
# The same of texts, behind a byte order mark and blanks. No pattern may be read in several ways: a kilobyte of blanks
# took 17 ms of the event loop.
_XML_HEAD = rb"(<\?xml[^>]*>\s*)?(<!--((?!-->).)*(-->|$)\s*)*"
_TEXTS = _names(
    (_XML_HEAD + rb"<(!doctype )?svg[\s>]", "this is an SVG drawing, not a picture of pixels"),
    (_XML_HEAD + rb"<(!doctype )?html[\s>]", "the server sent a web page"),
    (rb"<\?xml", "this is an XML document"),
    (rb"<(!--|!doctype html|[a-z][a-z0-9]*[\s/>])", "the server sent a web page"),
    (rb"[{\[]\s*[\"{\[\]}]", "the server sent JSON"),
    (rb"data:", "this is a data: URL as text"),
    (rb"version https://git-lfs", "this is a pointer of Git LFS, not the file"),
    (rb"[\t\n\r -~]*$", "this is text"),
)


def named(names: Iterable[str]) -> tuple[Format, ...]:
    """The rows with these names, in the table's order."""
    wanted = set(names)
    return tuple(row for row in FORMATS if row.name in wanted)


def recognised(head: bytes, formats: Collection[Format]) -> Format:
    """The format of the file whose first `HEAD_BYTES` are `head`.

    Raises UnsupportedFormat, with what it is, when it is none of `formats`.
    """
    for row in formats:
        if row.begins.match(head):
            return row
    raise UnsupportedFormat(_called(head), taken=[row.name for row in formats])


def _called(head: bytes) -> str:
    for row in FORMATS:
        if row.begins.match(head):
            return f"this is a {row.name} file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for table, found in ((_OTHERS, head), (_TEXTS, text)):
        for begins, called in table:
            if begins.match(found):
                return called
    return "the content is no image"


def check_pixels(size: Size | None, max_pixels: int) -> None:
    """Raises TooManyPixels when width times height is over `max_pixels`. A size that is not known passes."""
    if size is not None and size[0] * size[1] > max_pixels:
        raise TooManyPixels(width=size[0], height=size[1], limit_pixels=max_pixels)


def stated_size(format: Format, data: bytes) -> Size | None:
    """The size that the header of `data` states, as it is stored; None where it can't be found."""
    try:
        return format.size(data)
    except (struct.error, IndexError, OverflowError):  # OverflowError: an offset of 64 bits
        return None
