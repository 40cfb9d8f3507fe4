"""What each worker says of itself once a second: its resident memory, and what it has in work.

prometheus_client's own metrics of a process do not exist where several processes answer as one, as BentoML's
workers do: each writes its values to a file of its own, and whoever is asked reads all the files. So each
has to write, whether it is asked or not. It takes less than 0.1 ms of each second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from embedder.metrics.measures import Metrics
from embedder.runtime.memory import resident_memory_bytes

EVERY_S = 1.0


class WorkerGauges:
    """Keeps this worker's gauges up to date, from `start` to `close`, on one event loop."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        in_flight_images: Callable[[], int],
        in_flight_bytes: Callable[[], int],
        folder: Path | None,
    ) -> None:
        """`folder` has the workers' files; None in a process that is alone."""
        self._metrics = metrics
        self._in_flight_images = in_flight_images
        self._in_flight_bytes = in_flight_bytes
        self._folder = folder
        self._timer: asyncio.TimerHandle

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self.start)
        self._metrics.in_flight_images.set(self._in_flight_images())
        self._metrics.in_flight_bytes.set(self._in_flight_bytes())
        with suppress(OSError):  # no descriptor is left: the next time
            self._metrics.resident_memory.set(resident_memory_bytes())
        if self._folder is not None:
            forget_ended_workers(self._folder)

    def close(self) -> None:
        self._timer.cancel()


def forget_ended_workers(folder: Path) -> None:
    """Remove the gauges of workers that have ended.

    A worker that was killed leaves its file, and what it had in work would be counted without end.
    """
    for file in folder.glob("gauge_live*_*.db"):
        if not _runs(int(file.stem.rpartition("_")[2])):
            file.unlink(missing_ok=True)  # another worker may have been faster


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:  # there is none of that number any more, or it is somebody else's
        return False
    return True
