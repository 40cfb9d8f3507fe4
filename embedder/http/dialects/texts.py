"""Images where clients made for text have strings: URLs, and base64.

Plug-ins ask for the vector of a word when they are set up, and fail without one. EMBEDDER_PROBE_INPUTS names such
words: they get the vector of a picture that is here. No other text gets a vector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from embedder.engine import Base64, Source
from embedder.errors import InvalidRequest, TextNotSupported
from embedder.fetch.data_url import is_data_url
from embedder.http.dialects import Json
from embedder.http.dialects.native import Native
from embedder.model.spec import ModelSpec

PROBE_HEADER = "X-Embedding-Probe"

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?//")

_PROBE_PICTURE = Base64(
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAAAAACMmsGiAAAAEElEQVR42mNsYGBgYGJAIQAJ5ACIuhfh0AAAAABJRU5ErkJggg=="
)
"""4 x 4 grey pixels, as PNG."""


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


class OfTexts(Native):
    """What dialects have in common whose images are strings."""

    def __init__(self, spec: Callable[[], ModelSpec], max_inputs: int, texts: Texts) -> None:
        """`spec`: nothing is known of the model when the dialect is made."""
        self._spec = spec
        self._max_inputs = max_inputs
        self._texts = texts

    def _wrong_dimensions(self, content: Json) -> InvalidRequest | None:
        """Why there are no embeddings of the `dimensions` in `content`. Without the key there are."""
        wanted, own = content.get("dimensions"), self._spec().dimension
        if wanted is None or (wanted == own and not isinstance(wanted, bool)):
            return None
        return InvalidRequest(f"the embeddings have {own} dimensions, and no others")


def url_or_base64(text: str) -> Source:
    return text if is_url(text) else Base64(text)
