"""What an image file states about itself, read before any pixel is decoded. Needs no Pillow.

A file is a list of parts: JPEG segments, PNG and WebP chunks, GIF blocks. A few of them make up the first
picture. The rest is metadata, further frames and trailing bytes, and allows most of the small files that are
expensive to open: millions of empty comments, EXIF directories whose values overlap, text that inflates a
thousandfold. So this file walks the parts once, by their lengths, and rebuilds a file from those that make
pixels, for the decoder. It keeps one number of the metadata, the orientation.

JPEG: ITU-T T.81; an MPO is several JPEGs, one behind the other. PNG: W3C, third edition; the first frame of
an APNG is the picture that decoders without animation show. WebP: RFC 9649. GIF: GIF89a.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass, replace

from embedder.errors import BadImage, TooManyPixels, UnsupportedFormat
from embedder.images.webp_lossless import code_groups
from embedder.model.spec import Preprocessing

HEAD_BYTES = 16
"""How many bytes `sniff` looks at."""

MAX_SCANS = 64  # a 52 KB progressive JPEG with 2000 scans costs 6.5 s; encoders write 10 to 12
MAX_PARTS = 2000  # of a JPEG, a PNG, or the first frame of an animated WebP
# Of a JPEG's quantisation tables before its first scan. Pillow parses them in Python and copies the remaining
# ones for each: a second for 20 MB. Encoders write at most four, of 65 or 129 bytes.
JPEG_TABLE_BYTES = 65_536
PNG_SIDE = 65_535  # the limit of JPEG and GIF. A row takes memory beside its pixels: with millions, a second
PNG_DATA_BYTES = 1024  # smaller IDAT chunks count as parts; ffmpeg writes 4096 bytes to each, libpng 8192
MAX_ANIMATION_PARTS = 250_000  # of a WebP or a GIF, where each frame has some

MAX_CODE_GROUPS = 4096  # of a lossless WebP; libwebp's encoder writes up to 2600, and some dozens for a photo

# The work that a picture may cost beyond its number of pixels, for each pixel of `max_pixels` or WORK_PIXELS,
# whichever is more: a low limit is no reason to refuse a 16-bit PNG. Without these limits, the most expensive
# 50 million pixels took 3.1 s of CPU time (JPEG; WebP 2.7). With them, an interlaced, Paeth-filtered RGBA PNG
# of 20 MB takes 1.9 s, a JPEG 1.5, a WebP 1.3. Measured on one core of a 2-core machine, with Pillow 13.
# Walking the parts takes up to 0.6 s more.
WORK_PIXELS = 50_000_000
PNG_BYTES = 4  # inflated bytes: as many as 8-bit RGBA has, half of what 16-bit RGBA has
JPEG_SAMPLES = 20  # samples, once for each scan; progressive encoders write 14, for CMYK 24
WEBP_PIXELS = 1.3  # pixels, and as many more for each coded byte:
LOSSY_PIXELS_PER_BYTE, LOSSLESS_PIXELS_PER_BYTE = 5, 2

# A JPEG is decoded at 1/2 or 1/4 when that leaves twice the size that it is resized to. Measured against
# torchvision without it: the mean difference is 0.2 to 0.8 levels of 255 for photos, 1.3 for dense textures.
# It depends on the content and hardly on the size or the filter: bicubic and Lanczos are within 1.2 times
# bilinear's, from 64 to 518 pixels. (At 1/8, with bilinear at 256, the cosine of embeddings fell from 0.9998
# to 0.995 on sharp textures, for 6 ms of 34.) Coarse colours are reduced with the rest, and need twice as
# much (at twice, 4:2:2 fell to 0.9986 and 4:1:1 to 0.998).
JPEG_OVERSAMPLING, COARSE_JPEG_OVERSAMPLING = 2, 4

# Bytes of memory for each pixel while it is decoded, as measured with Pillow and its libraries.
PNG_MEMORY, WEBP_MEMORY, GIF_MEMORY = 8, 18, 8
CODE_GROUP_MEMORY = 20_000  # bytes for each of a lossless WebP: libwebp's largest tables
# A reduced JPEG is scaled down row by row. A JPEG whose first scan has not all components, like each
# progressive one's, also holds two bytes for each of its samples until the last scan.
JPEG_MEMORY, REDUCED_JPEG_MEMORY = 4, 2
# Bytes for each pixel of the crop: it is made in two steps, turned, and converted.
CROP_MEMORY = 16

ONE_PASS_PIXELS = 4_000_000
"""Larger pictures are resampled in strips, so the decoder copies so many pixels at most, of 4 bytes each."""

# A marker that a segment follows: not a stuffed zero, TEM, a restart or a fill byte.
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
_GIF_DISPOSAL = 0b11100

_EXIF_ORIENTATION, _EXIF_SHORT = 274, 3


@dataclass(frozen=True)
class Picture:
    """The first picture of a file."""

    format: str
    orientation: int
    """EXIF's. 1 where there is none; other values than 2 to 8 mean upright as well."""
    data: bytes
    """A file of that format with this picture and nothing else: about as large as the file it comes from."""
    width: int
    height: int
    decoding_bytes: int
    """The memory that decoding it takes beside `data`, about: the decoder's copy of `data`, pixels, crop."""
    coarse_colours: bool = False
    """Whether a JPEG has fewer colours along one axis than along the other: 4:2:2, 4:1:1."""

    @property
    def upright_size(self) -> tuple[int, int]:
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    @property
    def pixels(self) -> int:
        return self.width * self.height


def sniff(head: bytes) -> str | None:
    """The format, by a file's first `HEAD_BYTES`: "JPEG", "PNG", "WEBP", "GIF", or None for any other."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(_PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP" and head[12:16] in _WEBP_FIRST_CHUNKS:
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return None


def first_picture(data: bytes, preprocessing: Preprocessing, *, max_pixels: int) -> Picture:
    """The first picture of a file, without decoding it. `preprocessing` is what it will be decoded for.

    Raises UnsupportedFormat; TooManyPixels, as soon as the header is read; BadImage for a file that
    is cut short, that breaks its format's structure, or that would cost far more than its pixels.
    """
    walk = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif}
    format = sniff(data[:HEAD_BYTES])
    if format is None:
        raise UnsupportedFormat
    try:
        picture = walk[format](data, max_pixels)
    except (struct.error, IndexError) as exc:  # read past the end
        raise BadImage(f"the {format} is cut short") from exc
    memory = picture.decoding_bytes
    if format == "JPEG":
        memory += _jpeg_pixel_bytes(picture, preprocessing)
    memory += len(picture.data) + CROP_MEMORY * preprocessing.crop**2
    return replace(picture, decoding_bytes=memory)


def jpeg_reduction(picture: Picture, preprocessing: Preprocessing) -> int:
    """4, 2 or 1: the picture is decoded at one part in so many of its width and height."""
    if picture.format != "JPEG":
        return 1
    oversampling = COARSE_JPEG_OVERSAMPLING if picture.coarse_colours else JPEG_OVERSAMPLING
    times = min(picture.width, picture.height) // (oversampling * preprocessing.resize)
    return 4 if times >= 4 else 2 if times >= 2 else 1


def _jpeg_pixel_bytes(picture: Picture, preprocessing: Preprocessing) -> int:
    """The memory for the pixels of a JPEG, without the samples that it holds between scans."""
    if jpeg_reduction(picture, preprocessing) > 1:
        return REDUCED_JPEG_MEMORY * picture.pixels
    copied = min(min(picture.width, picture.height) ** 2, ONE_PASS_PIXELS)
    return JPEG_MEMORY * (picture.pixels + copied)


def _jpeg(data: bytes, max_pixels: int) -> Picture:
    width = height = pixels = stored = components = scans = samples = held = table_bytes = 0
    progressive = coarse = False
    orientation: int | None = None
    kept = [b"\xff\xd8"]
    position = 2
    for _ in range(MAX_PARTS + 1):  # the last is the end marker
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise BadImage("the JPEG is cut short")
        if scans:  # coded data follows the header of a scan; there is none before the first one
            kept.append(data[position : found.start()])
        marker = found[0][1]
        if marker == _EOI:
            break
        (size,) = struct.unpack_from(">H", data, found.end())
        # The length counts its own two bytes. With less, decoders take what follows for it, and see another
        # picture.
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
        elif marker == _SOS:
            if not pixels:
                raise BadImage("the JPEG has a scan before its frame header")
            scans += 1
            if scans == 1 and (progressive or body[0] < components):
                held = 2 * components * stored
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
    return Picture("JPEG", orientation or 1, b"".join(kept), width, height, held, coarse)


def _jpeg_stored_pixels(width: int, height: int, factors: bytes) -> int:
    """The pixels with those that fill the last blocks: a picture that is one pixel high may have 31 rows
    more."""
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
        raise BadImage(f"the PNG has {depth} bits for colour type {colour}, which PNG does not define")
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

    Pillow widens 2-bit and 4-bit grey to 8 bits and narrows 16-bit colours to 8, but compares with the value
    as stored. So 256 neighbouring shades of 16-bit colours become transparent together.
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
    groups = _webp_code_groups(frame)
    if groups > MAX_CODE_GROUPS:
        raise BadImage(f"the WEBP has {groups} groups of Huffman codes; the limit is {MAX_CODE_GROUPS}")
    file = struct.pack("<4sI", b"RIFF", len(coded)) + coded
    memory = WEBP_MEMORY * pixels + CODE_GROUP_MEMORY * groups
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
    """The kind and data of each chunk within the chunk of an animation's frame."""
    chunks: list[tuple[bytes, bytes]] = []
    position = 16  # behind the frame's place, duration and disposal
    while position + 8 <= len(body):
        if len(chunks) == MAX_PARTS:
            raise BadImage(f"the WEBP has more than {MAX_PARTS} chunks in its first frame")
        kind, size = struct.unpack_from("<4sI", body, position)
        chunks.append((kind, body[position + 8 : position + 8 + size]))
        position += 8 + size + size % 2
    return chunks


def _webp_pixels_per_byte(kind: bytes, body: bytes) -> int:
    """The cost of a chunk's coded byte, in pixels."""
    if kind == b"ALPH" and body[0] & 3 == 0:  # not compressed: it is copied
        return 1
    return LOSSLESS_PIXELS_PER_BYTE if kind == b"VP8L" else LOSSY_PIXELS_PER_BYTE


def _webp_code_groups(frame: list[tuple[bytes, bytes]]) -> int:
    """The number of Huffman code groups in a frame of these chunks: of its picture, or of its alpha."""
    alpha: bytes | None = None
    for kind, body in frame:
        if kind == b"VP8L":
            return code_groups(body[5:], *_webp_frame_size(kind, body))
        if kind == b"VP8 ":
            if alpha is None or alpha[0] & 3 != 1:
                return 0
            # Compressed alpha is a lossless picture without the header.
            return code_groups(alpha[1:], *_webp_frame_size(kind, body))
        if kind == b"ALPH":
            if alpha is not None:  # libwebp refuses it too, and reading each may take MAX_STEPS
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
            position += 1  # decoders skip unknown bytes
    else:
        raise BadImage(f"the GIF has {MAX_ANIMATION_PARTS} blocks or more")
    if not frame:
        raise BadImage("the GIF has no picture in it")
    # Pillow applies its own limit of pixels, which belongs to the whole process, where a frame is larger than
    # the canvas or is disposed of. So the canvas is stated as large as it becomes, and nothing is disposed
    # of.
    canvas = struct.pack("<HH", min(width, 0xFFFF), min(height, 0xFFFF))
    if len(control) > 3:
        control = control[:3] + bytes([control[3] & ~_GIF_DISPOSAL]) + control[4:]
    file = head[:6] + canvas + head[10:] + control + frame + bytes([_GIF_TRAILER])
    return Picture("GIF", 1, file, width, height, GIF_MEMORY * width * height)


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _checked_pixels(width: int, height: int, max_pixels: int) -> int:
    """The number of pixels. Raises BadImage for none, and TooManyPixels."""
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
    """The orientation in EXIF's first directory, 1 where it has none.

    The directory may have 65 535 entries, which take 20 ms. So callers read a file's first EXIF only.
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
    except struct.error:  # EXIF that is cut short does not harm the pixels
        return 1
    return 1
