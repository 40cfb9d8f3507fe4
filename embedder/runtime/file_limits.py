"""Open files: the limit of this process, and the last descriptors, which clients and downloads never get.

Each client's connection and each download takes one, and clients may open any number of connections. With none
left the process can open nothing itself: `/metrics` comes back empty, and a module that is imported late fails
its request.
"""

from __future__ import annotations

import resource

RESERVED = 32
"""The process itself opens a few files at a time, reads them and closes them."""


def raise_descriptor_limit() -> None:
    """Set the limit to the highest that the system grants: shells often start processes with 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_reserved(descriptor: int) -> bool:
    """Whether `descriptor` is one of the last RESERVED (an eighth, where the limit is below 256).

    The system gives out the lowest free number: then all lower ones are in use.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit != resource.RLIM_INFINITY and descriptor >= limit - min(RESERVED, limit // 8)
