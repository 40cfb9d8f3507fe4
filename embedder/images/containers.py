"""What an image file says about itself, read before any pixel is decoded.

A file is a list of parts: JPEG segments, PNG and WebP chunks, GIF blocks. A few of them make the
first picture. The rest is metadata, further frames and trailing bytes, and hides most ways to make
a small file dear to open: millions of empty comments, EXIF directories whose values overlap, text
that inflates a thousandfold. So the parts are walked here once, by their lengths, and the decoder
gets a file rebuilt from those that make pixels. Of the metadata one number is kept, the orientation.

JPEG: ITU-T T.81; an MPO is a JPEG with more of them behind it. PNG: W3C, third edition; an APNG's
first frame is the picture that decoders unaware of animation see. WebP: RFC 9649. GIF: GIF89a.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass

from embedder.errors import BadImage, TooManyPixels, UnsupportedFormat
from embedder.images.webp_lossless import code_sets

HEAD_BYTES = 16
"""How many bytes `sniff` looks at."""

MAX_SCANS = 64  # a 52 KB progressive JPEG with 2000 scans costs 6.5 s; encoders write 10 to 12
MAX_PARTS = 2000  # of a JPEG, a PNG, or the first frame of an animated WebP
# Of a JPEG's quantisation tables before its first scan: Pillow goes through them in Python and copies what is
# left each time: a second for 20 MB. Encoders write four at most, of 65 or 129 bytes.
JPEG_TABLE_BYTES = 65_536
PNG_SIDE = 65_535  # as in a JPEG or a GIF: rows take memory beside their pixels, one of millions a second
PNG_DATA_BYTES = 1024  # a PNG's chunks of data are parts if smaller: ffmpeg fills 4096 bytes, libpng 8192
MAX_ANIMATION_PARTS = 250_000  # of a WebP or a GIF, where each frame has some

MAX_CODE_SETS = 4096  # of a lossless WebP; libwebp's encoder writes up to 2600, for a photo some dozens

# What a picture may cost to decode beyond its number of pixels, for each pixel of the limit or of
# WORK_PIXELS, whichever is more: a low limit is no reason to refuse a 16-bit PNG. The dearest 50
# million pixels took 3.1 s without these limits (JPEG; WebP 2.7) and take up to 1.9 s of CPU within them
# (an interlaced PNG of RGBA in 20 MB, Paeth-filtered; JPEG 1.5, WebP 1.3), on one core of the 2-core
# machine that they were measured on, with Pillow 13. Walking through the parts takes up to 0.6 s more.
WORK_PIXELS = 50_000_000
PNG_BYTES = 4  # bytes once inflated: as many as 8-bit RGBA has, half of what 16-bit RGBA has
JPEG_SAMPLES = 20  # samples, counted once per scan; progressive encoders write 14, of CMYK 24
WEBP_PIXELS = 1.3  # pixels, plus these for each coded byte
LOSSY_PIXELS_PER_BYTE, LOSSLESS_PIXELS_PER_BYTE = 5, 2

# Memory for each pixel while it is decoded: what Pillow and its libraries were seen to take.
PNG_MEMORY, WEBP_MEMORY, GIF_MEMORY = 8, 18, 8
CODE_SET_MEMORY = 20_000  # for each of a lossless WebP: libwebp's largest tables
# A JPEG whose first scan is not all of it, as each progressive one's, holds two bytes for each of its samples
# until the last scan; another is scaled down row by row, unless it is narrow.
JPEG_MEMORY, NARROW_JPEG_MEMORY = 2, 4
NARROW_PIXELS = 1024

# A marker with a segment behind it: not a stuffed zero, TEM, a restart or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_PROGRESSIVE = 0xC2
_SOF = (0xC0, 0xC1, _PROGRESSIVE)  # baseline, extended
_SOF_UNUSUAL = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_DHT, _DQT, _DRI = 0xC4, 0xDB, 0xDD
_JPEG_KEPT = (*_SOF, _DHT, _DQT, _DRI, _SOS)
_JPEG_COLOUR_HINTS = ((_APP0, b"JFIF\0"), (_APP14, b"Adobe"))  # YCbCr or RGB, YCCK or CMYK

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_GREY, _PNG_RGB, _PNG_PALETTE = 0, 2, 3
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}

_WEBP_FIRST_CHUNKS = (b"VP8 ", b"VP8L", b"VP8X")  # the first one states the size
_WEBP_ANIMATION = 0x02

_GIF_TRAILER, _GIF_EXTENSION, _GIF_IMAGE, _GIF_CONTROL = 0x3B, 0x21, 0x2C, 0xF9

_EXIF_ORIENTATION, _EXIF_SHORT = 274, 3


@dataclass(frozen=True)
class Picture:
    """The first picture of a file."""

    format: str
    orientation: int
    """EXIF's, 1 where there is none; of the others, only 2 to 8 mean anything."""
    data: bytes
    """A file of that format with this picture and nothing else."""
    width: int
    height: int
    decoding_bytes: int
    """The memory that decoding it takes, about."""
    coarse_colours: bool = False
    """Whether a JPEG's colours lack more along one axis, or more than half: 4:2:2, 4:1:1."""

    @property
    def pixels(self) -> int:
        return self.width * self.height


def sniff(head: bytes) -> str | None:
    """By the first `HEAD_BYTES` of a file: "JPEG", "PNG", "WEBP", "GIF", or None for any other."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(_PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP" and head[12:16] in _WEBP_FIRST_CHUNKS:
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return None


def first_picture(data: bytes, *, max_pixels: int) -> Picture:
    """The first picture of a file, without decoding it.

    Raises UnsupportedFormat; TooManyPixels, as soon as the header is read; BadImage for a file that
    is cut short, that breaks its format's structure, or that would cost far more than its pixels.
    """
    walk = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif}
    format = sniff(data[:HEAD_BYTES])
    if format is None:
        raise UnsupportedFormat
    try:
        return walk[format](data, max_pixels)
    except (struct.error, IndexError) as exc:  # read past the end
        raise BadImage(f"the {format} is cut short") from exc


def _jpeg(data: bytes, max_pixels: int) -> Picture:
    width = height = pixels = stored = components = scans = samples = memory = table_bytes = 0
    progressive = coarse = False
    orientation: int | None = None
    kept = [b"\xff\xd8"]
    position = 2
    for _ in range(MAX_PARTS + 1):  # the last is the end marker
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise BadImage("the JPEG is cut short")
        if scans:  # coded data follows the header of a scan; before the first one it can't be
            kept.append(data[position : found.start()])
        marker = found[0][1]
        if marker == _EOI:
            break
        (size,) = struct.unpack_from(">H", data, found.end())
        # Two are its own: of fewer, decoders would take what follows for them, and see another picture.
        if size < 2:
            raise BadImage("the JPEG is damaged: a segment is shorter than its length")
        position = found.end() + size
        body = data[found.end() + 2 : position]

        if marker in _SOF:
            if pixels:
                raise BadImage("the JPEG has two frame headers")
            height, width = struct.unpack_from(">xHH", body)
            pixels = _checked_pixels(width, height, max_pixels)
            stored = _jpeg_stored_pixels(width, height, body[7::3])
            components, progressive = body[5], marker == _PROGRESSIVE
            coarse = any(factors not in (0x11, 0x22) for factors in body[7::3])
            narrow = min(width, height) < (2 if coarse else 1) * NARROW_PIXELS
            memory = NARROW_JPEG_MEMORY if narrow else JPEG_MEMORY
        elif marker == _SOS:
            if not pixels:
                raise BadImage("the JPEG has a scan before its frame header")
            scans += 1
            if scans == 1 and (progressive or body[0] < components):
                memory += 2 * components
            if scans > MAX_SCANS:
                raise BadImage(f"the JPEG has more than {MAX_SCANS} scans")
            samples += pixels * body[0]
            _check_work("JPEG", samples, JPEG_SAMPLES, "samples over its scans", max_pixels)
        elif marker == _DQT and not scans:
            table_bytes += size
            if table_bytes > JPEG_TABLE_BYTES:
                raise BadImage(f"the JPEG has over {JPEG_TABLE_BYTES} bytes of quantisation tables")
        elif marker in _SOF_UNUSUAL:
            raise BadImage("the JPEG is lossless, hierarchical or arithmetic-coded")
        elif marker == _SOI:
            raise BadImage("the JPEG starts again before its end")
        elif marker == _APP1 and not scans and orientation is None and body[:6] == b"Exif\0\0":
            orientation = _orientation(body)

        if marker in _JPEG_KEPT or (marker, body[:5]) in _JPEG_COLOUR_HINTS:
            kept.append(data[found.start() : position])
    else:
        raise BadImage(f"the JPEG has more than {MAX_PARTS} segments")
    if not scans:
        raise BadImage("the JPEG has no picture in it")
    kept.append(b"\xff\xd9")
    return Picture("JPEG", orientation or 1, b"".join(kept), width, height, memory * stored, coarse)


def _jpeg_stored_pixels(width: int, height: int, factors: bytes) -> int:
    """With those that fill up the last blocks: below a picture that is a pixel high there may be 31 rows."""
    across = 8 * max((factor >> 4 for factor in factors), default=1) or 8
    down = 8 * max((factor & 15 for factor in factors), default=1) or 8
    return math.ceil(width / across) * across * math.ceil(height / down) * down


def _png(data: bytes, max_pixels: int) -> Picture:
    header, width, height, depth, colour = struct.unpack_from(">8sIIBB", data, 8)
    if header != b"\0\0\0\x0dIHDR":
        raise BadImage("the PNG does not start with its header")
    pixels = _checked_pixels(width, height, max_pixels)
    if max(width, height) > PNG_SIDE:
        raise BadImage(f"a side of the PNG has {max(width, height)} pixels; the limit is {PNG_SIDE}")
    if depth not in _PNG_DEPTHS.get(colour, ()):
        raise BadImage(f"the PNG has {depth} bits of colour type {colour}, which there are not")
    inflated = pixels * depth * _PNG_CHANNELS[colour] // 8
    _check_work("PNG", inflated, PNG_BYTES, "bytes once inflated", max_pixels)

    orientation: int | None = None
    parts = 0
    tables: dict[bytes, bytes] = {}
    coded: list[bytes] = []
    position = len(_PNG_SIGNATURE)
    while True:
        size, kind = struct.unpack_from(">I4s", data, position)
        parts += kind != b"IDAT" or size < PNG_DATA_BYTES
        if parts > MAX_PARTS:
            raise BadImage(f"the PNG has more than {MAX_PARTS} chunks")
        body = data[position + 8 : position + 8 + size]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + size)
        position += 12 + size
        if kind == b"eXIf" and orientation is None:
            orientation = _orientation(body)
        if kind not in _PNG_KEPT:
            continue
        if checksum != zlib.crc32(body, zlib.crc32(kind)):
            raise BadImage("the PNG is damaged: a checksum is wrong")
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            coded.append(body)
        elif not coded:
            tables.setdefault(kind, body)

    if colour == _PNG_PALETTE and b"PLTE" not in tables:
        raise BadImage("the PNG has no palette")
    if b"tRNS" in tables:
        tables[b"tRNS"] = _png_transparency(tables[b"tRNS"], colour, depth)
    chunks = [*tables.items(), (b"IDAT", b"".join(coded)), (b"IEND", b"")]
    file = _PNG_SIGNATURE + _png_chunks(chunks)
    return Picture("PNG", orientation or 1, file, width, height, PNG_MEMORY * pixels)


def _png_transparency(body: bytes, colour: int, depth: int) -> bytes:
    """The colour that means transparent, in the samples that the decoder will give.

    Pillow widens grey of 2 and 4 bits to 8 and narrows colours of 16 bits to 8, but compares with
    the value as stored. With 16-bit colours, 256 neighbouring shades become transparent as one.
    """
    if colour == _PNG_GREY and depth < 8:
        (grey,) = struct.unpack_from(">H", body)
        highest = (1 << depth) - 1
        return struct.pack(">H", (grey & highest) * 255 // highest)
    if colour == _PNG_RGB and depth == 16:
        return struct.pack(">3H", *(value >> 8 for value in struct.unpack_from(">3H", body)))
    return body


def _png_chunks(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(
        part
        for kind, body in chunks
        for part in (
            struct.pack(">I4s", len(body), kind),
            body,
            struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))),
        )
    )


def _webp(data: bytes, max_pixels: int) -> Picture:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    if 8 + riff_size > len(data):
        raise BadImage("the WEBP is cut short")
    width, height = _webp_size(data)
    pixels = _checked_pixels(width, height, max_pixels)
    animated = data[12:16] == b"VP8X" and data[20] & _WEBP_ANIMATION
    wanted = (b"VP8X", b"ANIM", b"ANMF") if animated else (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")

    orientation: int | None = None
    kept: list[tuple[bytes, bytes]] = []
    complete = False
    position = 12
    for _ in range(MAX_ANIMATION_PARTS):
        if position >= 8 + riff_size:
            break
        kind, size = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 8 + size]
        if len(body) < size:
            raise BadImage("the WEBP is cut short")
        position += 8 + size + size % 2
        if kind == b"EXIF" and orientation is None:
            orientation = _orientation(body)
        elif kind in wanted and not complete:
            kept.append((kind, body))
            complete = kind in (b"ANMF", b"VP8 ", b"VP8L")
    else:
        raise BadImage(f"the WEBP has {MAX_ANIMATION_PARTS} chunks or more")
    if not complete:
        raise BadImage("the WEBP has no picture in it")
    coded = b"WEBP" + b"".join(
        struct.pack("<4sI", kind, len(body)) + body + bytes(len(body) % 2) for kind, body in kept
    )
    frame = _webp_frame(kept[-1][1]) if animated else kept
    work = pixels + sum(len(body) * _webp_pixels_per_byte(kind, body) for kind, body in frame)
    _check_work("WEBP", work, WEBP_PIXELS, "pixels and coded bytes", max_pixels)
    sets = _webp_code_sets(frame)
    if sets > MAX_CODE_SETS:
        raise BadImage(f"the WEBP has {sets} sets of prefix codes; the limit is {MAX_CODE_SETS}")
    file = struct.pack("<4sI", b"RIFF", len(coded)) + coded
    memory = WEBP_MEMORY * pixels + CODE_SET_MEMORY * sets
    return Picture("WEBP", orientation or 1, file, width, height, memory)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, by the first chunk."""
    if data[12:16] == b"VP8X":
        width, width_high, height, height_high = struct.unpack_from("<HBHB", data, 24)
        return 1 + (width | width_high << 16), 1 + (height | height_high << 16)
    return _webp_frame_size(data[12:16], data[20:30])


def _webp_frame_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Width and height of a frame, by the beginning of its chunk."""
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def _webp_frame(body: bytes) -> list[tuple[bytes, bytes]]:
    """The kind and data of each chunk in that of a frame of an animation."""
    chunks: list[tuple[bytes, bytes]] = []
    position = 16  # where it is, how long it lasts, and what becomes of it
    while position + 8 <= len(body):
        if len(chunks) == MAX_PARTS:
            raise BadImage(f"the WEBP has more than {MAX_PARTS} chunks in its first frame")
        kind, size = struct.unpack_from("<4sI", body, position)
        chunks.append((kind, body[position + 8 : position + 8 + size]))
        position += 8 + size + size % 2
    return chunks


def _webp_pixels_per_byte(kind: bytes, body: bytes) -> int:
    """What a coded byte of a chunk costs, in pixels."""
    if kind == b"ALPH" and body[0] & 3 == 0:  # not compressed, but copied
        return 1
    return LOSSLESS_PIXELS_PER_BYTE if kind == b"VP8L" else LOSSY_PIXELS_PER_BYTE


def _webp_code_sets(frame: list[tuple[bytes, bytes]]) -> int:
    """How many sets of prefix codes there are in the frame of these chunks: in its picture, or its alpha."""
    alpha: bytes | None = None
    for kind, body in frame:
        if kind == b"VP8L":
            return code_sets(body[5:], *_webp_frame_size(kind, body))
        if kind == b"VP8 ":
            if alpha is None or alpha[0] & 3 != 1:
                return 0
            # As a lossless picture without the header.
            return code_sets(alpha[1:], *_webp_frame_size(kind, body))
        if kind == b"ALPH":
            if alpha is not None:  # libwebp refuses it too, and each may take MAX_STEPS to read
                raise BadImage("the WEBP has two alphas for one picture")
            alpha = body
    return 0


def _gif(data: bytes, max_pixels: int) -> Picture:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _gif_palette_bytes(flags)
    head = data[:position]
    control = frame = b""
    control_start = frame_start = 0
    in_blocks = False
    for _ in range(MAX_ANIMATION_PARTS):
        byte = data[position]
        if in_blocks:
            position += 1 + byte
            in_blocks = byte > 0
            if not in_blocks and control_start:
                control, control_start = data[control_start:position], 0
            elif not in_blocks and frame_start and not frame:
                frame = data[frame_start:position]
        elif byte == _GIF_TRAILER:
            break
        elif byte == _GIF_EXTENSION:
            if data[position + 1] == _GIF_CONTROL and not frame:
                control_start = position
            position += 2
            in_blocks = True
        elif byte == _GIF_IMAGE:
            left, top, frame_width, frame_height, flags = struct.unpack_from("<4HB", data, position + 1)
            if not frame:
                frame_start = position
                width, height = max(width, left + frame_width), max(height, top + frame_height)
                _checked_pixels(width, height, max_pixels)
            position += 11 + _gif_palette_bytes(flags)
            in_blocks = True
        else:
            position += 1  # decoders step over what they don't know
    else:
        raise BadImage(f"the GIF has {MAX_ANIMATION_PARTS} blocks or more")
    if not frame:
        raise BadImage("the GIF has no picture in it")
    file = head + control + frame + bytes([_GIF_TRAILER])
    return Picture("GIF", 1, file, width, height, GIF_MEMORY * width * height)


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _checked_pixels(width: int, height: int, max_pixels: int) -> int:
    """How many pixels; raises BadImage for none and TooManyPixels."""
    if not (width and height):
        raise BadImage(f"the image is {width} x {height}, which is no pixels")
    if width * height > max_pixels:
        raise TooManyPixels(width=width, height=height, limit_pixels=max_pixels)
    return width * height


def _check_work(format: str, work: int, per_pixel: float, unit: str, max_pixels: int) -> None:
    limit = int(per_pixel * max(max_pixels, WORK_PIXELS))
    if work > limit:
        raise BadImage(f"the {format} costs too much to decode: {work} {unit}; the limit is {limit}")


def _orientation(exif: bytes) -> int:
    """The number that EXIF's first directory has for the orientation, 1 where it has none.

    Takes up to 20 ms, for the 65 535 entries that it may have: of a file's EXIFs only the first is read.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _EXIF_ORIENTATION and (kind, count) == (_EXIF_SHORT, 1):
                return int(value)
    except struct.error:  # EXIF cut short: the pixels are none the worse for it
        return 1
    return 1
