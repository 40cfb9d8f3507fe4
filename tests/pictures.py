"""Test images, as the bytes of a file: one function for each kind, from ordinary to hostile."""

from __future__ import annotations

import base64
import functools
import io
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data_dir  # type: ignore[attr-defined]  # it is lazy

MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's colour types
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@functools.cache
def _astronaut() -> Image.Image:
    image = Image.open(Path(data_dir) / "astronaut.png").convert("RGB")
    image.info.clear()  # its colour profile, which Pillow would write into each file
    return image


def photo(width: int, height: int) -> Image.Image:
    """A photo, RGB, stretched to this size."""
    return _astronaut().resize((width, height), Image.Resampling.BICUBIC)


def noise(width: int, height: int, channels: int = 3, *, highest: int = 255) -> NDArray[np.int64]:
    """Reproducible noise (height, width, channels): what no filter and no crop may get wrong."""
    return np.random.default_rng(0).integers(0, highest + 1, (height, width, channels))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:  # Pillow's own options
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def data_url(image: bytes, media_type: str = "image/jpeg") -> str:
    """A URL that carries the file `image` itself."""
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


def oriented(image: Image.Image, format: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, format, exif=exif, **options)


def exif(orientation: int, *, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """EXIF with one entry, the orientation, as a JPEG's APP1 carries it."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(f"{order}H2x", orientation)
    entry = struct.pack(f"{order}HHI", 0x0112, kind, count) + value
    return b"Exif\0\0" + head + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)


# JPEG


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    """The JPEG with more segments right behind its start."""
    return jpeg[:2] + segments + jpeg[2:]


def jpeg_segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """Marker, first byte and end of each segment; a scan's coded data is in none."""
    segments: list[tuple[int, int, int]] = []
    position = 2
    while True:
        found = MARKER.search(jpeg, position)
        assert found is not None
        marker = found[0][1]
        if marker == 0xD9:
            return segments
        position = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        segments.append((marker, found.start(), position))


def jpeg_with_scans(count: int, *, width: int = 64, height: int = 64) -> bytes:
    """A progressive JPEG of so many scans: its last, a refinement, is there again and again."""
    jpeg = encoded(photo(width, height), "JPEG", progressive=True)
    scans = [first for marker, first, _ in jpeg_segments(jpeg) if marker == 0xDA]
    return jpeg[:-2] + jpeg[scans[-1] : -2] * (count - len(scans)) + jpeg[-2:]


def jpeg_with_hidden_frame(width: int, height: int) -> bytes:
    """A JPEG of 64 x 64, by its segments' lengths, of which the first one's is 0.

    Who leaves that length out, and all that makes no pixels, makes a JPEG of `width` x `height` of it: then
    the marker behind it is read as the length, and what that skips ends within another segment's body.
    """
    plain = encoded(photo(64, 64), "JPEG", subsampling=0)
    segments = jpeg_segments(plain)
    (frame,) = [plain[first:end] for marker, first, end in segments if marker == 0xC0]
    rest = plain[min(first for marker, first, _ in segments if marker == 0xC4) :]
    hidden = frame[:5] + struct.pack(">HH", height, width) + frame[9:]
    # The 0xFFC0 bytes of a length that is a marker, in quantisation tables of 8 and 16 bits; the first one
    # begins with the rest of the frame.
    tables = bytearray((b"\0" + b"\1" * 64) * 908 + (b"\x11" + b"\0\1" * 64) * 50)
    assert len(tables) == 0xFFC0 - 2
    tables[: len(frame) - 2] = frame[2:]
    tables[len(frame) - 2 : len(frame) + 2] = b"\xff\xdb\xff\xff"
    body = bytes(tables[len(frame) + 2 :]) + hidden
    body += jpeg_segment(0xFE, bytes(0xFFFF - 2 - len(body) - 4))
    return b"\xff\xd8\xff\xdb\0\0" + frame + b"\xff\xdb\xff\xff" + body + rest


def ycck_jpeg(y: int, cb: int, cr: int, k: int, *, width: int = 64, height: int = 64) -> bytes:
    """One colour, as Adobe stores CMYK in luma and chroma: Pillow writes CMYK, relabelled here."""
    stored = [255 - value for value in (y, cb, cr, k)]  # Pillow inverts CMYK when it writes
    jpeg = encoded(Image.new("CMYK", (width, height), tuple(stored)), "JPEG", quality=100)
    adobe = jpeg.index(b"Adobe")
    return jpeg[: adobe + 11] + b"\x02" + jpeg[adobe + 12 :]


def jpeg_of_coarse_colours(width: int, height: int, factors: int) -> bytes:
    """A JPEG of 4:1:1 (`factors` 0x41) or of its upright kind (0x14), which Pillow does not write.

    Each of its units has as many blocks as one of 4:2:0 has: that is what it is, relabelled.
    """
    wide, high = 2 * width // (factors >> 4), 2 * height // (factors & 15)
    jpeg = encoded(photo(wide, high), "JPEG", quality=90, subsampling=2)
    frame = jpeg.index(b"\xff\xc0") + 5
    head = jpeg[:frame] + struct.pack(">HH", height, width) + jpeg[frame + 4 : frame + 6]
    return head + bytes([factors]) + jpeg[frame + 7 :]


def mpo(first: Image.Image, second: Image.Image) -> bytes:
    return encoded(first, "MPO", save_all=True, append_images=[second])


def jpeg_header_only(width: int, height: int) -> bytes:
    """Start and frame header, nothing else."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8" + jpeg_segment(0xC0, frame)


# PNG


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: NDArray[Any],  # any integers
    depth: int,
    colour: int,
    *,
    interlaced: bool = False,
    before_data: bytes = b"",
) -> bytes:
    """A PNG of any kind from its samples (height, width, channels), which Pillow can't all write."""
    height, width, _ = samples.shape
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = [
        b"\0" + _packed(row, depth)
        for x, y, across, down in passes
        for row in samples[y::down, x::across]
        if row.size
    ]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return png_of_parts(header, before_data, zlib.compress(b"".join(rows), 1))


def png_of_parts(header: bytes, before_data: bytes, data: bytes) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + before_data
        + png_chunk(b"IDAT", data)
        + png_chunk(b"IEND", b"")
    )


def _packed(row: NDArray[Any], depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1) & 1
    return np.packbits(bits).tobytes()


def png_with_chunks(count: int, kind: bytes = b"teSt") -> bytes:
    """A PNG of so many chunks, its own three included; the others are empty."""
    plain = png(noise(8, 8), 8, RGB)
    return plain[:33] + png_chunk(kind, b"") * (count - 3) + plain[33:]


def png_bomb(width: int, height: int, depth: int = 8, colour: int = RGB) -> bytes:
    """All zero, and compressed to a thousandth."""
    channels = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}[colour]
    row = bytes(1 + (width * channels * depth + 7) // 8)
    squeeze = zlib.compressobj(1)
    data = b"".join([squeeze.compress(row) for _ in range(height)]) + squeeze.flush()
    return png_of_parts(struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), b"", data)


# WebP


def webp_of_chunks(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    body = b"WEBP" + b"".join(
        struct.pack("<4sI", kind, len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def webp_chunks(webp: bytes) -> list[tuple[bytes, bytes]]:
    """The kind and data of each chunk."""
    chunks, position = [], 12
    while position < len(webp):
        kind, size = struct.unpack_from("<4sI", webp, position)
        chunks.append((kind, webp[position + 8 : position + 8 + size]))
        position += 8 + size + size % 2
    return chunks


def webp_canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """The VP8X chunk."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + sizes


def webp_of_one_colour(width: int, height: int) -> bytes:
    """A lossless WebP, black, whose codes have one symbol each: its pixels take no bit at all."""
    sizes = (width - 1) | (height - 1) << 14
    bits = sizes << 8 | 0x2F  # no alpha, version 0, no transform, no colour cache, one group of codes
    for code in range(5):
        bits |= 0b0001 << 8 + 28 + 4 + 3 + 4 * code
    return webp_of_chunks([(b"VP8L", bits.to_bytes(32, "little"))])


def webp_of_codes(side: int = 1024) -> bytes:
    """A lossless WebP that has prefix codes of their own for each 4 x 4 pixels, as large as tables get.

    RFC 9649, section 3.7: a code of 2048 green symbols of 11 bits takes 66 bits, the decoder's table 9 KB.
    """
    field = "{:0{}b}".format  # most significant bit first: reversed below, as all but code words are
    one = "1000"  # a code of the one symbol 0
    lengths = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11]  # the order that code lengths come in

    def code(*used: int) -> str:
        """The head of a code whose symbols have these lengths."""
        count = max(lengths.index(length) for length in used) + 1
        return (
            "0" + field(count - 4, 4)[::-1] + "".join("100" if n in used else "000" for n in lengths[:count])
        )

    blocks = (side // 4) ** 2
    head = field(0x2F, 8)[::-1] + 2 * field(side - 1, 14)[::-1] + "0" + "000"
    head += "0" + "1" + field(11, 4)[::-1] + "1" + "000"  # no transform, a colour cache, codes for 4 x 4 each
    head += "0" + code(0, 8) + "0" + "1" * 256 + "0" * 24 + code(8) + "0" + 3 * one  # of the numbers of codes
    numbers = "".join(field(n & 255, 8) + field(n >> 8, 8) for n in range(blocks))
    green = code(11) + "1" + field(5, 3)[::-1] + field(2048 - 2, 12)[::-1]
    bits = head + numbers + blocks * (green + 4 * one)
    packed = np.packbits(np.frombuffer(bits.encode(), np.uint8) - ord("0"), bitorder="little").tobytes()
    return webp_of_chunks([(b"VP8L", packed + bytes(side * side * 11 // 8 + 16))])


# GIF


def gif_head(width: int, height: int) -> bytes:
    """Header and a palette of black and white."""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"


def gif_frame(width: int, height: int, data: bytes, *, left: int = 0, top: int = 0) -> bytes:
    """A frame whose LZW data (2-bit codes to begin with) is already in sub-blocks."""
    return struct.pack("<B4HBB", 0x2C, left, top, width, height, 0, 2) + data + b"\0"


GIF_PIXEL = b"\x02\x4c\x01"
"""The LZW data of a 1 x 1 frame of colour 1: clear, 1, end."""


def animation(format: str, *frames: Image.Image, **options: Any) -> bytes:  # Pillow's options
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=40, **options)


def hostile() -> dict[str, bytes]:
    """Files that are refused, by name."""
    whole = encoded(photo(300, 200), "JPEG")
    return {
        "cut": whole[: len(whole) // 2],
        "bomb": jpeg_header_only(60_000, 60_000),
        "flips": bytes(byte ^ (index % 97 == 0) for index, byte in enumerate(whole)),
        "many-pixels": png_bomb(8_000, 8_000),
    }


# All kinds, small: for suites that only ask what happens to an image


@functools.cache
def samples() -> dict[str, bytes]:
    """One small valid file of each kind, by its name; square, 96 pixels."""
    colours = photo(96, 96)
    other = Image.new("RGB", colours.size, (0, 0, 255))
    grey = colours.convert("L")
    clear = colours.copy()
    clear.putalpha(grey)
    indexed = colours.quantize(16)
    pixels = np.asarray(colours).astype(np.int64)
    return {
        "jpeg": encoded(colours, "JPEG"),
        "jpeg_444": encoded(colours, "JPEG", subsampling=0),
        "jpeg_progressive": encoded(colours, "JPEG", progressive=True),
        "jpeg_restarts": encoded(colours, "JPEG", restart_marker_blocks=2),
        "jpeg_grey": encoded(grey, "JPEG"),
        "jpeg_cmyk": encoded(colours.convert("CMYK"), "JPEG"),
        "jpeg_ycck": ycck_jpeg(120, 100, 150, 200),
        "jpeg_exif": oriented(colours, "JPEG", 6),
        "mpo": mpo(colours, other),
        "png": encoded(colours, "PNG"),
        "png_interlaced": png(pixels, 8, RGB, interlaced=True),
        "png_1bit": encoded(colours.convert("1"), "PNG"),
        "png_grey": encoded(grey, "PNG"),
        "png_grey16": png(pixels[..., :1] * 257, 16, GREY),
        "png_rgb16": png(pixels * 257, 16, RGB),
        "png_rgba": encoded(clear, "PNG"),
        "png_grey_alpha": encoded(clear.convert("LA"), "PNG"),
        "png_palette": encoded(indexed, "PNG"),
        "png_palette_clear": encoded(indexed, "PNG", transparency=bytes(range(0, 256, 17))),
        "png_exif": oriented(colours, "PNG", 8),
        "apng": animation("PNG", colours, other),
        "webp": encoded(colours, "WEBP"),
        "webp_lossless": encoded(colours, "WEBP", lossless=True),
        "webp_alpha": encoded(clear, "WEBP"),
        "webp_exif": oriented(colours, "WEBP", 3),
        "webp_animated": animation("WEBP", colours, other),
        "avif": encoded(colours, "AVIF", quality=80),
        "avif_grey": encoded(grey, "AVIF"),
        "avif_alpha": encoded(clear, "AVIF"),
        "avif_exif": oriented(colours, "AVIF", 6),
        "avif_animated": animation("AVIF", colours, other),
        "bmp": encoded(colours, "BMP"),
        "bmp_grey": encoded(grey, "BMP"),
        "bmp_1bit": encoded(colours.convert("1"), "BMP"),
        "bmp_palette": encoded(indexed, "BMP"),
        "bmp_32": encoded(clear, "BMP"),
        "tiff": encoded(colours, "TIFF"),
        "tiff_deflate": encoded(colours, "TIFF", compression="tiff_adobe_deflate"),
        "tiff_lzw": encoded(colours, "TIFF", compression="tiff_lzw"),
        "tiff_jpeg": encoded(colours, "TIFF", compression="jpeg"),
        "tiff_fax": encoded(colours.convert("1"), "TIFF", compression="group4"),
        "tiff_big": encoded(colours, "TIFF", big_tiff=True),
        "tiff_grey": encoded(grey, "TIFF"),
        "tiff_grey16": encoded(Image.fromarray((pixels[..., 0] * 257).astype(np.uint16)), "TIFF"),
        "tiff_palette": encoded(indexed, "TIFF"),
        "tiff_alpha": encoded(clear, "TIFF"),
        "tiff_cmyk": encoded(colours.convert("CMYK"), "TIFF"),
        "tiff_exif": oriented(colours, "TIFF", 8),
        "tiff_pages": encoded(colours.copy(), "TIFF", save_all=True, append_images=[other.copy()]),
        "ico": encoded(clear, "ICO", sizes=[(32, 32), (96, 96)]),
        "ico_bmp": encoded(clear, "ICO", sizes=[(96, 96)], bitmap_format="bmp"),
        "gif": encoded(indexed, "GIF"),
        "gif_clear": encoded(indexed, "GIF", transparency=3),
        "gif_animated": animation("GIF", indexed, other.quantize(16)),
    }
