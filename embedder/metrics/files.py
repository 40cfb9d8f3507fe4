"""The files that metrics are kept in: with room on the disk before anything is written.

prometheus_client keeps a worker's metrics in files mapped into memory, so that any worker can answer for all
of them. It makes them sparse: the disk is asked for room when a page is written for the first time, and where
there is none the kernel ends the process with SIGBUS. So a full disk would end every worker, over a count.
Here room is taken first. What finds none is counted in memory, and written when there is some again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

logger = logging.getLogger(__name__)

# What prometheus_client begins a file with, and doubles.
_FIRST_BYTES = 1 << 16
# What a value takes beside its name: length, padding, the value itself, when it was set.
_VALUE_BYTES = 32


class ReservedFile(MmapedDict):
    """prometheus_client's file of named numbers, which a full disk does not turn into a trap."""

    def __init__(self, filename: str) -> None:
        """Never raises for want of room: what is written is then kept from the file, not from the caller."""
        self._fname = filename
        self._is_open = False
        self._positions: dict[str, int] = {}
        self._told = False
        try:
            self._open()
        except OSError as error:
            self._tell(error)

    def read_value(self, key: str) -> tuple[float, float]:
        try:
            value: tuple[float, float] = super().read_value(key)
        except OSError as error:
            self._tell(error)
            return 0.0, 0.0
        return value

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        try:
            super().write_value(key, value, timestamp)
        except OSError as error:  # `value` is all that was ever counted: the next write makes up for this one
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            logger.warning("metrics are incomplete until there is room for them: %s", error)
        self._told = True

    def close(self) -> None:
        if self._is_open:
            super().close()

    def _open(self) -> None:
        _reserve(Path(self._fname), _FIRST_BYTES)
        super().__init__(self._fname)
        self._is_open = True

    def _init_value(self, key: str) -> None:
        if not self._is_open:
            self._open()
        before = capacity = self._capacity
        while capacity < self._used + len(key.encode()) + _VALUE_BYTES:
            capacity *= 2
        try:
            if capacity > before:
                _reserve(Path(self._fname), capacity)
            super()._init_value(key)
        except OSError:
            self._capacity = before
            raise


def _reserve(file: Path, size: int) -> None:
    """Make `file` at least `size` bytes long, all of which are on the disk. Raises OSError."""
    # Not prometheus_client's own descriptor: it appends, and then glibc can't do this on every file system.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        size = max(size, os.fstat(descriptor).st_size)
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        if os.fstat(descriptor).st_size == 0:
            file.unlink()  # who reads all files can't read an empty one
        raise
    finally:
        os.close(descriptor)


def reserve_metric_files() -> None:
    """From now on. Before the first metric is made."""
    if getattr(values, "MmapedDict", None) is not MmapedDict:
        logger.warning("this prometheus_client keeps metrics in a way that is not known here")
        return
    values.MmapedDict = ReservedFile  # type: ignore[attr-defined, assignment]  # it makes its files with that
