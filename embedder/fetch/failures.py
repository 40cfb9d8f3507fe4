"""Why a download failed: what its client is told, and what operators are told.

Refused, unroutable, unresolvable and forbidden addresses are one sentence to clients: they must not learn
from answers what stands inside the network. Operators tell them apart by `Failure.reason`, a value of
`FETCH_FAILURES` and the label of a counter, and by `Failure.cause`, which is logged.
"""

from __future__ import annotations

import errno
import os
import ssl

from embedder.errors import (
    Draining,
    EmbedderError,
    FetchFailed,
    FetchTimeout,
    ImageTooLarge,
    OriginError,
    Overloaded,
    UnsupportedFormat,
    URLNotAllowed,
)
from embedder.fetch.addresses import AddressRefused

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""No descriptor or memory is left for a socket, in this process or on this machine."""

_REASONS: dict[type[EmbedderError], str] = {
    ImageTooLarge: "too_large",
    UnsupportedFormat: "format",
    Overloaded: "busy",
    Draining: "busy",
    URLNotAllowed: "url",
}
_UNREACHABLE = "the image's server can't be reached"


class Failure(Exception):
    """A download that failed.

    Failure("status", FetchFailed("the image's server answered 404"))
    Failure("name", FetchFailed("the image's server can't be reached"), cause="Domain name not found")
    """

    def __init__(self, reason: str, error: EmbedderError, *, cause: str = "") -> None:
        self.reason = reason
        if isinstance(error, OriginError):
            error.reason = reason
        self.error = error
        """What the client is told."""
        self.cause = cause or str(error)
        """What operators are told. May hold what an origin wrote: escape it before it is logged."""
        super().__init__(f"{reason}: {self.cause}")


class Broken(Failure):
    """The origin broke off, or what it sent is no response."""

    def __init__(
        self, cause: str, *, text: str = "the image's server broke off or did not speak HTTP"
    ) -> None:
        """No `cause` holds what the origin sent."""
        super().__init__("answer", FetchFailed(text), cause=cause)


def unreachable(reason: str, cause: str) -> Failure:
    return Failure(reason, FetchFailed(_UNREACHABLE), cause=cause)


def blamed_on_proxy(failure: Failure) -> Failure:
    """`failure`, of a download that got no connection through the proxy: its name, its CONNECT."""
    if failure.reason not in ("name", "answer"):
        return failure
    return unreachable("connection", f"the proxy: {failure.cause}")


def not_connected(exc: OSError, *, reason: str = "connection") -> Failure:
    """The failure behind `exc`, of looking up a name (`reason="name"`), of dialling or of TLS."""
    text = exc.strerror or str(exc)
    match exc:
        case ssl.SSLCertVerificationError():
            said = getattr(exc, "verify_message", "") or "it does not match"
            return Failure("tls", FetchFailed(f"the certificate of the image's server is not valid: {said}"))
        case ssl.SSLError():
            return Failure(
                "tls", FetchFailed("the TLS connection to the image's server failed"), cause=str(exc)
            )
        case AddressRefused():
            return unreachable("address", exc.text)
        case OSError() if exc.errno in NO_ROOM:
            error = Overloaded("the service has no room for another connection now")
            return Failure("busy", error, cause=text)
    if reason == "name":
        return unreachable("name", text if exc.__cause__ is None else f"{text}: {exc.__cause__!r}")
    known = os.strerror(exc.errno) if exc.errno else ""
    return unreachable(reason, text if known in text else f"{known}: {text}")


EXPLAINABLE = (Failure, EmbedderError, OSError, MemoryError)


def explained(exc: Failure | EmbedderError | OSError | MemoryError, *, timeout_s: float) -> Failure:
    """The failure behind `exc`."""
    match exc:
        case Failure():
            return exc
        case EmbedderError():
            return Failure(_REASONS[type(exc)], exc)
        case MemoryError():
            return Failure("busy", Overloaded("there is no memory for the image now"))
        case TimeoutError():
            return Failure("timeout", FetchTimeout(limit_s=timeout_s))
        case OSError():
            return not_connected(exc)
