"""Embeddings of images seen before, so that the same bytes are never decoded twice."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Embedding: TypeAlias = NDArray[np.float32]
"""One vector: float32 (dimension,), of norm 1."""


@dataclass(frozen=True, eq=False, slots=True)
class KnownImage:
    """What is kept of an image."""

    embedding: Embedding
    width: int
    height: int
    format: str


class EmbeddingCache:
    """The embeddings used last (LRU), by the sha256 of the images' files. Any thread may call it.

    An entry takes 4 bytes a number, and 0.5 kB for its key and Python's share.
    """

    def __init__(self, max_entries: int) -> None:
        """Keeps up to `max_entries`; 0 keeps nothing."""
        self.max_entries = max_entries
        self._entries: OrderedDict[str, KnownImage] = OrderedDict()
        self._lock = Lock()

    def get(self, sha256: str) -> KnownImage | None:
        with self._lock:
            known = self._entries.get(sha256)
            if known is not None:
                self._entries.move_to_end(sha256)
            return known

    def put(self, sha256: str, known: KnownImage) -> None:
        """Keeps `known`. Its embedding must own its memory: a row of a batch would keep the whole batch."""
        with self._lock:
            self._entries[sha256] = known
            self._entries.move_to_end(sha256)
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
