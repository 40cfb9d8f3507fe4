"""The memory that all decoding may take at once. An image's header tells how much it needs.

Images that don't fit wait in two queues, FIFO: large ones, which need more than a quarter of the budget, and
small ones. When a large image waits, small ones still go ahead of it

- as long as they take no memory from it: what would be free beside it, and
- with a quarter of the budget beyond that, once for each large image.

So small images flow past large ones, and a large image waits for no more than a quarter of the budget's small
ones, however many there are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from threading import Lock

from embedder.errors import Overloaded

SMALL_SHARE = 4
"""An image is small up to one part in so many of the budget."""

MAX_QUEUE = 4
"""The images in each queue need up to so many times the budget. The largest take a second or two each."""


@dataclass(eq=False)
class _Waiter:
    size: int
    granted: asyncio.Future[None]
    allowance: int
    """Of a large image: the bytes that small ones may still take from it."""


class DecodeBudget:
    """Any thread may call `try_take` and `give_back`; `take` waits on one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._small_bytes = limit_bytes // SMALL_SHARE
        self._free = limit_bytes
        self._small_in_use = 0
        self._large: deque[_Waiter] = deque()
        self._small: deque[_Waiter] = deque()
        self._lock = Lock()

    def try_take(self, size: int) -> bool:
        """Takes `size` bytes, if there is room and nobody in the same queue waits; returns whether it did."""
        with self._lock:
            if self._queue(size) or not self._has_room(size):
                return False
            self._take(size)
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._give_back(size)
            self._grant()

    async def take(self, size: int) -> None:
        """Waits for its turn and for room for `size` bytes, which are at most `limit_bytes`.

        Raises Overloaded, at once, when too many wait already.
        """
        waiter = _Waiter(size, asyncio.get_running_loop().create_future(), self._small_bytes)
        queue = self._queue(size)
        with self._lock:
            waiting = sum(other.size for other in queue)
            if waiting + size > MAX_QUEUE * self.limit_bytes:
                large = "large " if queue is self._large else ""
                raise Overloaded(f"{len(queue)} {large}images wait to be decoded")
            queue.append(waiter)
            self._grant()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            with self._lock:
                if waiter in queue:
                    queue.remove(waiter)
                else:  # it was granted at the same moment
                    self._give_back(size)
                self._grant()
            raise

    def _queue(self, size: int) -> deque[_Waiter]:
        return self._small if size <= self._small_bytes else self._large

    def _has_room(self, size: int) -> bool:
        if size > self._free:
            return False
        if not self._large or size > self._small_bytes:
            return True
        return self._takes_nothing_from_the_large(size) or size <= self._large[0].allowance

    def _takes_nothing_from_the_large(self, size: int) -> bool:
        return self._small_in_use + size <= self.limit_bytes - self._large[0].size

    def _take(self, size: int) -> None:
        if size <= self._small_bytes:
            if self._large and not self._takes_nothing_from_the_large(size):
                self._large[0].allowance -= size
            self._small_in_use += size
        self._free -= size

    def _give_back(self, size: int) -> None:
        if size <= self._small_bytes:
            self._small_in_use -= size
        self._free += size

    def _grant(self) -> None:
        """Grants what there is room for: small images first, as far as they may go ahead of a large one."""
        while True:
            queue = next((q for q in (self._small, self._large) if q and self._has_room(q[0].size)), None)
            if queue is None:
                return
            waiter = queue.popleft()
            self._take(waiter.size)
            waiter.granted.get_loop().call_soon_threadsafe(_set, waiter.granted)


def _set(granted: asyncio.Future[None]) -> None:
    if not granted.done():  # cancelled meanwhile
        granted.set_result(None)
