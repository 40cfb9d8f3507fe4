"""`data:` URL → the bytes that it carries."""

from __future__ import annotations

import base64
import binascii
import re

from embedder.errors import ImageTooLarge, URLNotAllowed

# RFC 2397, base64 only. The media type is ignored: the bytes say what they are.
_HEAD = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)
_BLANKS = b" \t\n\f\r"
# The characters of base64 that URLs escape. Only these are unescaped: a general decoder takes gigabytes for a
# body full of "%".
_ESCAPES = {b"%%%02X" % byte: bytes([byte]) for byte in b"+/=" + _BLANKS}


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def read_data_url(text: str, *, max_bytes: int) -> bytes:
    """The bytes that `text` carries, at most `max_bytes`. Blocking: milliseconds for megabytes.

    Reads base64 as browsers do (WHATWG Infra, "forgiving-base64 decode"): blanks are skipped, padding may
    be missing, percent-escapes are undone; the URL-safe alphabet is refused.
    Raises URLNotAllowed when `text` is not such a URL, ImageTooLarge.
    """
    head = _HEAD.match(text)
    if head is None:
        raise URLNotAllowed("a data: URL must be base64: data:image/jpeg;base64,<data>")
    if not text.isascii():
        raise URLNotAllowed("the data: URL contains characters that are not ASCII")
    encoded = text[head.end() :].encode("ascii")
    if b"%" in encoded:
        for escape, character in _ESCAPES.items():
            encoded = encoded.replace(escape, character).replace(escape.lower(), character)
    encoded = encoded.translate(None, _BLANKS)
    if len(encoded) % 4 == 0:
        encoded = encoded.removesuffix(b"=").removesuffix(b"=")
    size = len(encoded) * 3 // 4
    if size > max_bytes:
        raise ImageTooLarge(limit_bytes=max_bytes, actual_bytes=size)
    try:
        if b"=" in encoded:
            raise binascii.Error("excess padding")
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        raise URLNotAllowed("the data: URL is not valid base64") from None
