"""What becomes of one source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedder.errors import EmbedderError

Embedding: TypeAlias = NDArray[np.float32]
"""One vector: float32 (dimension,), of norm 1."""


@dataclass(frozen=True, eq=False, slots=True)
class Result:
    """An embedding or an error."""

    embedding: Embedding | None = None
    """float32 (dimension,), of norm 1."""
    error: EmbedderError | None = None
    width: int | None = None
    """`width` and `height` are the source's, in pixels, upright. None, as what follows, beside an error."""
    height: int | None = None
    format: str | None = None
    """A name of `images/formats.py`: "JPEG"."""
    bytes: int | None = None
    """The size of the file."""
    sha256: str | None = None
    """Of the file, in hexadecimal. None where nobody asked for it and embeddings are not kept."""
    rendition: bool = False
    """Whether the file is a smaller picture that a CDN made of the one at the URL (EMBEDDER_RENDITIONS)."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds, of what was done: fetch, decode_queue, decode, encode (with the wait for a batch)."""
