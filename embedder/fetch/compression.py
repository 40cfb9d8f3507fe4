"""What a server compressed, though it was told not to."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from embedder.errors import FetchFailed
from embedder.fetch.failures import Failure

STEP_BYTES = 262_144  # to unpack at once: a millisecond

_UNPACKED = ("gzip", "x-gzip", "deflate")
# Others are no compression: aws-chunked, utf-8 and binary say how a file was stored, not how it is sent.
_COMPRESSIONS = (*_UNPACKED, "compress", "x-compress", "br", "zstd", "dcb", "dcz")


class Unpacker:
    """The body of an answer with these Content-Encodings.

    Raises Failure for a compression that is not known here, and for a body that is not what it says.
    """

    def __init__(self, codings: Sequence[str]) -> None:
        compressions = [coding for coding in codings if coding in _COMPRESSIONS]
        if len(compressions) > 1 or not set(compressions) <= set(_UNPACKED):
            text = f"the image's server compressed its answer ({', '.join(compressions)}), which was not asked for"
            raise Failure("answer", FetchFailed(text))
        # gzip's head or zlib's
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 32) if compressions else None

    def parts(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` of the body is, in parts of `STEP_BYTES` at most where it was compressed."""
        if self._zlib is None:
            yield chunk
            return
        try:
            while chunk and not self._zlib.eof:
                yield self._zlib.decompress(chunk, STEP_BYTES)
                chunk = self._zlib.unconsumed_tail
        except zlib.error as exc:
            raise Failure(
                "answer", FetchFailed("the image's server compressed its answer in another way than it says")
            ) from exc

    def check_end(self) -> None:
        if self._zlib is not None and not self._zlib.eof:
            raise Failure("answer", FetchFailed("the image's server broke off"))
