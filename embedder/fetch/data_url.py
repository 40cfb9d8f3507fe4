"""`data:` URL, or base64 alone → the bytes that it carries."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

from embedder.errors import BadImage, ImageTooLarge, URLNotAllowed

# RFC 2397. The media type is ignored: the bytes say what they are.
_MAX_HEAD = 1_024
_IS_BASE64 = re.compile(r"; *base64 *\Z", re.IGNORECASE)
_LINE_BREAKS = b"\t\n\r"  # browsers take them out of a URL before they read it
_NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_BLANKS = b" \t\n\f\r"


@dataclass(frozen=True, eq=False)
class Base64:
    """An image's file as text."""

    text: str = field(repr=False)


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def read_data_url(text: str, *, max_bytes: int) -> bytes:
    """The bytes that `text` carries, at most `max_bytes`, as browsers read it. Blocking: milliseconds for megabytes.

    Percent-escapes are undone, a fragment is dropped.

    Raises URLNotAllowed when `text` is not such a URL, ImageTooLarge.
    """
    head, comma, _ = text[:_MAX_HEAD].partition(",")
    if not (comma and is_data_url(head)) or "#" in head:
        raise URLNotAllowed("the data: URL has no comma, or none near its beginning")
    is_base64 = _IS_BASE64.search(head.translate(dict.fromkeys(_LINE_BREAKS)))
    if not text.isascii():
        raise URLNotAllowed("the data: URL contains characters that are not ASCII")
    begin = len(head) + 1
    fragment = text.find("#", begin)
    encoded = text[begin : None if fragment < 0 else fragment].encode("ascii")
    if b"%" in encoded or not is_base64:
        encoded = encoded.translate(None, _LINE_BREAKS)
    if b"%" in encoded:
        if _NO_ESCAPE.search(encoded):
            raise URLNotAllowed("the data: URL has a % that is no escape")
        # The one decoder of hexadecimal escapes that is written in C. Python's own takes gigabytes for a body of "%".
        encoded = binascii.a2b_qp(encoded.replace(b"=", b"=3D").replace(b"%", b"="))
    if not is_base64:
        if len(encoded) > max_bytes:
            raise ImageTooLarge(limit_bytes=max_bytes, actual_bytes=len(encoded))
        return encoded
    try:
        return _decoded(encoded, max_bytes)
    except binascii.Error:
        raise URLNotAllowed("the data: URL is not valid base64") from None


def read_base64(text: str, *, max_bytes: int) -> bytes:
    """The bytes of a `Base64`'s `text`, at most `max_bytes`. Blocking, as above. Raises BadImage and ImageTooLarge."""
    try:
        return _decoded(text.encode("ascii"), max_bytes)
    except (binascii.Error, UnicodeEncodeError):
        raise BadImage("the image is not valid base64") from None


def _decoded(encoded: bytes, max_bytes: int) -> bytes:
    """As browsers do (WHATWG Infra, "forgiving-base64 decode"): blanks are skipped, padding may be missing.

    The URL-safe alphabet is refused. Raises binascii.Error, ImageTooLarge.
    """
    encoded = encoded.translate(None, _BLANKS)
    if len(encoded) % 4 == 0:
        encoded = encoded.removesuffix(b"=").removesuffix(b"=")
    size = len(encoded) * 3 // 4
    if size > max_bytes:
        raise ImageTooLarge(limit_bytes=max_bytes, actual_bytes=size)
    if b"=" in encoded:
        raise binascii.Error("excess padding")
    return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
