"""API keys that clients send, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

RawHeaders = Iterable[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case."""


class APIKeys:
    """The accepted keys: several at once, so that one can be replaced without an outage."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Without `keys` every request is accepted."""
        # Digests have one length, so the time of a comparison does not depend on a key's. No key stays in memory.
        self._digests = [_digest(key.encode()) for key in keys]

    def accept(self, headers: RawHeaders) -> bool:
        """Whether a request with `headers` carries one of the keys, as a bearer token or in X-API-Key."""
        if not self._digests:
            return True
        given = [_digest(key) for key in _given(headers)]
        # All pairs are compared, also after a match: the time says nothing.
        return any([hmac.compare_digest(one, other) for one in given for other in self._digests])

    def __repr__(self) -> str:
        return f"APIKeys({len(self._digests)})"


def _given(headers: RawHeaders) -> list[bytes]:
    given = []
    for name, value in headers:
        if name == b"x-api-key":
            given.append(value.strip())
        elif name == b"authorization":
            scheme, _, token = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                given.append(token.strip())
    return given[:2]  # a client needs one of each; more would be free guesses


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
