"""Embeddings of images seen before, so that the same bytes are never decoded twice."""

from __future__ import annotations

from collections import OrderedDict

from embedder.result import Result


class EmbeddingCache:
    """The results used last (LRU), by the sha256 of the images' files. For one event loop.

    An entry takes 4 bytes a number, and 0.6 kB for its key and Python's share.
    """

    def __init__(self, max_entries: int) -> None:
        """Keeps up to `max_entries`; 0 keeps nothing."""
        self.max_entries = max_entries
        self._entries: OrderedDict[str, Result] = OrderedDict()

    def get(self, sha256: str) -> Result | None:
        known = self._entries.get(sha256)
        if known is not None:
            self._entries.move_to_end(sha256)
        return known

    def put(self, sha256: str, known: Result) -> None:
        """Keeps `known`. Its embedding must own its memory: a row of a batch would keep the whole batch."""
        self._entries[sha256] = known
        self._entries.move_to_end(sha256)
        while len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)
