"""What a server compressed, though it was told not to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

from embedder.errors import FetchFailed
from embedder.fetch.failures import Failure

STEP_BYTES = 262_144  # to unpack at once: a millisecond

_UNPACKED = ("gzip", "x-gzip", "deflate")
# Others are no compression: aws-chunked, utf-8 and binary say how a file was stored, not how it is sent.
_COMPRESSIONS = (*_UNPACKED, "compress", "x-compress", "br", "zstd", "dcb", "dcz")
_GZIP = b"\x1f\x8b"


class Unpacker:
    """The body of an answer with these Content-Encodings.

    Whether all of it came is for the decoder to say: servers leave out what follows the compressed data.
    """

    def __init__(self, codings: Sequence[str], is_image: Callable[[bytes], bool]) -> None:
        """`is_image` tells by the first bytes."""
        self._compressions = [coding for coding in codings if coding in _COMPRESSIONS]
        self._is_image = is_image
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 32) if self._compressions else None  # gzip or zlib
        self._begun = False

    def parts(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` of the body is, in parts of `STEP_BYTES` at most where it was compressed.

        Raises Failure for a compression that is not known here, and for a body that is not what it says.
        """
        if self._zlib is not None and not self._begun and chunk:
            self._begin(chunk)
        if self._zlib is None:
            yield chunk
            return
        try:
            while chunk:
                if self._zlib.eof:
                    if not chunk.startswith(_GZIP):  # of a next member
                        return
                    self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 32)
                if part := self._zlib.decompress(chunk, STEP_BYTES):
                    yield part
                chunk = self._zlib.unconsumed_tail or self._zlib.unused_data
        except zlib.error as exc:
            raise _failure("compressed its answer in another way than it says") from exc

    def _begin(self, chunk: bytes) -> None:
        """By the first `chunk`."""
        self._begun = True
        if len(self._compressions) > 1 or self._compressions[0] not in _UNPACKED:
            if self._is_image(chunk):  # clients that do not know the coding take it as it is
                self._zlib = None
                return
            codings = ", ".join(self._compressions)
            raise _failure(f"compressed its answer ({codings}), which was not asked for")
        if self._compressions == ["deflate"] and not _begins_zlib(chunk):
            self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)  # without zlib's head, as old servers send it


def _begins_zlib(chunk: bytes) -> bool:
    """RFC 1950 section 2.2."""
    return chunk[0] & 0x0F == 8 and (len(chunk) == 1 or int.from_bytes(chunk[:2], "big") % 31 == 0)


def _failure(what: str) -> Failure:
    return Failure("answer", FetchFailed(f"the image's server {what}"))
