"""Images where clients made for text have strings: URLs, and base64.

Plug-ins ask for the vector of a word when they are set up, and fail without one. EMBEDDER_PROBE_INPUTS names such
words: they get the vector of a picture that is here. No other text gets a vector.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from embedder.engine import Base64, Source
from embedder.errors import TextNotSupported
from embedder.fetch.data_url import is_data_url
from embedder.http.dialects.documents import EXAMPLE_BASE64

PROBE_HEADER = "X-Embedding-Probe"

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?//")

_PROBE_PICTURE = Base64(EXAMPLE_BASE64)


def is_url(text: str) -> bool:
    text = text.lstrip()
    return is_data_url(text) or _URL.match(text) is not None


class Texts:
    """What strings mean."""

    def __init__(self, probes: Collection[str]) -> None:
        self._probes = frozenset(probes)

    def is_probe(self, text: str) -> bool:
        return text in self._probes

    def image(self, text: str) -> Source:
        """The image that `text` names. Raises TextNotSupported."""
        if text in self._probes:
            return _PROBE_PICTURE
        if not is_url(text):
            raise TextNotSupported(repr(text[:40]))
        return text


def url_or_base64(text: str) -> Source:
    return text if is_url(text) else Base64(text)
