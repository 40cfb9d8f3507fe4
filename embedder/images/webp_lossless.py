"""How many sets of prefix codes a lossless WebP has: a part of its cost that its size does not show.

Each 4 x 4 pixels may have a set of their own, for which libwebp makes tables: a file of 2 MB for a megapixel
takes 0.9 GB and 1.5 s that way. How many there are stands behind the transforms, whose images are coded with
codes too. So these are read here, as far as it takes to know where they end; the picture itself is not.

Format: RFC 9649, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder.errors import BadImage

MAX_STEPS = 250_000
"""Of reading all that stands before the picture: pixels, copies of pixels, and the lengths of codes' words.

Each may take no bit. libwebp's encoder needed 13 000 at most for photos of 1 to 49 megapixels.
"""

_PREDICTOR, _COLOUR, _SUBTRACT_GREEN, _PALETTE = range(4)
_LITERALS, _LENGTHS, _DISTANCES = 256, 24, 40
_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_REPEATS = {16: (2, 3), 17: (3, 3), 18: (7, 11)}  # bits of the count, and what is added to it
_MAX_LENGTH = 15
_MAX_CACHE_BITS = 11


def code_sets(data: bytes, width: int, height: int) -> int:
    """How many sets of prefix codes a picture of that size has. `data` begins with its transforms.

    Raises BadImage where the data end too early, are damaged, or take more than MAX_STEPS to read.
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
            # Indices of few colours are packed, several to a pixel.
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
    """A prefix code, as a table of what the next bits mean."""

    mask: int
    """Of as many bits as its longest word has."""
    table: Sequence[tuple[int, int]]
    """The symbol, and how many of the bits are its word."""


@dataclass(frozen=True, slots=True)
class _Codes:
    """A set of prefix codes. What reads with one gives how many bits of the window are used by then."""

    green: _Code
    """Also of lengths of copies, and of colours in the cache."""
    red: _Code
    blue: _Code
    alpha: _Code
    distance: _Code

    def only_pixel(self) -> int | None:
        """What red and green of each pixel make, if all are the same: each takes no bit then."""
        symbol = self.green.table[0][0]
        if self.green.mask or self.red.mask or self.blue.mask or self.alpha.mask or symbol >= _LITERALS:
            return None
        return self.red.table[0][0] << 8 | symbol

    def literal(self, window: int, used: int) -> tuple[int, int]:
        """The red of a pixel, whose green is read."""
        red, length = self.red.table[window >> used & self.red.mask]
        used += length
        used += self.blue.table[window >> used & self.blue.mask][1]
        used += self.alpha.table[window >> used & self.alpha.mask][1]
        return red, used

    def copy(self, window: int, used: int, symbol: int) -> tuple[int, int]:
        """How many pixels are copied, by the symbol of their number, which is read."""
        copied, extra = _prefixed(symbol, window >> used)
        used += extra
        symbol, length = self.distance.table[window >> used & self.distance.mask]
        used += length
        if symbol > 3:
            used += symbol - 2 >> 1  # as many as in `_prefixed`; from where it is copied is not asked
        return copied, used


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        """In bits, from the least significant one of each byte on."""
        self._steps = 0

    def bits(self, count: int) -> int:
        """The next `count`, up to 32, as a number."""
        window = self._window(8)
        self._position += count
        if self._position > 8 * len(self._data):
            raise BadImage("the WEBP is cut short")
        return window & ((1 << count) - 1)

    def cache_size(self) -> int:
        """How many symbols stand for colours that were used before."""
        if not self.bits(1):
            return 0
        bits = self.bits(4)
        if not 1 <= bits <= _MAX_CACHE_BITS:  # more would be codes of 32 768 symbols, dear to read
            raise BadImage(f"the WEBP is damaged: {bits} bits for its cache of colours")
        return 1 << bits

    def image(self, width: int, height: int) -> int:
        """Reads an image to its end; gives the highest number that red and green of a pixel make.

        Where the image says which set of codes each block of pixels has, that names the last set.
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
            window = self._window(10)  # of a step's four words or less, with what follows them: 73 bits
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
        """The bits from here on, `size` bytes of them less the bits before; zeros where there are no more."""
        first = self._position >> 3
        return int.from_bytes(self._data[first : first + size], "little") >> (self._position & 7)

    def _code(self, symbols: int) -> _Code:
        """The code that is described next, for that many symbols."""
        lengths = [0] * symbols
        if self.bits(1):  # one symbol, or two
            two = self.bits(1)
            first = self.bits(8 if self.bits(1) else 1)
            for symbol in (first, self.bits(8)) if two else (first,):
                if symbol < symbols:  # a distance may be named that there is not
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
    """What `symbol` stands for, from 1 on, with the next bits, and how many of these it takes."""
    if symbol < 4:
        return symbol + 1, 0
    bits = symbol - 2 >> 1
    return (2 + (symbol & 1) << bits) + (window & ((1 << bits) - 1)) + 1, bits


def _code_of(lengths: Sequence[int]) -> _Code:
    """The code whose words have these lengths, 0 for a symbol without one. One that is alone takes no bit."""
    words = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(words) == 1:
        return _Code(0, [(words[0][1], 0)])
    if sum(1 << _MAX_LENGTH - length for length, _ in words) != 1 << _MAX_LENGTH:
        raise _damaged()  # some bits would mean nothing, or two things
    longest = words[-1][0]
    table = [(0, 0)] * (1 << longest)
    word = 0
    for length, symbol in words:
        # Words count upwards, and their first bit comes first; tables are looked up by the last bits.
        reversed_word = int(f"{word >> longest - length:0{length}b}"[::-1], 2)
        table[reversed_word :: 1 << length] = [(symbol, length)] * (1 << longest - length)
        word += 1 << longest - length
    return _Code((1 << longest) - 1, table)


def _damaged() -> BadImage:
    return BadImage("the WEBP is damaged: a prefix code is not one")
