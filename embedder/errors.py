"""Everything that can go wrong with a request, as one tree, split by whose fault it is.

EmbedderError
├── RequestError           the client's: another request would work
│   ├── InvalidRequest         400  invalid_request
│   ├── Unauthorized           401  unauthorized
│   ├── NotFound               404  not_found
│   ├── MethodNotAllowed       405  method_not_allowed
│   ├── BodyTooLarge           413  body_too_large
│   ├── UnsupportedMediaType   415  unsupported_media_type
│   ├── TextNotSupported       400  text_not_supported
│   ├── ModelMismatch          409  model_mismatch
│   ├── URLNotAllowed          422  url_not_allowed
│   ├── ImageTooLarge          422  image_too_large
│   ├── TooManyPixels          422  too_many_pixels
│   ├── UnsupportedFormat      422  unsupported_format
│   └── BadImage               422  bad_image
├── OriginError            the origin's: the same request may work later
│   ├── FetchFailed            424  fetch_failed
│   └── FetchTimeout           424  fetch_timeout
├── ServiceError           ours
│   ├── Overloaded             429  overloaded, with Retry-After
│   ├── Draining               503  draining, with Retry-After
│   └── InternalError          500  internal_error
└── InputError             any of these, of one image that fails all of a request

The sentence, `str(error)`, names limits and actual values. It never names an address that a name resolved to.
Each dialect renders errors in its own shape; the service's own is `{"error": str(error), "code": error.code}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar


def megabytes(size: int) -> str:
    """`size` bytes in decimal megabytes, to the byte: one byte over a limit reads as more than the limit."""
    return f"{size / 1_000_000:.15g} MB"


class EmbedderError(Exception):
    """A request, or one image of a batch, that gets an error instead of an embedding."""

    code: str
    status: int
    summary: ClassVar[str]
    """One clause for the API's documentation: when this is answered."""
    retry_after_s: int | None = None


class RequestError(EmbedderError):
    """The client asked for something that can't work. Trying again does not help; another request would."""


class InvalidRequest(RequestError):
    code = "invalid_request"
    status = 400
    summary = "the body is not what the route takes, or the request can't be read"


class Unauthorized(RequestError):
    code = "unauthorized"
    status = 401
    summary = "the request carries no key that is accepted"

    def __init__(self) -> None:
        super().__init__(
            "the request carries no key that is accepted: send 'Authorization: Bearer KEY' or "
            "'X-API-Key: KEY'"
        )


class NotFound(RequestError):
    code = "not_found"
    status = 404
    summary = "there is no such route"

    def __init__(self) -> None:
        super().__init__("there is no such route; /docs shows those that there are")


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"
    status = 405
    summary = "the route takes another method"

    def __init__(self, *, method: str, allowed: Sequence[str]) -> None:
        self.allowed = tuple(allowed)
        super().__init__(f"the route does not take {method!r}; it takes {' and '.join(allowed)}")


class BodyTooLarge(RequestError):
    code = "body_too_large"
    status = 413
    summary = "the request body is over the limit"

    def __init__(self, *, limit_bytes: int, actual_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.actual_bytes = actual_bytes
        actual = "more than that" if actual_bytes is None else megabytes(actual_bytes)
        super().__init__(f"the request body is {actual}; the limit is {megabytes(limit_bytes)}")


class UnsupportedMediaType(RequestError):
    code = "unsupported_media_type"
    status = 415
    summary = "the body has a Content-Type that the route does not take, or is compressed"

    def __init__(
        self, media_type: str, *, takes: Sequence[str] = ("application/json",), encoding: str | None = None
    ) -> None:
        super().__init__(
            f"the body's Content-Type is {media_type[:100]!r}; send {' or '.join(takes)} "
            f"(curl: -H 'Content-Type: {takes[0]}')"
            if encoding is None
            else f"the body's Content-Encoding is {encoding[:100]!r}; send it without one"
        )


class TextNotSupported(RequestError):
    code = "text_not_supported"
    status = 400
    summary = "an input is text, and no URL of an image"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is text, and this model embeds images: send a URL, a data: URL, or an image in base64"
        )


class ModelMismatch(RequestError):
    code = "model_mismatch"
    status = 409
    summary = "the request expects another model than the one that is served"

    def __init__(self, *, expected: str, served: str) -> None:
        super().__init__(f"the request expects the model {expected[:100]!r}; served is {served}")


class URLNotAllowed(RequestError):
    code = "url_not_allowed"
    status = 422
    summary = "the URL itself is refused: scheme, port, user name, literal address, host, syntax"


class ImageTooLarge(RequestError):
    code = "image_too_large"
    status = 422
    summary = "the image has too many bytes"

    def __init__(self, *, limit_bytes: int, actual_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.actual_bytes = actual_bytes
        actual = "more than that" if actual_bytes is None else megabytes(actual_bytes)
        super().__init__(f"the image is {actual}; the limit is {megabytes(limit_bytes)}")


class TooManyPixels(RequestError):
    code = "too_many_pixels"
    status = 422
    summary = "the image has too many pixels"

    def __init__(self, *, width: int, height: int, limit_pixels: int) -> None:
        self.width = width
        self.height = height
        self.limit_pixels = limit_pixels
        super().__init__(
            f"the image is {width} x {height}, {width * height} pixels; the limit is {limit_pixels} pixels"
        )


class UnsupportedFormat(RequestError):
    code = "unsupported_format"
    status = 422
    summary = "the bytes are no image of a format that is taken"

    def __init__(self, found: str, *, taken: Sequence[str]) -> None:
        super().__init__(f"{found}; taken are {', '.join(taken)}")


class BadImage(RequestError):
    code = "bad_image"
    status = 422
    summary = "the image is damaged, cut short, or built to cost more than it shows"


class OriginError(EmbedderError):
    """The server that has the image did not give it.

    What follows is for whoever runs this. HTTP clients are not told: they must not learn what is inside the network.
    """

    reason: str = ""
    """A value of `FETCH_FAILURES`: name, connection, status..."""
    host: str = ""
    """Whose server it was, after redirects."""
    http_status: int | None = None
    """What the image's server answered, where that is the reason."""
    come_back_s: float | None = None
    """When it wants to be asked again: its Retry-After."""


class FetchFailed(OriginError):
    code = "fetch_failed"
    status = 424
    summary = "the image's server can't be reached, breaks off, or answers other than 200"

    def __init__(
        self, text: str, *, http_status: int | None = None, come_back_s: float | None = None
    ) -> None:
        self.http_status = http_status
        self.come_back_s = come_back_s
        super().__init__(text)


class FetchTimeout(OriginError):
    code = "fetch_timeout"
    status = 424
    summary = "the image did not arrive in time"

    def __init__(self, *, limit_s: float, event: str = "the image did not arrive") -> None:
        self.limit_s = limit_s
        super().__init__(f"{event} within {limit_s:g} s")


class ServiceError(EmbedderError):
    """The service can't answer now; nothing is wrong with the request."""


class Overloaded(ServiceError):
    code = "overloaded"
    status = 429
    summary = "too much is in work, or there is no memory or time for it; try again after Retry-After seconds"
    retry_after_s = 1


class Draining(ServiceError):
    code = "draining"
    status = 503
    summary = "this process is shutting down; try again after Retry-After seconds"
    retry_after_s = 2

    def __init__(self) -> None:
        super().__init__("the service is shutting down")


class InternalError(ServiceError):
    code = "internal_error"
    status = 500
    summary = "a bug in the service; its log has the details"

    def __init__(self) -> None:
        super().__init__("internal error; the service's log has the details")


class InputError(EmbedderError):
    """One image of a request, which fails all of it."""

    def __init__(self, cause: EmbedderError, param: str) -> None:
        self.cause = cause
        self.param = param
        """What the request calls it."""
        self.code, self.status, self.retry_after_s = cause.code, cause.status, cause.retry_after_s
        super().__init__(str(cause))


class StartError(Exception):
    """On this machine it can't start; the message is one sentence that says what to change."""


def bare(error: EmbedderError) -> EmbedderError:
    """`error` without its traceback, whose frames keep bodies and images alive that no budget counts any more."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def codes(error: type[EmbedderError] = EmbedderError) -> Iterator[str]:
    """The code of every error there is."""
    for child in error.__subclasses__():
        if "code" in vars(child):
            yield child.code
        yield from codes(child)
