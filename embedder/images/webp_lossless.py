"""Counts the Huffman code groups of a lossless WebP: a part of its cost that its size does not show.

libwebp allocates about 20 kB of tables for each group, and each block of 4 x 4 pixels may have its own: a
file of 2 MB for a megapixel took 0.9 GB and 1.5 s that way. The count comes after the transforms, and their
images are Huffman-coded too. So this file parses the transforms to find where they end. It does not read the
picture.

Format: RFC 9649, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder.errors import BadImage

MAX_STEPS = 250_000
"""The limit on steps: pixels, copies of pixels, and code lengths that are read before the picture.

A step may take no bit, so the size of the file does not bound them. libwebp's encoder needed up to 13 000 for
photos of 1 to 49 megapixels.
"""

_PREDICTOR, _COLOUR, _SUBTRACT_GREEN, _PALETTE = range(4)
_LITERALS, _LENGTHS, _DISTANCES = 256, 24, 40
_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_REPEATS = {16: (2, 3), 17: (3, 3), 18: (7, 11)}  # bits of the count, and the number that is added to it
_MAX_LENGTH = 15
_MAX_CACHE_BITS = 11


def code_groups(data: bytes, width: int, height: int) -> int:
    """The number of Huffman code groups of a picture of that size. `data` begins with its transforms.

    Raises BadImage when the data end too early, are damaged, or take more than MAX_STEPS to read.
    """
    reader = _Reader(data)
    seen: set[int] = set()
    while reader.bits(1):
        transform = reader.bits(2)
        if transform in seen:  # libwebp refuses it too, and a million would fit
            raise BadImage("the WEBP is damaged: a transform comes twice")
        seen.add(transform)
        if transform in (_PREDICTOR, _COLOUR):
            reader.image(*_blocks(width, height, reader.bits(3) + 2))
        elif transform == _PALETTE:
            colours = reader.bits(8) + 1
            reader.image(colours, 1)
            # When there are few colours, several palette indices are packed into a pixel.
            width = _shifted(width, 3 if colours <= 2 else 2 if colours <= 4 else 1 if colours <= 16 else 0)
    reader.cache_size()
    if not reader.bits(1):
        return 1
    return 1 + reader.image(*_blocks(width, height, reader.bits(3) + 2))


def _blocks(width: int, height: int, bits: int) -> tuple[int, int]:
    return _shifted(width, bits), _shifted(height, bits)


def _shifted(size: int, bits: int) -> int:
    return (size + (1 << bits) - 1) >> bits


@dataclass(frozen=True, slots=True)
class _Code:
    """A Huffman code, as a lookup table for the next bits."""

    mask: int
    """As many ones as the longest code word has bits."""
    table: Sequence[tuple[int, int]]
    """The symbol, and the length of its code word in bits."""


@dataclass(frozen=True, slots=True)
class _Codes:
    """A group of Huffman codes. Its methods return how many bits of the window are used after them."""

    green: _Code
    """Also codes the lengths of copies, and the colours in the cache."""
    red: _Code
    blue: _Code
    alpha: _Code
    distance: _Code

    def only_pixel(self) -> int | None:
        """Red and green of each pixel as one number, if all pixels are the same and so take no bit."""
        symbol = self.green.table[0][0]
        if self.green.mask or self.red.mask or self.blue.mask or self.alpha.mask or symbol >= _LITERALS:
            return None
        return self.red.table[0][0] << 8 | symbol

    def literal(self, window: int, used: int) -> tuple[int, int]:
        """The red of a pixel whose green has been read."""
        red, length = self.red.table[window >> used & self.red.mask]
        used += length
        used += self.blue.table[window >> used & self.blue.mask][1]
        used += self.alpha.table[window >> used & self.alpha.mask][1]
        return red, used

    def copy(self, window: int, used: int, symbol: int) -> tuple[int, int]:
        """How many pixels are copied, by the symbol for that number, which has been read."""
        copied, extra = _prefixed(symbol, window >> used)
        used += extra
        symbol, length = self.distance.table[window >> used & self.distance.mask]
        used += length
        if symbol > 3:
            used += symbol - 2 >> 1  # as many as in `_prefixed`; the distance itself does not matter here
        return copied, used


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        """In bits, from the least significant one of each byte on."""
        self._steps = 0

    def bits(self, count: int) -> int:
        """The next `count` bits, up to 32, as a number."""
        window = self._window(8)
        self._position += count
        if self._position > 8 * len(self._data):
            raise BadImage("the WEBP is cut short")
        return window & ((1 << count) - 1)

    def cache_size(self) -> int:
        """The number of symbols for colours in the cache of used colours."""
        if not self.bits(1):
            return 0
        bits = self.bits(4)
        if not 1 <= bits <= _MAX_CACHE_BITS:  # 15 bits would be 32 768 symbols, slow to read
            raise BadImage(f"the WEBP is damaged: {bits} bits for its cache of colours")
        return 1 << bits

    def image(self, width: int, height: int) -> int:
        """Reads an image to its end. Returns the largest number that red and green of a pixel make up.

        In the image that assigns a code group to each block of pixels, that is the number of the last group.
        """
        codes = _Codes(
            green=self._code(_LITERALS + _LENGTHS + self.cache_size()),
            red=self._code(_LITERALS),
            blue=self._code(_LITERALS),
            alpha=self._code(_LITERALS),
            distance=self._code(_DISTANCES),
        )
        only = codes.only_pixel()
        if only is not None:
            return only
        green, left, highest = codes.green, width * height, 0
        while left > 0:
            self._step()
            window = self._window(10)  # at most four code words and their extra bits: 73 bits
            symbol, used = green.table[window & green.mask]
            if symbol < _LITERALS:
                red, used = codes.literal(window, used)
                left -= 1
                number = red << 8 | symbol
                if number > highest:
                    highest = number
            elif symbol < _LITERALS + _LENGTHS:
                copied, used = codes.copy(window, used, symbol - _LITERALS)
                left -= copied
            else:  # a colour of the cache
                left -= 1
            self._position += used
        if self._position > 8 * len(self._data):
            raise BadImage("the WEBP is cut short")
        return highest

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise BadImage(f"the WEBP takes more than {MAX_STEPS} steps before its picture")

    def _window(self, size: int) -> int:
        """The bits from here to the end of `size` bytes, with zeros behind the end of the data."""
        first = self._position >> 3
        return int.from_bytes(self._data[first : first + size], "little") >> (self._position & 7)

    def _code(self, symbols: int) -> _Code:
        """Reads the description of a code for that many symbols."""
        lengths = [0] * symbols
        if self.bits(1):  # one symbol, or two
            two = self.bits(1)
            first = self.bits(8 if self.bits(1) else 1)
            for symbol in (first, self.bits(8)) if two else (first,):
                if symbol < symbols:  # an undefined distance may be named
                    lengths[symbol] = 1
            return _code_of(lengths)
        counted = [0] * len(_LENGTH_ORDER)
        for place in _LENGTH_ORDER[: 4 + self.bits(4)]:
            counted[place] = self.bits(3)
        code = _code_of(counted)
        coded = 2 + self.bits(2 + 2 * self.bits(3)) if self.bits(1) else symbols
        if coded > symbols:
            raise _damaged()
        symbol, previous = 0, 8
        while symbol < symbols and coded:
            self._step()
            coded -= 1
            length, used = code.table[self._window(8) & code.mask]
            self.bits(used)
            if length <= _MAX_LENGTH:
                lengths[symbol] = length
                previous = length or previous
                symbol += 1
                continue
            bits, more = _REPEATS[length]
            times = self.bits(bits) + more
            if symbol + times > symbols:
                raise _damaged()
            lengths[symbol : symbol + times] = [previous if length == min(_REPEATS) else 0] * times
            symbol += times
        return _code_of(lengths)


def _prefixed(symbol: int, window: int) -> tuple[int, int]:
    """The number that `symbol` and the next bits stand for, from 1 on, and how many bits these are."""
    if symbol < 4:
        return symbol + 1, 0
    bits = symbol - 2 >> 1
    return (2 + (symbol & 1) << bits) + (window & ((1 << bits) - 1)) + 1, bits


def _code_of(lengths: Sequence[int]) -> _Code:
    """The code whose words have these lengths, 0 for a symbol without one. A lone symbol takes no bit."""
    words = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(words) == 1:
        return _Code(0, [(words[0][1], 0)])
    if sum(1 << _MAX_LENGTH - length for length, _ in words) != 1 << _MAX_LENGTH:
        raise _damaged()  # the code is incomplete or ambiguous
    longest = words[-1][0]
    table = [(0, 0)] * (1 << longest)
    word = 0
    for length, symbol in words:
        # Code words count upwards and start with their highest bit; the table is looked up by the lowest
        # bits.
        reversed_word = int(f"{word >> longest - length:0{length}b}"[::-1], 2)
        table[reversed_word :: 1 << length] = [(symbol, length)] * (1 << longest - length)
        word += 1 << longest - length
    return _Code((1 << longest) - 1, table)


def _damaged() -> BadImage:
    return BadImage("the WEBP is damaged: a Huffman code is incomplete or ambiguous")
