"""Who may have this process's descriptors: clients and downloads all but the last ones.

Each client's connection and each download takes one, and clients may make as many connections as they like.
Without any left nothing can be opened: metrics come back empty, a page or a module that was not needed before
fails its request.
"""

from __future__ import annotations

import resource

# A few are enough: what the process opens itself is read and closed again.
RESERVED = 32


def raise_descriptor_limit() -> None:
    """To what the system grants: shells often start with 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_reserved(descriptor: int) -> bool:
    """Whether `descriptor` is one of the last, which are for the process itself.

    The system gives the lowest number that is free, so all below are in use then.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit != resource.RLIM_INFINITY and descriptor >= limit - min(RESERVED, limit // 8)
