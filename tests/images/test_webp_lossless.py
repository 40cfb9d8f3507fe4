"""The Huffman code groups of a lossless WebP: counted, limited, and refused where libwebp refuses them."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL.WebPImagePlugin import WebPImageFile

from embedder.errors import BadImage
from embedder.images.containers import MAX_CODE_GROUPS, first_picture
from embedder.images.webp_lossless import MAX_STEPS, code_groups
from tests import pictures
from tests.images.reference import MAX_PIXELS, RESNET, pixels_of
from tests.pictures import encoded, photo

ONE_SYMBOL = "1000"  # a code of the symbol 0, which takes no bits


def stream(bits: str) -> bytes:
    """As RFC 9649 packs them, with zeros behind."""
    return np.packbits(np.frombuffer(bits.encode(), np.uint8) - ord("0"), bitorder="little").tobytes()


def coded(webp: bytes) -> bytes:
    """What `code_groups` takes, of a file that is one lossless picture."""
    ((kind, body),) = pictures.webp_chunks(webp)
    assert kind == b"VP8L"
    return body[5:]


CODES = 5 * ONE_SYMBOL
FLAT = "0" + CODES  # an image of one value, without a cache of colours
PREDICTOR, COLOUR = "1" + "00" + "000", "1" + "10" + "000"  # transforms with a pixel for each 4 x 4
ONE_SET = "0" + "0" + "0"  # no further transform, no cache of colours, one set of codes
ALIKE = "0" + "0001" + 11 * "000" + "100" + "0"  # 256 words of 8 bits; lengths that are all alike take no bit


def square_of_64(bits: str) -> bytes:
    """A file of a lossless picture whose data begin with these bits."""
    head = b"\x2f" + struct.pack("<I", 63 | 63 << 14)
    return pictures.webp_of_chunks([(b"VP8L", head + stream(bits + 200 * "0"))])


def image(pixels: int, *, red: str = ONE_SYMBOL, red_bits: int = 0) -> str:
    """The bits of an image whose pixels are 0 or 1 in green, 0 in red."""
    two_symbols = "11" + "0" + "0" + "10000000"
    zero, one = "0" + red_bits * "0", "1" + red_bits * "0"
    values = (zero + one) * (pixels // 2) + zero * (pixels % 2)
    return "0" + two_symbols + red + 3 * ONE_SYMBOL + values


@pytest.mark.parametrize(("method", "quality"), [(0, 0), (6, 100)])
@pytest.mark.parametrize("colours", [2, 16, 256, None])
@pytest.mark.parametrize("size", [(1, 1), (17, 3), (320, 213)])
def test_what_an_encoder_writes_is_read_to_its_end_and_far_from_the_limit(
    size: tuple[int, int], colours: int | None, method: int, quality: int
) -> None:
    image = photo(*size) if colours is None else photo(*size).quantize(colours).convert("RGB")
    webp = encoded(image, "WEBP", lossless=True, method=method, quality=quality)
    # Each is a code for at least two symbols, or nobody would have made it.
    assert 1 <= code_groups(coded(webp), *size) <= max(1, size[0] * size[1] // 16)
    pixels_of(webp)


def still_of(side: int, *chunks: tuple[bytes, bytes]) -> bytes:
    return pictures.webp_of_chunks([pictures.webp_canvas(side, side, 0x10), *chunks])


def animation_of(side: int, *chunks: tuple[bytes, bytes]) -> bytes:
    frame = bytes(6) + 2 * struct.pack("<I", side - 1)[:3] + bytes(4) + pictures.webp_of_chunks(chunks)[12:]
    return pictures.webp_of_chunks(
        [pictures.webp_canvas(side, side, 0x12), (b"ANIM", bytes(6)), (b"ANMF", frame)]
    )


def lossless(webp: bytes, side: int) -> bytes:
    return webp


def with_alpha(webp: bytes, side: int) -> bytes:
    (lossy,) = pictures.webp_chunks(encoded(photo(side, side), "WEBP"))
    return still_of(side, (b"ALPH", b"\1" + coded(webp)), lossy)


def animated(webp: bytes, side: int) -> bytes:
    return animation_of(side, *pictures.webp_chunks(webp))


@pytest.mark.parametrize("wrapped", [lossless, with_alpha, animated])
def test_4096_groups_pass_with_the_memory_that_they_take_and_more_are_refused(
    wrapped: Callable[[bytes, int], bytes],
) -> None:
    assert MAX_CODE_GROUPS == 4096
    assert code_groups(coded(pictures.webp_of_codes(252)), 252, 252) == (252 // 4) ** 2
    picture = first_picture(wrapped(pictures.webp_of_codes(256), 256), RESNET, max_pixels=MAX_PIXELS)
    assert picture.decoding_bytes - len(picture.data) >= 18 * 256 * 256 + 20_000 * 4096
    with pytest.raises(BadImage, match="4225 groups of Huffman codes; the limit is 4096"):
        first_picture(wrapped(pictures.webp_of_codes(260), 260), RESNET, max_pixels=MAX_PIXELS)


def test_an_alpha_that_is_not_coded_has_no_groups() -> None:
    (lossy,) = pictures.webp_chunks(encoded(photo(64, 64), "WEBP"))
    plain = pictures.webp_of_chunks(
        [pictures.webp_canvas(64, 64, 0x10), (b"ALPH", b"\0" + bytes(64 * 64)), lossy]
    )
    assert first_picture(plain, RESNET, max_pixels=MAX_PIXELS).decoding_bytes < 1_000_000


def assert_libwebp_refuses(webp: bytes) -> None:
    with pytest.raises(OSError, match=r"decoder|next frame"):
        WebPImageFile(io.BytesIO(webp)).load()


@pytest.mark.parametrize("file_of", [still_of, animation_of])
@pytest.mark.parametrize("method", [b"\0", b"\1"])
def test_a_second_alpha_is_refused_as_libwebp_does(file_of: Callable[..., bytes], method: bytes) -> None:
    (lossy,) = pictures.webp_chunks(encoded(photo(64, 64), "WEBP"))
    alpha = (b"ALPH", method + {b"\0": bytes(64 * 64), b"\1": coded(pictures.webp_of_codes(64))}[method])
    pixels_of(file_of(64, alpha, lossy))
    twice = file_of(64, alpha, alpha, lossy)
    assert_libwebp_refuses(twice)
    with pytest.raises(BadImage, match="two alphas for one picture"):
        first_picture(twice, RESNET, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    ("pixels", "bits_of"),
    [
        (MAX_STEPS, lambda pixels: PREDICTOR + image(pixels)),
        (MAX_STEPS // 2, lambda pixels: PREDICTOR + image(pixels) + COLOUR + image(pixels)),
        (MAX_STEPS - 256, lambda pixels: PREDICTOR + image(pixels, red=ALIKE, red_bits=8)),
    ],
    ids=["pixels", "of two images", "and a code's words"],
)
def test_reading_ends_after_so_many_steps(pixels: int, bits_of: Callable[[int], str]) -> None:
    assert code_groups(stream(bits_of(pixels) + ONE_SET + 100 * "0"), 4 * pixels, 4) == 1
    beyond = stream(bits_of(pixels + 1) + ONE_SET + 100 * "0")
    with pytest.raises(BadImage, match="250000 steps"):
        code_groups(beyond, 4 * (pixels + 1), 4)


# RFC 9649, section 3.6.
@pytest.mark.parametrize(("bits", "valid"), [(0, False), (1, True), (11, True), (12, False)])
@pytest.mark.parametrize("where", ["picture", "predictor"])
def test_a_cache_of_colours_has_1_to_11_bits_as_for_libwebp(bits: int, valid: bool, where: str) -> None:
    cache = "1" + f"{bits:04b}"[::-1]
    bits_of = {"picture": "0" + cache + "0" + CODES, "predictor": PREDICTOR + cache + CODES + ONE_SET + CODES}
    webp = square_of_64(bits_of[where])
    if valid:
        assert code_groups(coded(webp), 64, 64) == 1
        pixels_of(webp)
        return
    assert_libwebp_refuses(webp)
    with pytest.raises(BadImage, match=f"{bits} bits for its cache of colours"):
        code_groups(coded(webp), 64, 64)


def test_an_image_of_one_value_takes_no_steps_however_large_it_is() -> None:
    assert MAX_STEPS < (16_383 // 4) ** 2
    assert code_groups(stream(PREDICTOR + FLAT + ONE_SET + 100 * "0"), 16_383, 16_383) == 1


TRANSFORMS = {
    "predictor": PREDICTOR + FLAT,
    "colour": COLOUR + FLAT,
    "subtract green": "1" + "01",
    "palette": "1" + "11" + "00000000" + FLAT,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_that_comes_twice_is_refused_as_libwebp_does(name: str) -> None:
    others = "".join(bits for other, bits in TRANSFORMS.items() if other != name)
    once = square_of_64(TRANSFORMS[name] + others + ONE_SET + CODES)
    assert code_groups(coded(once), 64, 64) == 1
    pixels_of(once)
    twice = square_of_64(TRANSFORMS[name] + others + TRANSFORMS[name] + ONE_SET + CODES)
    assert_libwebp_refuses(twice)
    with pytest.raises(BadImage, match="a transform comes twice"):
        code_groups(coded(twice), 64, 64)


def test_a_stream_that_ends_too_early_is_cut_short() -> None:
    whole = coded(pictures.webp_of_codes(64))
    for size in (0, 20, 100, 180):  # of 200 bytes and more before its codes' numbers end
        with pytest.raises(BadImage):
            code_groups(whole[:size], 64, 64)


@pytest.mark.parametrize(
    "code",
    [
        "0" + "0000" + "100" + 3 * "000" + "0",  # no word
        "0" + "0000" + 4 * "100",  # words that are too many
        "0" + "0000" + "010" + "010" + 2 * "000",  # too few
        "0" + "0000" + "100" + "100" + 2 * "000" + "1" + "111" + 16 * "1",  # more symbols than there are
    ],
)
def test_an_incomplete_or_ambiguous_huffman_code_is_damage(code: str) -> None:
    with pytest.raises(BadImage, match="damaged"):
        code_groups(stream("1" + "00" + "000" + "0" + code + 400 * "0"), 64, 64)


def zeros(count: int) -> str:
    """So many symbols without a word, 11 to 138, where the words 0 and 1 mean the lengths 1 and 18."""
    return "1" + f"{count - 11:07b}"[::-1]


def with_red(code: str, bits: int) -> bytes:
    """A file of a predictor's 16 x 16 pixels with this code for reds, of words of so many bits."""
    codes = ONE_SYMBOL + code + 3 * ONE_SYMBOL
    return square_of_64(PREDICTOR + "0" + codes + 16 * 16 * bits * "0" + ONE_SET + CODES)


EIGHTS = ALIKE[:-1] + "1" + "110"  # lengths of 8, as many as the 8 bits behind say, from 2 on
ONES = "0" + "0000" + "000" + "100" + "000" + "100" + "0"  # lengths of 1, and repeated 0


@pytest.mark.parametrize(
    ("bits", "valid", "damaged"),
    {
        "lengths of 256 words, of 257": (8, EIGHTS + f"{254:08b}"[::-1], EIGHTS + f"{255:08b}"[::-1]),
        "zeros to the last symbol, to one more": (
            1,
            ONES + "0" + "0" + zeros(138) + zeros(116),
            ONES + "0" + "0" + zeros(138) + zeros(117),
        ),
    }.values(),
)
def test_lengths_for_more_symbols_than_there_are_is_damage_as_for_libwebp(
    bits: int, valid: str, damaged: str
) -> None:
    assert code_groups(coded(with_red(valid, bits)), 64, 64) == 1
    pixels_of(with_red(valid, bits))
    beyond = with_red(damaged, bits)
    assert_libwebp_refuses(beyond)
    with pytest.raises(BadImage, match="damaged"):
        code_groups(coded(beyond), 64, 64)


# RFC 9649, section 4.4, "width_bits": so many indices to a pixel.
@pytest.mark.parametrize(("colours", "packed"), [(2, 8), (3, 4), (4, 4), (5, 2), (16, 2), (17, 1)])
def test_a_picture_of_few_colours_is_packed_before_groups_are_counted(colours: int, packed: int) -> None:
    palette = "1" + "11" + f"{colours - 1:08b}"[::-1] + FLAT
    numbered = "0" + "0" + "1" + "000"  # no further transform, no cache of colours, a number for each 4 x 4
    codes = "0" + "11" + "0" + "0" + "10000000" + 4 * ONE_SYMBOL  # of the numbers 0 and 1
    blocks = 64 // packed // 4 * (64 // 4)
    for zeros_before, sets in ((blocks - 1, 2), (blocks, 1)):
        numbers = zeros_before * "0" + 300 * "1"
        assert code_groups(stream(palette + numbered + codes + numbers), 64, 64) == sets


def test_what_is_refused_for_its_codes_libwebp_refuses_too() -> None:
    chance, refused = random.Random(0), 0
    files = [
        encoded(image, "WEBP", lossless=True, method=method)
        for image in (photo(64, 48), photo(64, 48).quantize(4).convert("RGB"), photo(200, 150))
        for method in (0, 6)
    ]
    for _ in range(1500):
        damaged = bytearray(chance.choice(files))
        damaged[chance.randrange(25, 200)] ^= 1 << chance.randrange(8)
        (sizes,) = struct.unpack_from("<I", damaged, 21)
        try:
            code_groups(bytes(damaged[25:]), 1 + (sizes & 0x3FFF), 1 + (sizes >> 14 & 0x3FFF))
        except BadImage:
            refused += 1
            assert_libwebp_refuses(bytes(damaged))
    assert refused > 200
