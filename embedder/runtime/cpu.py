"""How many CPU cores this server may really use, and which of them its workers leave idle."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import mmap
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_WORKERS = 256
# For workers that were killed, where no core is free.
LOOK_EVERY_S = 1.0


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


class Cores:
    """The cores that the workers of one server compute on. A worker may use what the others leave idle.

    Connections do not spread evenly: the first worker that wakes up takes all that are there. Were each
    bound to a core, a client with one connection, or sixteen unlucky ones, would have half of two cores.

    Each worker keeps how many it uses in a place of its own, where the others read it. The places are not
    locked: at worst two workers take the same idle core, until one of them has finished.
    """

    def __init__(
        self,
        total: int,
        *,
        in_use: bytearray | memoryview | None = None,
        worker: int = 0,
        lives: Callable[[int], bool] = lambda worker: True,
    ) -> None:
        """`in_use` has a place for each worker, this one's at `worker`; without it this worker is alone.

        `lives` tells whether the worker of a place does.
        """
        self._total = total
        self._in_use = bytearray(1) if in_use is None else in_use
        self._worker = worker
        self._lives = lives
        self._look_again_s = 0.0
        self._in_use[worker] = 0  # a worker that was killed has left its own

    @classmethod
    def shared(cls, total: int, *, folder: Path | None, worker: int | None) -> Cores:
        """Shared among the workers that have the same parent process, by a file in `folder`.

        `worker` is BentoML's number of this one, from 1. Either is None in a process that is no worker.
        """
        if folder is None or worker is None:
            return cls(total)
        places = 2 * MAX_WORKERS  # BentoML numbers the successor of a worker up to twice as high
        file = folder / f"cores-in-use-{os.getppid()}"
        try:
            in_use = _mapped(file, places)
            _live(file, worker - 1)
        except OSError as error:  # a full or read-only disk: it serves all the same
            logger.warning("this worker can't see which cores the others use: %s", error)
            return cls(total)
        return cls(total, in_use=in_use, worker=worker - 1, lives=partial(_lives, file))

    def free(self) -> int:
        """How many this worker may take now. One is always its own."""
        own = self._in_use[self._worker]
        idle = self._total - sum(self._in_use)
        if idle <= 0 and time.monotonic() >= self._look_again_s:
            self._look_again_s = time.monotonic() + LOOK_EVERY_S
            self._bury()
            idle = self._total - sum(self._in_use)
        return min(max(idle, 0 if own else 1), 255 - own)  # a place is a byte

    def take(self, count: int = 1) -> None:
        self._in_use[self._worker] += count

    def give_back(self, count: int = 1) -> None:
        self._in_use[self._worker] -= count

    def _bury(self) -> None:
        """Take back what killed workers had. BentoML takes up to 10 s to replace one, and its start."""
        for worker, count in enumerate(self._in_use):
            if count and worker != self._worker and not self._lives(worker):
                self._in_use[worker] = 0


def _mapped(file: Path, size: int) -> memoryview:
    """The bytes of `file`, made if it is not there, shared with all who map it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # not sparse: a full disk must not kill later
        return memoryview(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)


def _live(file: Path, worker: int) -> None:
    """Hold a lock on a file of this worker's own until the process ends, however it does."""
    descriptor = os.open(_lock_file(file, worker), os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(100):  # another worker may just be looking
        if _lock(descriptor):
            return
        time.sleep(0.01)
    os.close(descriptor)
    raise BlockingIOError(errno.EWOULDBLOCK, f"another process is worker {worker + 1}")


def _lives(file: Path, worker: int) -> bool:
    try:
        descriptor = os.open(_lock_file(file, worker), os.O_RDWR)
    except OSError:
        return True  # nobody knows
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether nobody else held it. A lock goes with the process, even one that nobody has waited for yet."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_file(file: Path, worker: int) -> Path:
    return file.with_name(f"{file.name}-{worker + 1}")
