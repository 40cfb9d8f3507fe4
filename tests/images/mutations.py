"""Image files damaged on purpose, by number: a number always gives the same file.

    python -m tests.images.mutations 4711                 what number 4711 is, and what it decodes to
    python -m tests.images.mutations 4711 --save 4711.jpg   and the file itself

Each number below `COMBINATIONS` is another pair of a sample and a kind of damage; after that they repeat,
with other damage of that kind.
"""

from __future__ import annotations

import argparse
import functools
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from embedder.errors import BadImage, TooManyPixels, UnsupportedFormat
from embedder.images.formats import FORMATS, HEAD_BYTES
from tests import pictures
from tests.images.reference import pixels_of

# Where a format keeps its structure. Half of the damage goes there.
HEAD_REACH = 400


class Field(NamedTuple):
    """Where a file states a length, a size in pixels, or a distance between restarts."""

    offset: int
    width: int
    order: Literal["big", "little"]


@dataclass(frozen=True)
class Part:
    """A JPEG segment with the data coded behind it, a PNG or WebP chunk, a GIF block."""

    first: int
    end: int
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Mutation:
    number: int
    sample: str
    kind: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.number}: {self.kind} in {self.sample}"


def mutated(number: int) -> Mutation:
    """The mutation of that number."""
    names, kinds = list(pictures.samples()), list(KINDS)
    sample = names[number % len(names)]
    kind = kinds[number // len(names) % len(kinds)]
    chance = random.Random(number)
    data = KINDS[kind](pictures.samples()[sample], chance)
    if chance.random() < 0.75:  # otherwise few of PNG's would get past its checksums
        data = with_right_checksums(data)
    return Mutation(number, sample, kind, data)


# Kinds of damage


def flip_bytes(file: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(file)
    for _ in range(chance.choice((1, 1, 2, 8))):
        damaged[_place(file, chance)] = chance.randrange(256)
    return bytes(damaged)


def flip_bits(file: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(file)
    for _ in range(chance.choice((1, 1, 2, 8))):
        damaged[_place(file, chance)] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def flip_coded_bytes(file: bytes, chance: random.Random) -> bytes:
    """Behind all structure; in a PNG, where hardly a flip survives it, below the compression."""
    if format_of(file) == "PNG":
        return _with_flips_in_rows(file, chance)
    damaged = bytearray(file)
    for _ in range(chance.choice((1, 2, 8, 50))):
        damaged[chance.randrange(min(HEAD_REACH, len(file) // 2), len(file))] = chance.randrange(256)
    return bytes(damaged)


def cut(file: bytes, chance: random.Random) -> bytes:
    return file[: _place(file, chance)]


def delete_block(file: bytes, chance: random.Random) -> bytes:
    first, end = _block(file, chance)
    return file[:first] + file[end:]


def duplicate_block(file: bytes, chance: random.Random) -> bytes:
    first, end = _block(file, chance)
    place = chance.choice((end, _place(file, chance), _boundary(file, chance)))
    return file[:place] + file[first:end] * chance.choice((1, 1, 2, 40)) + file[place:]


def overwrite_length(file: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(file)
    fields = [field for part in parts(file) for field in part.fields] or [Field(0, 4, "little")]
    for _ in range(chance.choice((1, 1, 2))):
        offset, width, order = chance.choice(fields)
        highest = 256**width - 1
        stated = int.from_bytes(file[offset : offset + width], order)
        near = (stated - 1, stated + 1, 2 * stated, len(file))
        far = (0, 1, highest // 2, highest // 2 + 1, highest - 1, highest)
        value = max(0, min(chance.choice(near + far), highest))
        damaged[offset : offset + width] = value.to_bytes(width, order)
    return bytes(damaged)


def swap_parts(file: bytes, chance: random.Random) -> bytes:
    found = parts(file)
    if len(found) < 2:
        return delete_block(file, chance)
    one, other = sorted(chance.sample(found, 2), key=lambda part: part.first)
    return b"".join(
        (
            file[: one.first],
            file[other.first : other.end],
            file[one.end : other.first],
            file[one.first : one.end],
            file[other.end :],
        )
    )


def splice(file: bytes, chance: random.Random) -> bytes:
    """The head of this file and the tail of another, at times of the same format."""
    alike = [other for other in pictures.samples().values() if other[:4] == file[:4]]
    other = chance.choice(alike if alike and chance.random() < 0.5 else list(pictures.samples().values()))
    where = chance.choice((_boundary, _place))
    return file[: where(file, chance)] + other[where(other, chance) :]


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bytes": flip_bytes,
    "flipped bits": flip_bits,
    "flipped bytes of coded data": flip_coded_bytes,
    "a cut": cut,
    "a deleted block": delete_block,
    "a duplicated block": duplicate_block,
    "an overwritten length": overwrite_length,
    "swapped parts": swap_parts,
    "a splice with another file": splice,
}
COMBINATIONS = len(KINDS) * len(pictures.samples())


def with_right_checksums(png: bytes) -> bytes:
    """Each chunk that is whole with the checksum that it should have. Other files stay as they are."""
    if format_of(png) != "PNG":
        return png
    mended, position = bytearray(png), 8
    while position + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, position)
        end = position + 8 + size
        if end + 4 > len(png):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(png[position + 4 : end]))
        position = end + 4
    return bytes(mended)


def _place(file: bytes, chance: random.Random) -> int:
    reach = len(file) if chance.random() < 0.5 else min(len(file), HEAD_REACH)
    return chance.randrange(reach)


def _boundary(file: bytes, chance: random.Random) -> int:
    found = parts(file)
    return chance.choice(found).first if found else _place(file, chance)


def _block(file: bytes, chance: random.Random) -> tuple[int, int]:
    """Where a part, or some bytes anywhere, begin and end."""
    found = parts(file)
    if found and chance.random() < 0.5:
        part = chance.choice(found)
        return part.first, part.end
    first = _place(file, chance)
    return first, min(len(file), first + chance.choice((1, 2, 16, 256, 4096)))


def _with_flips_in_rows(png: bytes, chance: random.Random) -> bytes:
    chunks = [
        (png[part.first + 4 : part.first + 8], png[part.first + 8 : part.end - 4]) for part in parts(png)
    ]
    coded = b"".join(body for kind, body in chunks if kind == b"IDAT")
    try:
        rows = bytearray(zlib.decompressobj().decompress(coded, 1_000_000))
    except zlib.error:  # of a file that was damaged before
        return flip_bytes(png, chance)
    for _ in range(chance.choice((1, 2, 8, 50)) if rows else 0):
        rows[chance.randrange(len(rows))] = chance.randrange(256)
    rows = rows[: len(rows) if chance.random() < 0.8 else chance.randrange(len(rows) + 1)]
    before = [chunk for chunk in chunks if chunk[0] not in (b"IDAT", b"IEND")]
    after = [(b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    return png[:8] + b"".join(pictures.png_chunk(*chunk) for chunk in before + after)


# What a file is made of


def format_of(file: bytes) -> str:
    """By its first bytes; "" for what is none."""
    return next((format.name for format in FORMATS if format.begins.match(file[:HEAD_BYTES])), "")


@functools.lru_cache(maxsize=100)
def parts(file: bytes) -> tuple[Part, ...]:
    """The parts of an image file, as far as they can be told."""
    walk = {
        "JPEG": _jpeg_parts,
        "PNG": _png_parts,
        "WEBP": _webp_parts,
        "GIF": _gif_parts,
        "AVIF": _avif_parts,
    }
    format = format_of(file)
    found: list[Part] = []
    if format in walk:
        with suppress(struct.error, IndexError):  # a file that was cut short
            for part in walk[format](file):
                found.append(part)
    return tuple(found)


def _jpeg_parts(file: bytes) -> Iterator[Part]:
    found = pictures.MARKER.search(file, 2)
    while found is not None and found[0] != b"\xff\xd9":
        body = found.end()
        (size,) = struct.unpack_from(">H", file, body)
        fields = [Field(body, 2, "big")]
        if found[0][1] in (0xC0, 0xC1, 0xC2):  # frame header: height, width
            fields += [Field(body + 3, 2, "big"), Field(body + 5, 2, "big")]
        if found[0][1] == 0xDD:  # restart interval
            fields.append(Field(body + 2, 2, "big"))
        following = pictures.MARKER.search(file, body + size)
        yield Part(found.start(), following.start() if following else len(file), tuple(fields))
        found = following


def _png_parts(file: bytes) -> Iterator[Part]:
    position = 8
    while position < len(file):
        size, kind = struct.unpack_from(">I4s", file, position)
        fields = [Field(position, 4, "big")]
        if kind == b"IHDR":
            fields += [Field(position + 8, 4, "big"), Field(position + 12, 4, "big")]
        yield Part(position, min(position + 12 + size, len(file)), tuple(fields))
        position += 12 + size


# Where a chunk of that kind states sizes: offsets in its body, and how many bytes.
_WEBP_SIZES = {
    b"VP8X": ((4, 3), (7, 3)),
    b"VP8 ": ((6, 2), (8, 2)),
    b"VP8L": ((1, 4),),
    b"ANMF": ((0, 3), (3, 3), (6, 3), (9, 3), (20, 4)),  # the last is that of the chunk within
}


def _webp_parts(file: bytes) -> Iterator[Part]:
    position = 12
    whole: tuple[Field, ...] = (Field(4, 4, "little"),)
    while position < len(file):
        kind, size = struct.unpack_from("<4sI", file, position)
        sizes = (Field(position + 8 + at, width, "little") for at, width in _WEBP_SIZES.get(kind, ()))
        end = position + 8 + size + size % 2
        yield Part(position, min(end, len(file)), (*whole, Field(position + 4, 4, "little"), *sizes))
        position, whole = end, ()


def _gif_parts(file: bytes) -> Iterator[Part]:
    position, fields = 13 + _gif_palette_bytes(file[10]), [Field(6, 2, "little"), Field(8, 2, "little")]
    while file[position] != 0x3B:
        first = position
        if file[first] == 0x2C:  # an image: left, top, width, height
            fields += [Field(first + at, 2, "little") for at in (1, 3, 5, 7)]
            position += 11 + _gif_palette_bytes(file[first + 9])
        else:
            position += 2
        while file[position]:
            fields.append(Field(position, 1, "little"))
            position += 1 + file[position]
        position += 1
        yield Part(first, position, tuple(fields))
        fields = []


def _avif_parts(file: bytes, position: int = 0, end: int = 1 << 30) -> Iterator[Part]:
    """Its boxes (ISO 14496-12), and those within them."""
    while position < min(end, len(file)):
        size, kind = struct.unpack_from(">I4s", file, position)
        yield Part(position, min(position + max(size, 8), len(file)), (Field(position, 4, "big"),))
        if kind in (b"meta", b"iprp", b"ipco"):
            yield from _avif_parts(file, position + (12 if kind == b"meta" else 8), position + size)
        position += max(size, 8)


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


# What they do


def outcome(data: bytes) -> str:
    """What a file gives in this process: "pixels", or the name of the documented error; anything else raises."""
    try:
        pixels_of(data)
    except (UnsupportedFormat, TooManyPixels, BadImage) as error:
        return type(error).__name__
    return "pixels"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.images.mutations", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("number", type=int)
    parser.add_argument("--save", type=Path, help="where to write the file")
    options = parser.parse_args()
    mutation = mutated(options.number)
    print(mutation)
    if options.save:
        options.save.write_bytes(mutation.data)
    print(outcome(mutation.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
