"""Why a download failed: what its client is told, and what operators are told.

Refused, unroutable, unresolvable and forbidden addresses are one sentence to clients: they must not learn
from answers what stands inside the network. Operators tell them apart by `Failure.reason`, a value of
`FETCH_FAILURES` and the label of a counter, and by `Failure.cause`, which is logged.
"""

from __future__ import annotations

import os
import ssl

import aiohttp

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
from embedder.fetch.aiohttp_private import MAX_FIELD_BYTES, MAX_FIELDS, MAX_FRAMING_BYTES, HeadTooLong
from embedder.fetch.dialling import NO_ROOM, AddressRefused

EXPLAINABLE = (EmbedderError, aiohttp.ClientError, OSError, ValueError, MemoryError)
"""What `explained` knows, beside `Failure`. ValueError is aiohttp's for some malformed answers."""

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


def unreachable(reason: str, cause: str) -> Failure:
    return Failure(reason, FetchFailed(_UNREACHABLE), cause=cause)


def blamed_on_proxy(failure: Failure) -> Failure:
    """`failure`, of a download that got no connection through the proxy: its name, its CONNECT."""
    if failure.reason not in ("name", "answer"):
        return failure
    return unreachable("connection", f"the proxy: {failure.cause}")


def explained(exc: Exception, *, timeout_s: float, connect_timeout_s: float) -> Failure:
    """The failure behind `exc`, one of `EXPLAINABLE` or a Failure.

    No cause holds the text of an aiohttp error: those quote the whole URL, or the answer.
    """
    match exc:
        case Failure():
            return exc
        case EmbedderError():
            return Failure(_REASONS[type(exc)], exc)
        case MemoryError():
            return Failure("busy", Overloaded("there is no memory for the image now"))
        case aiohttp.ConnectionTimeoutError():
            event = "no connection to the image's server came about"
            limit_s = min(connect_timeout_s, timeout_s)
            return Failure("connect_timeout", FetchTimeout(limit_s=limit_s, event=event))
        case TimeoutError():
            return Failure("timeout", FetchTimeout(limit_s=timeout_s))
        case aiohttp.ClientConnectorCertificateError():
            cause = getattr(exc.certificate_error, "verify_message", "") or "it does not match"
            return Failure("tls", FetchFailed(f"the certificate of the image's server is not valid: {cause}"))
        case aiohttp.ClientSSLError() | ssl.SSLError():
            cause = str(getattr(exc, "os_error", exc))
            return Failure("tls", FetchFailed("the TLS connection to the image's server failed"), cause=cause)
        case aiohttp.ClientHttpProxyError():
            return unreachable("connection", f"the proxy answered {exc.status} to CONNECT")
        case aiohttp.ClientConnectorError():
            return _not_connected(exc)
        case HeadTooLong():
            return Failure("answer", FetchFailed(_HEAD_TOO_LONG))
        case aiohttp.ClientResponseError() if exc.message.startswith(("Got more than", "Too many headers")):
            return Failure("answer", FetchFailed(_HEAD_TOO_LONG))
        case aiohttp.InvalidURL():
            return unreachable("name", "the URL can't be dialled")
        case _:
            error = FetchFailed("the image's server broke off or did not speak HTTP")
            return Failure("answer", error, cause=_kinds(exc))


_HEAD_TOO_LONG = (
    f"the image's server answered with too long a head: over {MAX_FIELD_BYTES} bytes in a field, {MAX_FIELDS} fields, "
    f"or {MAX_FRAMING_BYTES} bytes in all"
)


def _not_connected(exc: aiohttp.ClientConnectorError) -> Failure:
    cause = exc.os_error
    text = cause.strerror or str(cause)
    if exc.errno in NO_ROOM:
        error = Overloaded("the service has no room for another connection now")
        return Failure("busy", error, cause=text)
    if isinstance(cause, AddressRefused):
        return unreachable("address", cause.text)
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        deeper = cause.__cause__
        return unreachable("name", text if deeper is None else f"{text}: {deeper!r}")
    known = os.strerror(cause.errno) if cause.errno else ""
    return unreachable("connection", text if known in text else f"{known}: {text}")


def _kinds(exc: BaseException | None) -> str:
    """The classes of `exc` and of what caused it, and the system's texts."""
    kinds: list[str] = []
    while exc is not None and len(kinds) < 4:
        code = getattr(exc, "errno", None)
        kinds.append(type(exc).__name__ + (f" ({os.strerror(code)})" if code else ""))
        exc = exc.__cause__
    return " from ".join(kinds)
