"""The error tree: what its picture says, and what its sentences say."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import errors
from embedder.errors import (
    BadImage,
    BodyTooLarge,
    Draining,
    EmbedderError,
    FetchFailed,
    FetchTimeout,
    ImageTooLarge,
    InputError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelMismatch,
    NotFound,
    OriginError,
    Overloaded,
    RequestError,
    ServiceError,
    TextNotSupported,
    TooManyPixels,
    Unauthorized,
    UnsupportedFormat,
    UnsupportedMediaType,
    URLNotAllowed,
    megabytes,
)

# The service's contract with its clients.
CONTRACT = {
    "invalid_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "text_not_supported": 400,
    "model_mismatch": 409,
    "url_not_allowed": 422,
    "image_too_large": 422,
    "too_many_pixels": 422,
    "unsupported_format": 422,
    "bad_image": 422,
    "fetch_failed": 424,
    "fetch_timeout": 424,
    "overloaded": 429,
    "draining": 503,
    "internal_error": 500,
}

CLASSES = [
    cls
    for cls in vars(errors).values()
    if inspect.isclass(cls) and issubclass(cls, EmbedderError) and cls.__module__ == errors.__name__
]
LEAVES = [cls for cls in CLASSES if not cls.__subclasses__() and cls is not InputError]

ONE_OF_EACH: list[EmbedderError] = [
    InvalidRequest("the body is not JSON"),
    Unauthorized(),
    NotFound(),
    MethodNotAllowed(method="PUT", allowed=("GET", "HEAD")),
    BodyTooLarge(limit_bytes=32_000_000, actual_bytes=400_000_000),
    UnsupportedMediaType("text/plain"),
    TextNotSupported("'cat'"),
    ModelMismatch(expected="0123456789ab", served="resnet18:1, fingerprint 8a8a8a8a8a8a"),
    URLNotAllowed("the URL has no host"),
    ImageTooLarge(limit_bytes=20_000_000, actual_bytes=25_500_000),
    TooManyPixels(width=30_000, height=20_000, limit_pixels=50_000_000),
    UnsupportedFormat("this is a HEIC file", taken=("JPEG", "PNG")),
    BadImage("the image is cut short"),
    FetchFailed("the image's server answered 404"),
    FetchTimeout(limit_s=10),
    Overloaded("512 images are in work"),
    Draining(),
    InternalError(),
]


def drawn() -> list[tuple[str, str, str]]:
    """The docstring's picture as (class, its parent, the rest of the line)."""
    found, branch = [], ""
    for line in (errors.__doc__ or "").splitlines():
        if drawing := re.fullmatch(r"((?:│   |    )*)[├└]── (\w+)\s+(.+)", line):
            depth, name, rest = drawing.groups()
            found.append((name, branch if depth else "EmbedderError", rest))
            branch = branch if depth else name
    return found


def test_the_picture_shows_every_class_below_its_parent() -> None:
    assert {name: parent for name, parent, _ in drawn()} == {
        cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES if cls is not EmbedderError
    }


def test_the_picture_shows_every_leafs_status_code_and_retry_after() -> None:
    shown = {name: rest for name, _, rest in drawn() if re.match(r"\d{3} ", rest)}
    told = {
        cls.__name__: f"{cls.status}  {cls.code}"
        + (", with Retry-After" if getattr(cls, "retry_after_s", None) else "")
        for cls in LEAVES
    }
    assert shown == told


def test_statuses_and_codes_are_the_contracts() -> None:
    assert {cls.code: cls.status for cls in LEAVES} == CONTRACT
    assert len(LEAVES) == len(CONTRACT)  # so no code is used twice
    assert [type(error) for error in ONE_OF_EACH] == LEAVES


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_a_leaf_says_for_the_documentation_when_it_is_answered(cls: type[EmbedderError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", cls.code)
    assert cls.summary
    assert "\n" not in cls.summary
    assert not cls.summary.endswith(".")


def test_the_branches_are_whose_fault_it_is() -> None:
    assert all((400 <= cls.status < 424) == issubclass(cls, RequestError) for cls in LEAVES)
    assert all((cls.status == 424) == issubclass(cls, OriginError) for cls in LEAVES)
    assert all((cls.status == 429 or cls.status >= 500) == issubclass(cls, ServiceError) for cls in LEAVES)


def test_what_a_client_may_repeat_says_after_how_many_whole_seconds() -> None:
    waits = {cls.code: cls.retry_after_s for cls in LEAVES if issubclass(cls, ServiceError)}
    assert waits.pop("internal_error") is None
    assert all(isinstance(wait, int) and wait >= 1 for wait in waits.values())


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: error.code)
def test_each_error_is_one_plain_line(error: EmbedderError) -> None:
    assert str(error)
    assert str(error).isprintable()
    assert not str(error).endswith(".")


@pytest.mark.parametrize("cls", [BodyTooLarge, ImageTooLarge])
def test_too_many_bytes_names_the_limit_and_the_actual_size_where_it_is_known(
    cls: type[BodyTooLarge | ImageTooLarge],
) -> None:
    error = cls(limit_bytes=10_000_000, actual_bytes=12_400_000)
    assert (error.limit_bytes, error.actual_bytes) == (10_000_000, 12_400_000)
    assert "12.4 MB" in str(error)
    assert "10 MB" in str(error)
    unknown = cls(limit_bytes=10_000_000)
    assert unknown.actual_bytes is None
    assert "10 MB" in str(unknown)
    assert "None" not in str(unknown)


def test_too_many_pixels_names_the_sides_their_product_and_the_limit() -> None:
    error = TooManyPixels(width=10_000, height=5_001, limit_pixels=50_000_000)
    assert (error.width, error.height, error.limit_pixels) == (10_000, 5_001, 50_000_000)
    assert all(number in str(error) for number in ("10000", "5001", "50010000", "50000000"))


@pytest.mark.parametrize(("limit_s", "said"), [(10.0, "10 s"), (0.1, "0.1 s"), (2.5, "2.5 s"), (40, "40 s")])
def test_a_timeout_names_its_limit(limit_s: float, said: str) -> None:
    error = FetchTimeout(limit_s=limit_s)
    assert error.limit_s == limit_s
    assert said in str(error)


def test_a_media_type_is_quoted_so_that_nothing_in_it_breaks_the_line() -> None:
    assert "'text/plain'" in str(UnsupportedMediaType("text/plain"))
    assert str(UnsupportedMediaType("text/\r\nplain\x00")).isprintable()


@pytest.mark.parametrize(
    "error", [UnsupportedMediaType("a" * 9999), UnsupportedMediaType("", encoding="b" * 9999)]
)
def test_what_a_client_sends_comes_back_in_excerpts(error: UnsupportedMediaType) -> None:
    assert len(str(error)) < 250


def test_sizes_are_written_as_limits_are() -> None:
    assert [megabytes(size) for size in (0, 1_000_000, 12_400_000)] == ["0 MB", "1 MB", "12.4 MB"]


@pytest.mark.parametrize("limit", [1_000, 1_000_000, 10_000_000, 20_000_000, 32_000_000, 1_000_000_000])
def test_one_byte_over_the_limit_reads_differently_from_the_limit(limit: int) -> None:
    # "the image is 20 MB; the limit is 20 MB" explains nothing.
    assert megabytes(limit + 1) != megabytes(limit)
    assert megabytes(limit - 1) != megabytes(limit)


@given(st.integers(1000, 2**63))
def test_no_size_above_the_smallest_limit_is_written_with_an_exponent(size: int) -> None:
    # A Content-Length may claim anything; no limit can be set below 1000 bytes.
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)? MB", megabytes(size))


def test_an_inputs_error_is_its_causes_and_says_which_input() -> None:
    for cause in ONE_OF_EACH:
        error = InputError(cause, "input[3]")
        assert (str(error), error.code, error.status) == (str(cause), cause.code, cause.status)
        assert (error.cause, error.param, error.retry_after_s) == (cause, "input[3]", cause.retry_after_s)
