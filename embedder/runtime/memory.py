"""How much memory there is, and how much of it images in work may have at once.

Two things are bounded: the bytes of bodies and downloads that are held, and what decoding takes. Bytes are
counted as they come, since nobody knows before how many there will be; who is over gets 429 at once. What
decoding takes is known from the picture's header; who has to wait, waits, and only for other large pictures.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from embedder.errors import Overloaded, megabytes

# Of decoding memory, waiting for it: this many times the limit, and then no more. Filling it takes the
# largest of images; each is decoded in about a second.
MAX_QUEUE = 4

_M_ARENA_MAX = -8  # mallopt(3)


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory that the machine has, or the container's limit where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # versions 2 and 1
        try:
            return min(memory, int((cgroup / file).read_text()))
        except (OSError, ValueError):  # "max" where there is no limit
            continue
    return memory


def resident_memory_bytes() -> int:
    """What this process has resident, shared pages too. Raises OSError where there is no /proc."""
    resident_pages = Path("/proc/self/statm").read_text().split()[1]
    return int(resident_pages) * os.sysconf("SC_PAGE_SIZE")


def mappable_bytes(statm: Path = Path("/proc/self/statm")) -> int | None:
    """How much more this process may map, by RLIMIT_AS and RLIMIT_DATA; None where neither is set.

    What is mapped is more than what is in memory: libraries, thread stacks and the allocator map much that
    they never touch. So these limits can't be compared with the memory that a process needs, only with what
    it has mapped.
    """
    pages = [int(count) for count in statm.read_text().split()]
    size, data = (pages[column] * os.sysconf("SC_PAGE_SIZE") for column in (0, 5))
    left = [
        limit - mapped
        for limit, mapped in (
            (resource.getrlimit(resource.RLIMIT_AS)[0], size),
            (resource.getrlimit(resource.RLIMIT_DATA)[0], data),
        )
        if limit != resource.RLIM_INFINITY
    ]
    return max(0, min(left)) if left else None


def spare_address_space() -> None:
    """Where little may be mapped, let all threads allocate from one heap. Before there are threads.

    Otherwise glibc maps 64 MB for each of the first dozens of threads, whether they fill them or not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        mallopt(_M_ARENA_MAX, 1)


class HeldBytes:
    """The bytes of bodies and downloads in work. For one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.total_bytes = 0

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """Counts what is added to the hold until the block is left."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.total_bytes -= hold.bytes

    def add(self, size: int) -> None:
        if self.total_bytes + size > self._limit_bytes:
            raise Overloaded(
                f"bodies and images in work hold {megabytes(self.total_bytes)} and the limit is "
                f"{megabytes(self._limit_bytes)}: no room for more now"
            )
        self.total_bytes += size


@dataclass(eq=False)
class Hold:
    """What one request, or one image, holds."""

    _held: HeldBytes
    bytes: int = 0

    def add(self, size: int) -> None:
        """Raises Overloaded when there is no room for `size` bytes more."""
        self._held.add(size)
        self.bytes += size


@dataclass(eq=False)
class _Waiter:
    size: int
    granted: asyncio.Future[None]


class DecodingMemory:
    """What pictures take while they are decoded. Any thread may try and give back; one event loop waits."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._free = limit_bytes
        self._waiters: deque[_Waiter] = deque()
        self._lock = Lock()

    def try_take(self, size: int) -> bool:
        """Whether there is room for `size` bytes, which are then taken. Never before others who wait."""
        with self._lock:
            if self._waiters or size > self._free:
                return False
            self._free -= size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._free += size
            self._grant()

    async def take(self, size: int) -> None:
        """Waits for its turn and for room for `size` bytes, at most `limit_bytes`.

        Raises Overloaded, at once, when too many wait already.
        """
        waiter = _Waiter(size, asyncio.get_running_loop().create_future())
        with self._lock:
            waiting = sum(other.size for other in self._waiters)
            if waiting + size > MAX_QUEUE * self.limit_bytes:
                raise Overloaded(f"{len(self._waiters)} large images wait to be decoded")
            self._waiters.append(waiter)
            self._grant()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                else:  # in the moment of its turn
                    self._free += size
                self._grant()
            raise

    def _grant(self) -> None:
        while self._waiters and self._waiters[0].size <= self._free:
            waiter = self._waiters.popleft()
            self._free -= waiter.size
            waiter.granted.get_loop().call_soon_threadsafe(_set, waiter.granted)


def _set(granted: asyncio.Future[None]) -> None:
    if not granted.done():  # cancelled meanwhile
        granted.set_result(None)
