"""How much memory the machine, the cgroup and the process limits leave."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

from embedder.runtime.cgroup import Cgroup

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)


def available_memory_bytes(cgroup: Cgroup = Cgroup()) -> int:  # noqa: B008 - frozen
    """The memory that the machine has, or the least limit of the process's cgroups where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = cgroup.limits("memory", v2="memory.max", v1=("memory.limit_in_bytes",))
    return min([memory, *(int(text) for text in texts if text.strip().isdecimal())])  # "max": no limit


def resident_memory_bytes() -> int:
    """What this process has resident, shared pages too. Raises OSError when no descriptor is left."""
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


def spare_memory() -> None:
    """Let glibc keep less of what is freed. Call it before there are threads.

    Each block of over 1 MB is given back. By default that bound moves up to 32 MB with the first large block that is
    freed, and after 70 slow uploads of 20 MB 1.4 GB stayed resident between such blocks.

    Under RLIMIT_AS all threads allocate from one heap. Otherwise 64 MB are mapped for each of the first dozens of
    threads, whether they use them or not.
    """
    _mallopt(_M_MMAP_THRESHOLD, 1_000_000)
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        _mallopt(_M_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Keep up to 16 MB of what is freed, in blocks of up to 8 MB, for what is allocated next.

    By default glibc may give it back each time: 550 page faults, 2 ms, for each picture of 640 x 480.
    """
    _mallopt(_M_MMAP_THRESHOLD, 8_000_000)
    _mallopt(_M_TRIM_THRESHOLD, 16_000_000)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(parameter, value)
