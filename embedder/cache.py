"""Embeddings of images seen before, so that the same bytes are never decoded twice."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Embedding: TypeAlias = NDArray[np.float32]
"""One vector: float32 (512,), of norm 1."""


class EmbeddingCache:
    """The embeddings used last, by the content of the images' files. Any thread may call it.

    An entry takes about 2.3 kB: 2 kB of vector, its key, and Python's share.
    """

    def __init__(self, max_entries: int) -> None:
        """Keeps up to `max_entries`; 0 keeps nothing, and then nothing is hashed either."""
        self._max_entries = max_entries
        self._entries: OrderedDict[bytes, Embedding] = OrderedDict()
        self._lock = Lock()

    def key(self, data: bytes) -> bytes | None:
        """What `data`, an image's file, is kept under; None when nothing is kept. 0.5 ms for a megabyte."""
        # Collisions that somebody could make would let them plant embeddings: no faster, weaker hash.
        return hashlib.sha256(data).digest() if self._max_entries else None

    def get(self, key: bytes | None) -> Embedding | None:
        if key is None:
            return None
        with self._lock:
            embedding = self._entries.get(key)
            if embedding is not None:
                self._entries.move_to_end(key)
            return embedding

    def put(self, key: bytes | None, embedding: Embedding) -> None:
        if key is None:
            return
        with self._lock:
            self._entries[key] = embedding.copy()  # a row would keep its whole batch in memory
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
