"""How many CPU cores this process may use."""

from __future__ import annotations

import math
import os

from embedder.runtime.cgroup import Cgroup

MAX_WORKERS = 256


def available_cores(cgroup: Cgroup = Cgroup()) -> int:  # noqa: B008 - frozen
    """The cores that affinity and the cgroup's quota leave, rounded up, at least 1.

    `os.cpu_count()` gives the host's cores: a container limited to 2 of 64 would start 64 workers.
    """
    cores = len(os.sched_getaffinity(0))
    texts = cgroup.limits("cpu", v2="cpu.max", v1=("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    quotas = [quota for text in texts if (quota := _cores(text)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def _cores(text: str) -> float | None:
    """Cores' worth of time in "200000 100000", microseconds of each period; None for "max", -1 or nonsense."""
    try:
        quota, period = map(int, text.split())
        return quota / period if quota >= 0 else None
    except (ValueError, ZeroDivisionError):
        return None
