"""The bytes of bodies and downloads that may be in memory at once.

They are counted as they arrive, because nobody knows before how many there will be. A byte over the budget is
answered 429 at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from embedder.errors import Overloaded, megabytes


class ByteBudget:
    """The bytes of bodies and downloads in work. For one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.total_bytes = 0

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Counts what is added to the lease until the block is left."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.total_bytes -= lease.bytes

    def add(self, size: int) -> None:
        if self.total_bytes + size > self._limit_bytes:
            raise Overloaded(
                f"bodies and images in work hold {megabytes(self.total_bytes)} and the limit is "
                f"{megabytes(self._limit_bytes)}: no room for more now"
            )
        self.total_bytes += size


@dataclass(eq=False)
class Lease:
    """What one request, or one image, holds."""

    _held: ByteBudget
    bytes: int = 0

    def add(self, size: int) -> None:
        """Raises Overloaded when there is no room for `size` bytes more."""
        self._held.add(size)
        self.bytes += size
