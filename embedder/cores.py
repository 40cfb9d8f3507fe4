"""How many CPU cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that affinity and the container's quota leave, at least 1.

    `os.cpu_count()` names the host's cores; a container limited to 2 of 64 would start 64 workers.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the cgroup grants, None where it sets no limit that can be read."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # versions 2 and 1
        try:
            # "200000 100000" microseconds of each period; "max" or "-1" where there is no limit.
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            if int(quota) >= 0:
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None
