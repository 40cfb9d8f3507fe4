"""The cores that batches compute on, shared by the workers of one server.

Connections do not spread evenly over workers. Were each worker bound to its part of the cores, one client with one
connection would have half of two cores. Did each use all of them, two workers would run four threads on two cores.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

# Behind the bytes that stand for cores. One core is always a worker's own: where the others hold all of them it
# borrows one, and locks a byte here. Until it has a core, no worker takes a second one.
_BORROWERS = 256


class Cores:
    """For one event loop. Shared through `file`, where the lock of a byte stands for a core, fcntl(2).

    The kernel gives back what a worker that dies has locked.
    """

    def __init__(self, total: int, *, file: Path | None = None) -> None:
        """Without `file`, or where it can't be made, this process uses `total` cores as if it were alone."""
        self._total = total
        self._held: list[int] = []
        self._file = None if file is None else _opened(file)

    def take(self, up_to: int = 1) -> int:
        """Takes up to that many free cores, and one at least where this process holds none; returns how many."""
        before = len(self._held)
        if before or up_to > 1:
            up_to = min(up_to, self._total if self._nobody_borrows() else 1 - min(before, 1))
        for core in range(self._total):
            if len(self._held) - before == up_to:
                break
            if core not in self._held and self._lock(core):
                self._held.append(core)
        if up_to and not self._held:
            borrowed = self._total + os.getpid() % _BORROWERS
            self._lock(borrowed)
            self._held.append(borrowed)
        return len(self._held) - before

    def give_back(self, count: int = 1) -> None:
        for _ in range(count):
            self._unlock(self._held.pop())

    def _nobody_borrows(self) -> bool:
        if any(core >= self._total for core in self._held):
            return False
        if not self._lock(self._total, _BORROWERS):
            return False
        self._unlock(self._total, _BORROWERS)
        return True

    def _lock(self, first: int, count: int = 1) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
        except OSError:  # another worker has it; or there are no locks here, and one core is all that is used
            return False
        return True

    def _unlock(self, first: int, count: int = 1) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, count, first)


def _opened(file: Path) -> int | None:
    """Call it once for a file: closing any descriptor of it drops all locks that the process has on it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:  # a full or read-only disk: it serves all the same
        logger.warning("this worker can't see which cores the others use: %s", error)
        return None
